"""The outbox's own tasks: one mail, one mail once more, and the schedule that sees to it that none is forgotten."""

from __future__ import annotations

from typing import TypedDict

from periodiq import cron
from sqlalchemy.orm import Session

from actors.carrying import LOOK_AFTER, SendResult, carry
from actors.sent_copies import resolve_uncertain_email, server_of
from brokers.queues import Priority, Queue
from runs.current import current_run
from runs.enqueue import enqueue
from runs.registry import OutboundEmailId
from runs.secrets import erase_ended
from runs.task import task
from storage.engine import session_scope
from storage.repositories.outbound import OutboundEmails
from storage.repositories.outbox import Outbox, send_key
from storage.repositories.sealed import SealedMails


class PendingEmailsResult(TypedDict):
    """The runs that were started, and how many mails were settled that no run carries any more."""

    status: str
    task_ids: list[str]
    uncertain_count: int
    cancelled_count: int


@task(queue=Queue.SEND, mail_host=lambda session, arguments: server_of("smtp", session, arguments))
def send_outbound_email(email_id: OutboundEmailId) -> SendResult:
    """Deliver one row of the outbox over its account's SMTP server."""
    return carry(email_id)


@task(queue=Queue.SEND, mail_host=lambda session, arguments: server_of("smtp", session, arguments))
def retry_failed_email(email_id: OutboundEmailId) -> SendResult:
    """Try a mail again that has failed, at once, for everybody who has not got it."""
    run = current_run()
    if run is None or run.fence <= 1:
        with session_scope() as session:
            OutboundEmails(session).reopen(email_id)
    return carry(email_id)


@task(queue=Queue.PERIODIC, periodic=cron("*/5 * * * *"))
def process_pending_emails() -> PendingEmailsResult:
    """Start a run for every due mail that has none, and settle the mails of runs that are over."""
    with session_scope(system=True) as session:
        outbox = Outbox(session)
        cancelled = outbox.cancel_revoked() + outbox.cancel_expired()
        uncertain = _settle_lost(session, outbox)
        SealedMails(session).erase_settled()
        erase_ended(session)
        task_ids = [
            enqueue(
                session,
                send_outbound_email.options(
                    tenant=email.tenant_id, user=email.user_id, unique_key=send_key(email.id), priority=Priority(email.priority)
                ),
                email_id=email.id,
            )
            for email in outbox.due()
        ]
    return PendingEmailsResult(status="success", task_ids=task_ids, uncertain_count=uncertain, cancelled_count=cancelled)


def _settle_lost(session: Session, outbox: Outbox) -> int:
    lost = outbox.settle_lost()
    for email in lost:
        if outbox.has_imap(email.client_id):
            owner = {"tenant": email.tenant_id, "user": email.user_id}
            look = resolve_uncertain_email.options(**owner, delay=LOOK_AFTER, unique_key=f"resolve:{email.id}")
            enqueue(session, look, email_id=email.id)
    return len(lost)
