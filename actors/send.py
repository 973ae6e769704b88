"""`send_email`: a mail into the outbox, and from there over the account's SMTP server, once or `uncertain`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypedDict

from actors.endpoints import endpoint_of
from brokers.queues import Queue
from core.clock import now, to_epoch_ms
from core.errors import InvalidInputError, MailroomError, PermanentError, Snooze, TransientError
from core.ids import new_id
from core.settings import get_settings
from mail.accounts import Endpoint
from mail.addresses import Address, Recipients, domain_of, parse_address, unique_recipients
from mail.delivery import DeliveryOutcome, deliver
from mail.errors import DeliveryUncertain, Greylisted, RecipientRejected
from mail.mime_build import OutgoingAttachment, OutgoingMail, build_message, new_message_id
from mail.smtp import SmtpTransport
from runs.current import current_run
from runs.limits import SoftTimeLimitExceeded
from runs.registry import AttachmentId, EmailClientId
from runs.task import task
from storage.engine import session_scope
from storage.models import EmailAttachment, EmailClient, OutboundEmail
from storage.repositories.email_clients import EmailClients
from storage.repositories.outbound import Attachments, OutboundEmails
from storage.states import OutboundStatus

DEFERRED_SECONDS = 60.0
LOST_REPLY = "The process was lost between the final dot and the server's reply; the mail may have been delivered."


class SendResult(TypedDict):
    """A mail that was accepted by its server; the timestamp in milliseconds since the epoch."""

    status: str
    message_id: str
    sent_timestamp: int
    recipients_sent: int


@dataclass(frozen=True, slots=True)
class _Draft:
    """What the caller asked for."""

    recipients: Recipients
    subject: str
    text: str
    html: str | None


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
    draft = _Draft(unique_recipients(to, cc or [], bcc or []), subject, body_text, body_html)
    email = _accept(email_client_id, draft, attachment_ids or [])
    return _carry(email)


def _accept(email_client_id: str, draft: _Draft, attachment_ids: list[str]) -> OutboundEmail:
    """The run's mail in the outbox: the one an earlier attempt accepted, or a new one."""
    if not draft.recipients.all:
        raise InvalidInputError("A mail needs at least one recipient; give one in to, cc or bcc.")
    run = current_run()
    run_id = run.run_id if run is not None else new_id()
    with session_scope() as session:
        client = EmailClients(session).one(email_client_id)
        outbox = OutboundEmails(session)
        accepted = outbox.of_run(run_id)
        if accepted is not None:
            return accepted
        files = Attachments(session).uploaded(attachment_ids)
        return outbox.add(_written(client, run_id, draft, files), draft.recipients.all)


def _written(client: EmailClient, run_id: str, draft: _Draft, files: list[EmailAttachment]) -> OutboundEmail:
    """Message-ID, Date and bytes are fixed here, once."""
    sender = parse_address(client.email, field="the account's address")
    message_id = new_message_id(domain_of(sender.addr))
    mail = OutgoingMail(
        message_id=message_id,
        date=now(),
        sender=Address(sender.name or client.name, sender.addr),
        to=draft.recipients.to,
        cc=draft.recipients.cc,
        bcc=draft.recipients.bcc,
        subject=draft.subject,
        text=draft.text,
        html=draft.html,
        attachments=[OutgoingAttachment(file.filename, file.content_type, _path(file).read_bytes()) for file in files],
    )
    return OutboundEmail(
        tenant_id=client.tenant_id,
        user_id=client.user_id,
        client_id=client.id,
        run_id=run_id,
        message_id=message_id,
        subject=draft.subject,
        sender=sender.addr,
        source=build_message(mail),
    )


def _carry(email: OutboundEmail) -> SendResult:
    """Delivers the mail to those who have not got it, unless an earlier attempt may have."""
    if email.status == OutboundStatus.SENDING:
        _settle_uncertain(email.id, DeliveryUncertain(LOST_REPLY))
    run = current_run()
    if email.status == OutboundStatus.FAILED and run is not None and run.attempt == 1:  # a full set of attempts: a replay
        email = _reopened(email.id)
    if email.status == OutboundStatus.PENDING:
        email = _deliver(email)
    return _result(email)


