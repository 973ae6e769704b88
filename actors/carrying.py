"""Carrying a mail of the outbox to its end: each try offers it to those who are due, and the row says what became of it.

The row owns the retries. Whatever a server puts off counts in `attempts` and snoozes the run until the next recipient is due; only
what goes wrong on our side (the database, a lost worker) is the run's to retry.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypedDict

from sqlalchemy.orm import Session

from actors.endpoints import NoMailServerError, endpoint_of, system_endpoint, with_fresh_token
from actors.hosts import talking_to
from actors.sent_copies import resolve_uncertain_email, save_sent_copy
from actors.together import Together, together
from core.clock import now, to_epoch_ms
from core.errors import ConflictError, MailroomError, PermanentError, Snooze, TransientError, UnavailableError
from core.logging import get_logger
from core.settings import get_settings
from core.tenancy import current_identity
from mail.accounts import Endpoint
from mail.delivery import DeliveryOutcome, Refusal, Transport, deliver, refusals
from mail.errors import AuthenticationRefused, DeliveryUncertain, RecipientRejected
from mail.smtp_pool import SmtpPool
from runs.current import RunRevoked, current_run
from runs.enqueue import enqueue
from runs.limits import SoftTimeLimitExceeded
from storage.drafts import source_of
from storage.engine import session_scope
from storage.first_tries import Accepted, Found, Look, Mail, Mark
from storage.models import OutboundEmail
from storage.repositories.email_clients import EmailClients, first_login
from storage.repositories.outbound import FIRST_WAIT, OutboundEmails, Standing
from storage.repositories.outbox import LOST, Outbox
from storage.states import OutboundStatus

log = get_logger(__name__)
POOL = SmtpPool()
BUSY_SECONDS = 2.0
LOOK_AFTER = 60.0
"""Seconds until the Sent folder is asked about an uncertain mail: providers file it there some time after they took it."""
FIRST_OUTAGE, LONGEST_OUTAGE = 10.0, 600.0
"""Seconds until a server is tried again that could not be reached or asked for a pause without naming one; doubled from try to try."""
RECORD_AGAIN = (0.2, 1.0, 3.0)
"""Seconds between the tries to record what the server has said: the database's moment of weakness should make no mail uncertain."""


class SendResult(TypedDict):
    """What became of a mail: `success`, or `cancelled` before it was sent; the timestamp in milliseconds since the epoch, 0 for never."""

    status: str
    message_id: str
    sent_timestamp: int
    recipients_sent: int


@dataclass(frozen=True, slots=True)
class _Job:
    """A mail, its account's server and who is due. `email.attempts` tells this try from those of other runs."""

    email: Mail
    endpoint: Endpoint
    has_token: bool
    recipients: list[str]
    shared: Together | None = None
    """Marked and settled together with mails of other threads; None: in transactions of its own."""


def carry(email_id: str) -> SendResult:
    """Delivers the mail to those who have not got it, unless an earlier attempt may have. Raises Snooze while somebody waits."""
    if (first := _first_try(email_id)) is not None:
        return _deliver(first)
    try:
        with session_scope() as session:
            outbox = Outbox(session)
            email = outbox.one(email_id)
            job = _prepared(session, outbox, email)
            standing = outbox.standing(email) if job is None else None
            outbox.erase(email)
    except NoMailServerError as error:
        with session_scope() as session:
            OutboundEmails(session).not_sent(email_id, str(error), is_final=True)
        raise
    if job is None:
        assert standing is not None
        return _result(email, standing)
    return _deliver(job)


def transport_to(email: Mail, endpoint: Endpoint) -> Transport:
    """The account's SMTP server, over a connection of this process' pool."""
    return POOL.transport(f"{email.tenant_id}:{email.client_id}", endpoint, envelope_id=email.id)


def _first_try(email_id: str) -> _Job | None:
    """What is to be done for a mail like nearly all: its first try, and nothing special about it. None: look closer."""
    shared = together()
    found = shared.ask(Look(current_identity(), email_id)) if shared is not None else None
    if not isinstance(found, Found):
        return None
    endpoint = endpoint_of(first_login(found, get_settings().credential_keys))
    return _Job(found, endpoint, has_token=False, recipients=found.recipients, shared=shared)


