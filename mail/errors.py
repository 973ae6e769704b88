"""What can go wrong between Mailroom and a mail server, each named by what it means for the caller.

`replies` turns protocol answers into these; nothing above reads a code. No sentence holds an address, a secret or the server's text.
"""
# ruff: noqa: N818  (the names say what happened, as mail people say it)

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from core.errors import NotFoundError, PermanentError, TransientError
from core.hosts import ConnectionFailed, HostNotAllowed, HostUnresolved

if TYPE_CHECKING:
    from mail.replies import SmtpReply

__all__ = [
    "AuthenticationRefused",
    "CertificateRefused",
    "ConnectionFailed",
    "DeliveryUncertain",
    "EncryptionRequired",
    "FolderMissing",
    "Greylisted",
    "HostNotAllowed",
    "HostUnresolved",
    "MailboxFull",
    "MailboxProtocolError",
    "MessageRejected",
    "RecipientRejected",
    "SenderRejected",
    "ServerThrottled",
    "ServerUnavailable",
]


class AuthenticationRefused(PermanentError):
    """User name, password or token are wrong, or the account may not use this service. Repeating it locks people out."""

    code = "authentication_refused"


class CertificateRefused(PermanentError):
    """The server's certificate is not valid for its name, or TLS could not be agreed."""

    code = "certificate_refused"


class EncryptionRequired(PermanentError):
    """The server offers no STARTTLS, or a password would have crossed the network in clear text."""

    code = "encryption_required"


class ServerThrottled(TransientError):
    """Too many connections or commands; the server wants a pause."""

    code = "server_throttled"


class ServerUnavailable(TransientError):
    """The server answers that it cannot serve just now, or said goodbye in the middle."""

    code = "server_unavailable"


class MailboxFull(PermanentError):
    """The user's quota leaves no room for this message (OVERQUOTA, RFC 5530 3, RFC 9208 4.3.3)."""

    code = "mailbox_full"


class MailboxProtocolError(PermanentError):
    """The server's answer is no IMAP we understand, or it refuses a command that should work."""

    code = "mailbox_protocol"


class FolderMissing(NotFoundError):
    """The folder is not (or no longer) on the server."""

    code = "folder_missing"


class RecipientRejected(PermanentError):
    """The server will never take mail for this recipient."""

    code = "recipient_rejected"


class SenderRejected(PermanentError):
    """The server will not take mail from this sender."""

    code = "sender_rejected"


class MessageRejected(PermanentError):
    """The server will not take this message: its size, its content, or an extension it needs."""

    code = "message_rejected"


class Greylisted(TransientError):
    """A temporary answer (4xx) to a mail; `retry_after` is the server's hint or the usual five minutes."""

    code = "greylisted"


class DeliveryUncertain(PermanentError):
    """The connection was lost after the final dot and before the reply: the server may have the mail. Never resent blindly.

    `refused` has the replies to those recipients who surely have not got it (`mail.replies.SmtpReply` by address).
    """

    code = "uncertain"

    def __init__(self, message: str, refused: Mapping[str, SmtpReply] | None = None) -> None:
        super().__init__(message)
        self.refused: Mapping[str, SmtpReply] = refused or {}
