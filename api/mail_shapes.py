"""The JSON shapes of accounts and stored mail. A password is never in one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import Field

from api.shapes import Shape
from api.spam_shapes import SpamView
from storage.models import EmailAttachment, EmailClient, EmailMessage, SpamFeedback, SpamVerdict
from storage.repositories.mail_views import StoredMessage


class ClientView(Shape):
    """A mail account. Whether it has a password is told, the password never."""

    id: str
    user_id: str
    name: str
    email: str
    imap_host: str | None
    imap_port: int | None
    imap_security: str | None
    imap_username: str | None
    has_imap_password: bool
    smtp_host: str | None
    smtp_port: int | None
    smtp_security: str | None
    smtp_username: str | None
    has_smtp_password: bool
    pop3_host: str | None
    pop3_port: int | None
    pop3_security: str | None
    pop3_username: str | None
    has_pop3_password: bool
    oauth_token_url: str | None
    oauth_client_id: str | None
    has_oauth_refresh_token: bool
    saves_sent: bool
    checks_spam: bool | None
    moves_junk: bool | None
    is_sync_enabled: bool
    sync_interval: int
    last_sync_at: datetime | None
    last_error: str | None
    refused_logins: int
    created_at: datetime

    @classmethod
    def of(cls, row: EmailClient) -> ClientView:
        """As recorded, the passwords left out."""
        secrets = [name for name in cls.model_fields if name.startswith("has_")]
        told = {name: getattr(row, name.removeprefix("has_")) is not None for name in secrets}
        return cls(**{name: getattr(row, name) for name in cls.model_fields if name not in told}, **told)


class FolderView(Shape):
    """A folder of an account."""

    id: str
    name: str
    role: str | None
    message_count: int
    synced_at: datetime | None


class MessageSummary(Shape):
    """A stored message in a list."""

    id: str
    client_id: str
    folder_id: str
    thread_id: str | None
    message_id: str | None
    subject: str
    sender: dict[str, Any] | None = Field(serialization_alias="from")
    to: list[Any]
    cc: list[Any]
    date: datetime | None
    received_at: datetime
    size: int
    flags: list[str]
    snippet: str
    attachment_count: int
    spam: SpamView | None

    @classmethod
    def of(cls, stored: StoredMessage, verdict: SpamVerdict | None = None) -> MessageSummary:
        """As stored."""
        spam = SpamView.of(verdict) if verdict is not None else None
        return cls(**_fields(stored.message), received_at=stored.received_at, attachment_count=stored.attachments, spam=spam)


class AttachmentView(Shape):
    """A file: of a stored message, or uploaded to be sent."""

    id: str
    filename: str
    content_type: str
    size: int


class MessageAttachmentView(AttachmentView):
    """A file of a stored message."""

    is_inline: bool
    content_id: str | None


class MessageView(MessageSummary):
    """One stored message. `bodyHtml` was made safe when it was stored: no script, no form, nothing fetched when it is shown."""

    in_reply_to: str | None
    references: list[str]
    body_text: str | None
    body_html: str | None
    headers: list[Any]
    defects: list[str]
    attachments: list[MessageAttachmentView]
    spam_feedback: bool | None

    @classmethod
    def whole(
        cls,
        row: EmailMessage,
        attachments: Sequence[EmailAttachment],
        verdict: SpamVerdict | None = None,
        feedback: SpamFeedback | None = None,
    ) -> MessageView:
        """As stored."""
        return cls(
            **_fields(row),
            received_at=row.internal_date or row.created_at,
            attachment_count=len(attachments),
            in_reply_to=row.in_reply_to,
            references=row.references,
            body_text=row.body_text,
            body_html=row.body_html,
            headers=row.headers,
            defects=row.defects,
            attachments=[MessageAttachmentView.model_validate(each) for each in attachments],
            spam=SpamView.of(verdict) if verdict is not None else None,
            spam_feedback=feedback.is_spam if feedback is not None else None,
        )


class MessagePage(Shape):
    """A page of messages, newest first."""

    items: list[MessageSummary]
    next_cursor: str | None


def _fields(row: EmailMessage) -> dict[str, Any]:
    names = ("id", "client_id", "folder_id", "thread_id", "message_id", "subject", "sender", "to", "cc", "date", "size", "flags", "snippet")
    return {name: getattr(row, name) for name in names}
