"""Logging in to an IMAP server: with a token or a password, by the best way both sides know."""

from __future__ import annotations

from mail.accounts import Endpoint
from mail.errors import AuthenticationRefused, EncryptionRequired
from mail.imap_connection import ImapConnection
from mail.imap_syntax import quoted
from mail.sasl import Exchange, plain, token_exchange


def log_in(connection: ImapConnection, endpoint: Endpoint) -> None:
    """Raises AuthenticationRefused, or EncryptionRequired before anything secret crosses a public network in clear text."""
    if endpoint.username is None or (endpoint.secret is None and endpoint.token is None):
        raise AuthenticationRefused(f"There is no user name or password for {endpoint.where}.")
    connection.refuse_clear_text()
    announced = connection.capabilities
    connection.capabilities = frozenset()  # they may change with the login; asked again unless the answer carries them
    if endpoint.token is not None:
        mechanisms = {name.removeprefix("AUTH=") for name in announced if name.startswith("AUTH=")}
        _authenticate(connection, token_exchange(endpoint, mechanisms), announced)
    elif endpoint.secret is not None and "AUTH=PLAIN" in announced:
        _authenticate(connection, plain(endpoint.username, endpoint.secret), announced)
    elif "LOGINDISABLED" in announced:
        raise EncryptionRequired(f"{endpoint.where} accepts no password on this connection.")
    elif endpoint.secret is not None:
        _command_login(connection, endpoint.username, endpoint.secret.reveal())
    if not connection.capabilities:
        connection.ask_capabilities()


def _authenticate(connection: ImapConnection, exchange: Exchange, announced: frozenset[str]) -> None:
    """AUTHENTICATE, with the first response in the same line where the server allows it (SASL-IR, RFC 4959)."""
    command = b"AUTHENTICATE " + exchange.mechanism
    if "SASL-IR" in announced:
        connection.converse(command + b" " + exchange.initial, exchange.later)
    else:
        connection.converse(command, [exchange.initial, *exchange.later])


def _command_login(connection: ImapConnection, username: str, password: str) -> None:
    """LOGIN with quoted strings where they can carry the text, synchronising literals where they cannot (RFC 9051 4.3)."""
    if all(text.isascii() and text.isprintable() for text in (username, password)):
        connection.run(b"LOGIN " + quoted(username) + b" " + quoted(password))
        return
    user, secret = username.encode(), password.encode()
    connection.converse(b"LOGIN {%d}" % len(user), [user + b" {%d}" % len(secret), secret])
