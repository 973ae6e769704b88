"""The Sent folder's part in sending: proof that an uncertain mail went out, and the copy of what was sent. Neither sends anything."""

from __future__ import annotations

from typing import Any, TypedDict

from sqlalchemy.orm import Session

from actors.endpoints import endpoint_of, with_fresh_token
from actors.hosts import talking_to
from brokers.queues import Queue
from core.errors import MailroomError, PermanentError, Snooze
from core.settings import get_settings
from mail.accounts import Endpoint
from mail.imap import ImapMailbox
from mail.sent_folder import is_in_sent, save_to_sent
from runs.current import current_run
from runs.registry import OutboundEmailId
from runs.task import task
from storage.engine import session_scope
from storage.models import OutboundEmail
from storage.repositories.email_clients import EmailClients
from storage.repositories.outbound import OutboundEmails
from storage.repositories.outbox import Outbox
from storage.states import OutboundStatus

LOOKS = 3
"""How often the Sent folder is asked about an uncertain mail, LOOK_AGAIN seconds apart."""
LOOK_AGAIN = 600.0


class ResolveResult(TypedDict):
    """Whether the mail was found, and its status now."""

    status: str
    found: bool
    email_status: str


class CopyResult(TypedDict):
    """Whether the copy is in the Sent folder."""

    status: str
    saved: bool


def server_of(protocol: str, session: Session, arguments: dict[str, Any]) -> str | None:
    """The "imap" or "smtp" server of the account that a mail goes out from; of a mail of the system its own."""
    email = session.get(OutboundEmail, arguments["email_id"])
    if email is None or email.client_id is None:
        server = get_settings().system_smtp
        return server.host if server is not None and protocol == "smtp" else None
    return EmailClients(session).server_of(email.client_id, protocol)


@task(queue=Queue.SEND, mail_host=lambda session, arguments: server_of("imap", session, arguments))
def resolve_uncertain_email(email_id: OutboundEmailId) -> ResolveResult:
    """Look for an uncertain mail in its account's Sent folder: there, it was sent; not there, nobody knows still."""
    email, endpoint = _at_the_account(email_id)
    if email.status != OutboundStatus.UNCERTAIN:
        return ResolveResult(status="success", found=False, email_status=email.status)
    with talking_to(endpoint), ImapMailbox(endpoint) as mailbox:
        found = is_in_sent(mailbox, email.message_id)
    run = current_run()
    if not found and run is not None and run.fence < LOOKS:
        raise Snooze(LOOK_AGAIN, "It is not in the Sent folder yet.")
    if found:
        with session_scope() as session:
            email = Outbox(session).resolve(email_id, "sent")
    return ResolveResult(status="success", found=found, email_status=email.status)


@task(queue=Queue.SEND, mail_host=lambda session, arguments: server_of("imap", session, arguments))
def save_sent_copy(email_id: OutboundEmailId) -> CopyResult:
    """Put a copy of a sent mail into its account's Sent folder, once."""
    email, endpoint = _at_the_account(email_id)
    if email.status != OutboundStatus.SENT or email.saved_to_sent == "saved":
        return CopyResult(status="success", saved=email.saved_to_sent == "saved")
    try:
        with talking_to(endpoint), ImapMailbox(endpoint) as mailbox:
            save_to_sent(mailbox, email.source, email.message_id, email.sent_at)
    except MailroomError as error:
        run = current_run()
        if isinstance(error, PermanentError) or (run is not None and run.attempt >= run.max_attempts):
            _saved(email_id, "failed")
        raise
    _saved(email_id, "saved")
    return CopyResult(status="success", saved=True)


def _at_the_account(email_id: str) -> tuple[OutboundEmail, Endpoint]:
    with session_scope() as session:
        email = OutboundEmails(session).one(email_id)
    with_fresh_token(email.client_id or "")
    with session_scope() as session:
        clients = EmailClients(session, get_settings().credential_keys)
        return email, endpoint_of(clients.imap_login(clients.one(email.client_id or "")))


def _saved(email_id: str, status: str) -> None:
    with session_scope() as session:
        Outbox(session).saved(email_id, status)
