"""Stored mail as callers and people look at it: lists by the page, without the bodies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, exists, false, func, select, true, tuple_, type_coerce
from sqlalchemy.orm import defer

from core.errors import NotFoundError
from core.ids import is_id
from storage import search
from storage.models import EmailAttachment, EmailClient, EmailFolder, EmailMessage, OutboundEmail, SpamVerdict
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
        self,
        client_id: str | None,
        folder_id: str | None,
        text: str | None,
        *,
        thread_id: str | None = None,
        is_spam: bool | None = None,
        before: Before = None,
        limit: int = 50,
    ) -> list[StoredMessage]:
        """The newest first. Raises NotFoundError for a foreign account; `text` is searched as storage/search.py says."""
        conditions = [self._visible()]
        if client_id is not None:
            conditions.append(EmailMessage.client_id == EmailClients(self.session).one(client_id).id)
        if folder_id is not None:
            conditions.append(EmailMessage.folder_id == folder_id if is_id(folder_id) else false())
        if thread_id is not None:
            conditions.append(EmailMessage.thread_id == thread_id if is_id(thread_id) else false())
        if is_spam is not None:
            called = self._called_spam()
            conditions.append(called if is_spam else ~called)
        if text is not None:
            conditions.append(search.matching(self.session, text, self.identity))
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
        """Raises NotFoundError, also for a message of another user's account and for one that has vanished."""
        message = (
            self.session.scalar(select(EmailMessage).where(self._visible(), EmailMessage.id == message_id)) if is_id(message_id) else None
        )
        if message is None:
            raise NotFoundError("There is no message with this id.")
        return message

    def place(self, message: EmailMessage) -> EmailFolder:
        """The folder of a message that was looked up."""
        return self.get(EmailFolder, message.folder_id, "folder")

    def attachments(self, message_id: str) -> Sequence[EmailAttachment]:
        """What hangs on a message that was looked up, in its order there."""
        of_message = EmailAttachment.email_id == message_id
        found = self.session.scalars(select(EmailAttachment).where(self._in_tenant(EmailAttachment), of_message))
        return sorted(found, key=lambda each: ([int(number) for number in (each.part or "").split(".") if number.isdecimal()], each.id))

    def attachment(self, message_id: str, attachment_id: str) -> EmailAttachment:
        """One file of a message that was looked up. Raises NotFoundError."""
        found = next((each for each in self.attachments(message_id) if each.id == attachment_id), None)
        if found is None:
            raise NotFoundError("The message has no attachment with this id.")
        return found

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

    def _called_spam(self) -> ColumnElement[bool]:
        mine = (SpamVerdict.tenant_id == EmailMessage.tenant_id, SpamVerdict.email_id == EmailMessage.id)
        return exists().where(self._in_tenant(SpamVerdict), *mine, SpamVerdict.is_spam)

    def _visible(self) -> ColumnElement[bool]:
        """The tenant's, and for a user those of the user's accounts; what has vanished is shown to nobody."""
        condition = self._in_tenant(EmailMessage) & EmailMessage.vanished_at.is_(None)
        if self.identity.user_id is not None:
            condition &= EmailMessage.client_id.in_(select(EmailClient.id).where(self.owns(EmailClient)))
        return condition

    def _in_tenant(self, model: Any) -> ColumnElement[bool]:
        """The tenant's wall alone, for tables whose rows belong to accounts: a synced attachment carries no user."""
        return true() if self.identity.is_system else model.tenant_id == self.identity.tenant_id
