"""Whether a mail server answers: a connection, TLS as the account has it, the greeting, and good-bye. Nobody logs in."""

from __future__ import annotations

from mail.accounts import Endpoint
from mail.imap_connection import ImapConnection
from mail.pop3_connection import Pop3Connection
from mail.smtp_connection import SmtpConnection


def greet(protocol: str, endpoint: Endpoint) -> None:
    """`protocol` is imap, pop3 or smtp; the endpoint has no login. Raises what opening such a connection raises (mail/errors.py)."""
    if protocol == "smtp":
        smtp = SmtpConnection(endpoint)
        smtp.open()
        smtp.quit()
    elif protocol == "imap":
        imap = ImapConnection(endpoint)
        imap.open()
        imap.logout()
    else:
        pop3 = Pop3Connection(endpoint)
        pop3.open(log_in=False)
        pop3.quit()
