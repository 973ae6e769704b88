"""The mail domain: mailboxes and messages, in and out. Knows no queue, no database and no settings."""
