"""Stored mail as callers and people look at it: lists by the page, without the bodies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, true, tuple_, type_coerce
from sqlalchemy.orm import defer

from core.errors import NotFoundError
from storage.models import EmailAttachment, EmailClient, EmailMessage, OutboundEmail
from storage.repositories.base import Repository
from storage.repositories.email_clients import EmailClients
from storage.types import UtcDateTime

RECEIVED = type_coerce(func.coalesce(EmailMessage.internal_date, EmailMessage.created_at), UtcDateTime())
"""When a message came; when we saw it first, if its server did not say."""

BODIES = (EmailMessage.body_text, EmailMessage.body_html, EmailMessage.headers)
Before = tuple[datetime, str] | None


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message in a list."""

    message: EmailMessage
    received_at: datetime
    attachments: int

    @property
    def id(self) -> str:
        """The message's."""
        return self.message.id


class MailViews(Repository):
    """Read only. Messages have no user of their own: a user sees those of their accounts."""

    def messages(
        self, client_id: str | None, folder_id: str | None, text: str | None, *, before: Before = None, limit: int = 50
    ) -> list[StoredMessage]:
        """The newest first. Raises NotFoundError for a foreign account; `text` is looked for in subject and beginning."""
        conditions = [self._visible()]
        if client_id is not None:
            conditions.append(EmailMessage.client_id == EmailClients(self.session).one(client_id).id)
        if folder_id is not None:
            conditions.append(EmailMessage.folder_id == folder_id)
        if text is not None:
            conditions.append(
                or_(EmailMessage.subject.icontains(text, autoescape=True), EmailMessage.snippet.icontains(text, autoescape=True))
            )
        if before is not None:
            conditions.append(tuple_(RECEIVED, EmailMessage.id) < before)
        files = (
            select(func.count())
            .where(EmailAttachment.tenant_id == EmailMessage.tenant_id, EmailAttachment.email_id == EmailMessage.id)
            .scalar_subquery()
        )
        statement = select(EmailMessage, RECEIVED, files).options(*(defer(body) for body in BODIES)).where(*conditions)
        rows = self.session.execute(statement.order_by(RECEIVED.desc(), EmailMessage.id.desc()).limit(limit))
        return [StoredMessage(*row) for row in rows]

    def message(self, message_id: str) -> EmailMessage:
        """Raises NotFoundError, also for a message of another user's account."""
        message = self.get(EmailMessage, message_id, "message")
        try:
            EmailClients(self.session).one(message.client_id)
        except NotFoundError:
            raise NotFoundError("There is no message with this id.") from None
        return message

    def attachments(self, message_id: str) -> Sequence[EmailAttachment]:
        """What hangs on a message that was looked up."""
        of_message = EmailAttachment.email_id == message_id
        statement = select(EmailAttachment).where(self._in_tenant(EmailAttachment), of_message)
        return self.session.scalars(statement.order_by(EmailAttachment.id)).all()

    def outbound(self, status: str | None, *, before: Before = None, limit: int = 50) -> Sequence[OutboundEmail]:
        """Mails on their way out, the newest first, without their bytes."""
        statement = self.scoped(OutboundEmail).options(defer(OutboundEmail.source))
        if status is not None:
            statement = statement.where(OutboundEmail.status == status)
        if before is not None:
            statement = statement.where(tuple_(OutboundEmail.created_at, OutboundEmail.id) < before)
        ordered = statement.order_by(OutboundEmail.created_at.desc(), OutboundEmail.id.desc())
        return self.session.scalars(ordered.limit(limit)).all()

    def message_counts(self) -> dict[str, int]:
        """Account id to the number of its stored messages."""
        statement = select(EmailMessage.client_id, func.count()).where(self._visible()).group_by(EmailMessage.client_id)
        return {row[0]: row[1] for row in self.session.execute(statement)}

    def _visible(self) -> ColumnElement[bool]:
        """The tenant's, and for a user those of the user's accounts."""
        condition = self._in_tenant(EmailMessage)
        if self.identity.user_id is not None:
            condition &= EmailMessage.client_id.in_(select(EmailClient.id).where(self.owns(EmailClient)))
        return condition

    def _in_tenant(self, model: Any) -> ColumnElement[bool]:
        """The tenant's wall alone, for tables whose rows belong to accounts: a synced attachment carries no user."""
        return true() if self.identity.is_system else model.tenant_id == self.identity.tenant_id
