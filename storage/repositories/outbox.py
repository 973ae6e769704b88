"""What people and schedules do to the outbox: cancel, resolve what nobody knows, find what is due and what was lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, String, cast, exists, func, literal, or_, select, update
from sqlalchemy.orm import defer

from core.errors import ConflictError, InvalidInputError
from storage.expressions import db_now
from storage.models import EmailClient, OutboundEmail, TaskRun
from storage.repositories.outbound import EXPIRED, OutboundEmails
from storage.states import LIVE, OutboundStatus, State
from storage.webhook_events import note_mail

CARRIERS = ("send_outbound_email", "retry_failed_email")
"""The tasks whose runs carry a mail, beside `send_email`."""
LOST = "The process was lost between the final dot and the server's reply; the mail may have been delivered."
CANCELLED = "It was cancelled."
REVOKED = "Its run was revoked."
OUTCOMES = ("sent", "failed", "retry")


def send_key(email_id: str) -> str:
    """The unique key of the runs that carry a mail: of each task at most one is live."""
    return f"send:{email_id}"


class Outbox(OutboundEmails):
    """The outbox of the identity, for whoever looks after it."""

    def cancel(self, email_id: str) -> OutboundEmail:
        """A waiting mail is not sent any more. Twice is fine. Raises ConflictError for one that is under way or over."""
        email = self._locked(email_id)
        if email.status == OutboundStatus.PENDING:
            email.status, email.next_retry_at, email.last_error = OutboundStatus.CANCELLED, None, CANCELLED
            self.session.flush()
            self.erase(email)
        elif email.status != OutboundStatus.CANCELLED:
            raise ConflictError(f"The mail is {email.status}; only one that waits can be cancelled.")
        return email

    def resolve(self, email_id: str, outcome: str) -> OutboundEmail:
        """An operator knows, or decides, what became of an `uncertain` mail: `sent`, `failed`, or `retry`: it is sent once more.

        Raises ConflictError for a mail that is not uncertain.
        """
        if outcome not in OUTCOMES:
            raise InvalidInputError(f"outcome is one of {', '.join(OUTCOMES)}.")
        email = self._locked(email_id)
        if email.status != OutboundStatus.UNCERTAIN:
            raise ConflictError(f"The mail is {email.status}; only an uncertain one can be resolved.")
        if outcome == "retry":
            self._may_go_again(email)
            email.status = OutboundStatus.PENDING
        else:
            self._unanswered_become(email_id, outcome)
            email.last_error = None if outcome == "sent" else email.last_error
            self._close_or_wait(email, self.recipients(email_id), email.last_error, None)
        self.session.flush()
        self.erase(email)
        self.session.refresh(email)
        return email

    def take_up(self, email: OutboundEmail) -> bool:
        """A waiting mail that nobody is due for was set to `pending` by hand: who has not got it is due again. Returns whether anybody is.

        Raises ConflictError for one whose content is erased.
        """
        recipients = self.recipients(email.id)
        failed = [recipient for recipient in recipients if recipient.status == "failed"]
        if failed:
            self._locked(email.id)
            self._may_go_again(email, keeps_expiry=True)
            for recipient in failed:
                recipient.status, recipient.error, recipient.attempts, recipient.next_retry_at = "pending", None, 0, None
            self.session.flush()
        return bool(failed)

    def live_runs(self, email: OutboundEmail) -> list[str]:
        """The ids of the waiting and running runs that carry the mail."""
        statement = self.scoped(TaskRun).with_only_columns(TaskRun.id).where(TaskRun.tenant_id == email.tenant_id)
        mine = or_(TaskRun.id == email.run_id, (TaskRun.unique_key == send_key(email.id)) & TaskRun.task.in_(CARRIERS))
        return list(self.session.scalars(statement.where(mine, TaskRun.state.in_(sorted(LIVE)))))

    def is_held(self, email: OutboundEmail, run_id: str) -> bool:
        """Whether another run is at the mail at this moment."""
        others = [each for each in self.live_runs(email) if each != run_id]
        started = self.scoped(TaskRun).where(TaskRun.id.in_(others), TaskRun.state == State.STARTED)
        return bool(others) and self.session.scalar(select(started.exists())) is True

    def saved(self, email_id: str, status: str) -> None:
        """What became of the copy for the Sent folder: `saved` or `failed`."""
        self._set(email_id, saved_to_sent=status)

    def has_imap(self, client_id: str | None) -> bool:
        """Whether the account's Sent folder can be looked at."""
        found = self.scoped(EmailClient).where(EmailClient.id == client_id, EmailClient.imap_host.is_not(None))
        return client_id is not None and self.session.scalar(select(found.exists())) is True

    def due(self, limit: int = 1000) -> Sequence[OutboundEmail]:
        """Waiting mails whose time has come and that no run carries; for the scheduler."""
        now = db_now()
        conditions = [
            OutboundEmail.status == OutboundStatus.PENDING,
            func.coalesce(OutboundEmail.scheduled_at, now) <= now,
            func.coalesce(OutboundEmail.next_retry_at, now) <= now,
            ~_is_carried(),
        ]
        statement = self.scoped(OutboundEmail).options(defer(OutboundEmail.source)).where(*conditions)
        return self.session.scalars(statement.order_by(OutboundEmail.created_at).limit(limit)).all()

    def settle_lost(self) -> list[OutboundEmail]:
        """Mails whose run is over while they were being handed over are uncertain from now on."""
        lost = self._settle(
            OutboundEmail.status == OutboundStatus.SENDING, ~_is_carried(), status=OutboundStatus.UNCERTAIN, last_error=LOST
        )
        for email in lost:
            note_mail(self.session.connection(), email.tenant_id, email.id, email.status, email.run_id)
        return lost

    def cancel_revoked(self) -> int:
        """Waiting mails whose run somebody revoked are cancelled; returns how many."""
        revoked = exists().where(_is_run_of_mail(), TaskRun.state == State.REVOKED)
        values: dict[str, Any] = {"status": OutboundStatus.CANCELLED, "last_error": REVOKED, "next_retry_at": None}
        by_hand = func.coalesce(OutboundEmail.last_error, "").in_([CANCELLED, REVOKED])  # it was cancelled before, and set to pending since
        return len(self._settle(OutboundEmail.status == OutboundStatus.PENDING, revoked, ~by_hand, ~_is_carried(), **values))

    def cancel_expired(self) -> int:
        """Waiting mails whose time is over are cancelled; returns how many."""
        over = func.coalesce(OutboundEmail.expires_at <= db_now(), False)
        values: dict[str, Any] = {"status": OutboundStatus.CANCELLED, "last_error": EXPIRED, "next_retry_at": None}
        return len(self._settle(OutboundEmail.status == OutboundStatus.PENDING, over, **values))

    def _settle(self, *conditions: ColumnElement[bool], **values: Any) -> list[OutboundEmail]:
        settled = update(OutboundEmail).where(self.owns(OutboundEmail), *conditions).values(**values).returning(OutboundEmail.id)
        ids = list(self.session.scalars(settled, execution_options={"synchronize_session": False}))
        if not ids:
            return []
        statement = self.scoped(OutboundEmail).options(defer(OutboundEmail.source)).where(OutboundEmail.id.in_(ids))
        return list(self.session.scalars(statement.execution_options(populate_existing=True)))

    def _unanswered_become(self, email_id: str, status: str) -> None:
        """Those the server took before nobody knew share what became of the mail; those it put off go on waiting."""
        for recipient in self.recipients(email_id):
            if recipient.status == OutboundStatus.PENDING and recipient.next_retry_at is None:
                recipient.status = status
        self.session.flush()


def _is_run_of_mail() -> ColumnElement[bool]:
    return (TaskRun.tenant_id == OutboundEmail.tenant_id) & (TaskRun.id == OutboundEmail.run_id)


def _is_carried() -> ColumnElement[bool]:
    """Whether a run that waits or runs has the mail."""
    live = TaskRun.state.in_(sorted(LIVE))
    key = literal("send:") + cast(OutboundEmail.id, String)
    by_key = exists().where(TaskRun.tenant_id == OutboundEmail.tenant_id, TaskRun.task.in_(CARRIERS), TaskRun.unique_key == key, live)
    return exists().where(_is_run_of_mail(), live) | by_key
