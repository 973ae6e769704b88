"""One class a noun, each bound to a session and through it to a tenant. The only place besides storage/ that knows a query is here."""
