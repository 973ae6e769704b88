"""The dashboard: server-rendered pages that one stream of server-sent events keeps current."""