def _reopened(email_id: str) -> OutboundEmail:
    with session_scope() as session:
        return OutboundEmails(session).reopen(email_id)


def _deliver(email: OutboundEmail) -> OutboundEmail:
    endpoint, recipients = _envelope(email)
    mark = partial(_mark_sending, email.id)
    try:
        with SmtpTransport(endpoint) as transport:
            outcome = deliver(email.source, sender=email.sender, recipients=recipients, via=transport, before_final_dot=mark)
    except DeliveryUncertain as error:
        _settle_uncertain(email.id, error)
        raise
    except SoftTimeLimitExceeded as error:
        _interrupted(email.id, error)
        raise
    except Greylisted as error:  # the whole mail is put off: nobody has it, everybody is tried again
        return _record(email.id, DeliveryOutcome([], [], error.retry_after, None), str(error))
    except MailroomError as error:
        _not_sent(email.id, error)
        raise
    return _record(email.id, outcome)  # out of the try: whatever fails from here on, the server has the mail


def _envelope(email: OutboundEmail) -> tuple[Endpoint, list[str]]:
    with session_scope() as session:
        clients = EmailClients(session, get_settings().credential_keys)
        endpoint = endpoint_of(clients.smtp_login(clients.one(email.client_id or "")))
        waiting = [each.address for each in OutboundEmails(session).recipients(email.id) if each.status == "pending"]
    return endpoint, waiting


def _mark_sending(email_id: str) -> None:
    with session_scope() as session:
        OutboundEmails(session).mark_sending(email_id)


def _record(email_id: str, outcome: DeliveryOutcome, error: str | None = None) -> OutboundEmail:
    """Raises Snooze while somebody is to be tried again: the row knows who, and the run spends no attempt."""
    with session_scope() as session:
        email = OutboundEmails(session).record(email_id, outcome, error)
    if email.status == OutboundStatus.PENDING:
        raise Snooze(outcome.retry_after or DEFERRED_SECONDS, email.last_error or "The server asked to try again later.")
    return email


def _not_sent(email_id: str, error: MailroomError) -> None:
    run = current_run()
    is_last = run is not None and run.attempt >= run.max_attempts and isinstance(error, TransientError)
    with session_scope() as session:
        OutboundEmails(session).not_sent(email_id, str(error), is_final=isinstance(error, PermanentError) or is_last)


def _interrupted(email_id: str, error: SoftTimeLimitExceeded) -> None:
    """The limit struck somewhere: after the mark nobody knows whether the server has the mail."""
    with session_scope() as session:
        is_marked = OutboundEmails(session).one(email_id).status == OutboundStatus.SENDING
    if is_marked:
        _settle_uncertain(email_id, DeliveryUncertain("The time limit struck while the server had the mail; it may have been delivered."))
    _not_sent(email_id, error)


def _settle_uncertain(email_id: str, error: DeliveryUncertain) -> None:
    with session_scope() as session:
        OutboundEmails(session).uncertain(email_id, str(error))
    raise error


def _result(email: OutboundEmail) -> SendResult:
    with session_scope() as session:
        recipients = OutboundEmails(session).recipients(email.id)
    sent = sum(recipient.status == "sent" for recipient in recipients)
    if email.status == OutboundStatus.UNCERTAIN:
        raise DeliveryUncertain(email.last_error or LOST_REPLY)
    if not sent:
        raise RecipientRejected(email.last_error or "No recipient was accepted.")
    return SendResult(
        status="success", message_id=email.message_id, sent_timestamp=to_epoch_ms(email.sent_at or now()), recipients_sent=sent
    )


def _path(file: EmailAttachment) -> Path:
    return get_settings().files / file.tenant_id / str(file.stored_filename)