def _prepared(session: Session, outbox: Outbox, email: OutboundEmail) -> _Job | None:
    """What is to be done; None when nothing is, now or ever. Raises Snooze when it is too early."""
    run = current_run()
    if email.status == OutboundStatus.SENDING:
        if outbox.is_held(email, run.run_id if run is not None else ""):
            raise Snooze(BUSY_SECONDS, "Another run is sending this mail.")
        _uncertain(session, email, LOST)
    if email.status == OutboundStatus.FAILED and run is not None and run.attempt == 1:  # a full set of attempts: a replay
        outbox.reopen(email.id)
    if email.status != OutboundStatus.PENDING or outbox.expired(email):
        return None
    if email.erased_at is not None:
        outbox.cannot_be_sent(email)
        return None
    if (wait := outbox.wait(email)) > 0:
        raise Snooze(wait, "It is scheduled for later.")
    envelope = outbox.envelope(email)
    if not envelope.recipients and envelope.wait is None and outbox.take_up(email):
        envelope = outbox.envelope(email)
    if envelope.recipients:
        return _Job(email, *_account(session, email), envelope.recipients)
    if envelope.wait is None:
        outbox.nobody_left(email)
    return None


def _account(session: Session, email: Mail) -> tuple[Endpoint, bool]:
    """The server it goes out over, and whether that wants a token."""
    if email.client_id is None:
        return system_endpoint(), False
    clients = EmailClients(session, get_settings().credential_keys)
    client = clients.one(email.client_id)
    return endpoint_of(clients.smtp_login(client)), bool(client.oauth_token_url)


def _endpoint(job: _Job) -> Endpoint:
    """The account's server, with a token that is good for now where it logs in by OAuth."""
    if not job.has_token:
        return job.endpoint
    with_fresh_token(job.email.client_id or "")
    with session_scope() as session:
        return _account(session, job.email)[0]


def _deliver(job: _Job) -> SendResult:
    email = job.email
    try:
        outcome = _offered(job)
    except DeliveryUncertain as error:
        with session_scope() as session:
            _uncertain(session, email, str(error), refusals(error.refused, took_others=True))
        raise
    except (SoftTimeLimitExceeded, RunRevoked):
        _interrupted(email)
        raise
    except ConflictError:  # the mark: another run, or somebody who cancelled it, was faster
        return _overtaken(email)
    except UnavailableError:  # the mark, too
        raise
    except TransientError as error:  # nobody has it, everybody is tried again
        return _put_off(job, error)
    except PermanentError as error:
        return _refused(job, error)
    return _recorded(job, outcome)  # out of the try: whatever fails from here on, the server has the mail


def _offered(job: _Job) -> DeliveryOutcome:
    """A token may be void before its time: one fresh one is tried before the account is judged."""
    marks: list[None] = []

    def mark() -> None:
        marks.append(None)
        _mark_sending(job)

    try:
        return _offered_over(_endpoint(job), job, mark)
    except AuthenticationRefused:
        if not job.has_token or marks:
            raise
        with session_scope() as session:
            EmailClients(session).token_refused(job.email.client_id or "")
        return _offered_over(_endpoint(job), job, mark)


def _offered_over(endpoint: Endpoint, job: _Job, mark: Callable[[], None]) -> DeliveryOutcome:
    email = job.email
    with talking_to(endpoint, throttling_counts=True):
        transport = transport_to(email, endpoint)
        source = source_of(email, lambda: get_settings().credential_keys)
        return deliver(source, sender=email.sender, recipients=job.recipients, via=transport, before_final_dot=mark)


def _mark_sending(job: _Job) -> None:
    if job.shared is not None:
        if not job.shared.ask(Mark(current_identity(), job.email.id)):
            raise ConflictError("The mail is not waiting for its first try any more.")
        return
    with session_scope() as session:
        OutboundEmails(session).mark_sending(job.email.id, job.email.attempts, job.recipients)


def _recorded(job: _Job, outcome: DeliveryOutcome) -> SendResult:
    is_first = True
    for pause in (*RECORD_AGAIN, None):
        try:
            standing = (_all_accepted(job, outcome) if is_first else None) or _settled(job, outcome)
            break
        except UnavailableError:
            is_first = False  # it may have been written: the long way finds out
            if pause is None:
                raise
            time.sleep(pause)
    log.info("email_offered", email_id=job.email.id, status=str(standing.status), reply=outcome.reply_code, accepted=len(outcome.accepted))
    return _result(job.email, standing)


