"""`send_email`: a mail into the outbox, and from there over the account's SMTP server, once or `uncertain`."""

from __future__ import annotations

from actors.carrying import SendResult, carry
from brokers.queues import Queue
from core.ids import new_id
from core.settings import get_settings
from mail.addresses import unique_recipients
from runs.current import current_run
from runs.registry import AttachmentId, EmailClientId
from runs.task import task
from storage.drafts import Draft, accept
from storage.engine import session_scope
from storage.repositories.email_clients import EmailClients
from storage.repositories.outbound import OutboundEmails


@task(queue=Queue.SEND, mail_host=lambda session, arguments: EmailClients(session).server_of(arguments["email_client_id"], "smtp"))
def send_email(
    email_client_id: EmailClientId,
    to: list[str],
    cc: list[str] | None = None,
    bcc: list[str] | None = None,
    subject: str = "",
    body_text: str = "",
    body_html: str | None = None,
    attachment_ids: list[AttachmentId] | None = None,
) -> SendResult:
    """Send a mail from an account; a second attempt goes on where the first ended and sends the same bytes."""
    draft = Draft(unique_recipients(to, cc or [], bcc or []), subject, body_text, body_html, attachment_ids or [])
    return carry(_accepted(email_client_id, draft))


def _accepted(email_client_id: str, draft: Draft) -> str:
    """The id of the run's mail in the outbox: of the one an earlier attempt accepted, or of a new one."""
    run = current_run()
    run_id = run.run_id if run is not None else new_id()
    settings = get_settings()
    with session_scope() as session:
        accepted = OutboundEmails(session).of_run(run_id)
        if accepted is None:
            accepted = accept(session, email_client_id, draft, files=settings.files, keys=lambda: settings.credential_keys, run_id=run_id)
        return accepted.id
