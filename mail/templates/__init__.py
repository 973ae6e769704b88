"""The wording of transactional mails: what letters there are, the language of their templates, and what ships with Mailroom."""