def _all_accepted(job: _Job, outcome: DeliveryOutcome) -> Standing | None:
    """The usual end, together with other threads' mails. None, and nothing is written, when it is not that."""
    if job.shared is None or outcome.refused:
        return None
    accepted = Accepted(current_identity(), job.email.id, outcome.accepted, outcome.reply_code, outcome.enhanced or None)
    sent_at = job.shared.ask(accepted)
    return Standing(OutboundStatus.SENT, len(outcome.accepted), sent_at, None, None) if isinstance(sent_at, datetime) else None


def _settled(job: _Job, outcome: DeliveryOutcome) -> Standing:
    with session_scope() as session:
        emails = OutboundEmails(session)
        standing = emails.record(job.email.id, outcome, attempts=job.email.attempts)
        emails.erase(job.email)
        if standing.status == OutboundStatus.SENT and job.email.saved_to_sent == "wanted":
            enqueue(session, save_sent_copy.options(unique_key=f"copy:{job.email.id}"), email_id=job.email.id)
    return standing


def _put_off(job: _Job, error: TransientError) -> SendResult:
    hint = error.retry_after or min(LONGEST_OUTAGE, FIRST_OUTAGE * 2**job.email.attempts)
    with session_scope() as session:
        emails = OutboundEmails(session)
        standing = emails.put_off(job.email.id, job.recipients, str(error), attempts=job.email.attempts, hint=hint)
        emails.erase(job.email)
    if standing.status == OutboundStatus.FAILED:
        raise error
    return _result(job.email, standing)


def _refused(job: _Job, error: MailroomError) -> SendResult:
    """Nobody of these will ever get it. What others got before remains."""
    outcome = DeliveryOutcome([], [Refusal(address, 0, permanent=True, reason=str(error)) for address in job.recipients], None, None)
    with session_scope() as session:
        emails = OutboundEmails(session)
        standing = emails.record(job.email.id, outcome, str(error), attempts=job.email.attempts)
        emails.erase(job.email)
    if standing.status == OutboundStatus.FAILED:
        raise error
    return _result(job.email, standing)


def _interrupted(email: Mail) -> None:
    """A time limit or a person struck somewhere: after the mark nobody knows whether the server has the mail."""
    with session_scope() as session:
        is_marked = OutboundEmails(session).one(email.id).status == OutboundStatus.SENDING
        text = "The run was stopped while the server had the mail; it may have been delivered."
        if is_marked:
            _uncertain(session, email, text)
    if is_marked:
        raise DeliveryUncertain(text)


def _overtaken(email: Mail) -> SendResult:
    with session_scope() as session:
        emails = OutboundEmails(session)
        fresh = emails.one(email.id)
        emails.expired(fresh)
        standing = emails.standing(fresh)
        emails.erase(fresh)
    if standing.status in {OutboundStatus.PENDING, OutboundStatus.SENDING}:
        raise Snooze(BUSY_SECONDS, "Another run is sending this mail.")
    return _result(email, standing)


def _uncertain(session: Session, email: Mail, error: str, refused: list[Refusal] | None = None) -> None:
    """Settles it, and has the account's Sent folder looked at where there is one."""
    outbox = Outbox(session)
    outbox.uncertain(email.id, error, refused or [])
    if outbox.has_imap(email.client_id):
        look = resolve_uncertain_email.options(delay=LOOK_AFTER, unique_key=f"resolve:{email.id}")
        enqueue(session, look, email_id=email.id)
    log.warning("email_uncertain", email_id=email.id)


def _result(email: Mail, standing: Standing) -> SendResult:
    """Raises DeliveryUncertain, RecipientRejected, or Snooze while somebody is to be tried again: the row knows who."""
    if standing.status == OutboundStatus.PENDING:
        raise Snooze(max(0.0, standing.wait or FIRST_WAIT), standing.error or "The server asked to try again later.")
    if standing.status == OutboundStatus.UNCERTAIN:
        raise DeliveryUncertain(standing.error or LOST)
    is_cancelled = standing.status == OutboundStatus.CANCELLED
    if not standing.sent and not is_cancelled:
        raise RecipientRejected(standing.error or "No recipient was accepted.")
    return SendResult(
        status="cancelled" if is_cancelled else "success",
        message_id=email.message_id,
        sent_timestamp=to_epoch_ms(standing.sent_at or now()) if standing.sent else 0,
        recipients_sent=standing.sent,
    )
