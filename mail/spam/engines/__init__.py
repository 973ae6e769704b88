"""Outside engines that may be asked too: rspamd and SpamAssassin. Without them, and whenever they are down, the embedded check stands."""
