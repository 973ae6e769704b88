"""`sync_emails`: what changed on the account's server since the last time, folder by folder, into the database."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from typing import TypedDict

from sqlalchemy.orm import Session

from actors.accounts import account_to_itself
from actors.endpoints import endpoint_of, parse_limits, with_fresh_token
from actors.hosts import talking_to
from actors.spam_arrivals import ArrivalCheck, arrival_check
from brokers.queues import Queue
from core.clock import epoch_ms, now
from core.errors import InvalidInputError, PermanentError, Snooze
from core.settings import get_settings
from core.tenancy import current_identity
from mail.accounts import Endpoint
from mail.bounces import read_bounce
from mail.errors import AuthenticationRefused
from mail.imap import ImapMailbox
from mail.mailbox import Identity
from mail.pop3 import INBOX, Pop3Mailbox, sync_pop3
from mail.sync import FolderCursor, KnownFolder, SyncBatch, list_folders, sync_mailbox
from runs.current import checkpoint, current_run
from runs.limits import SoftTimeLimitExceeded
from runs.progress import progress
from runs.registry import EmailClientId, FolderId
from runs.task import task
from storage.engine import session_scope
from storage.event_types import SYNCED
from storage.models import EmailFolder
from storage.repositories.email_clients import REFUSALS_UNTIL_STOPPED, EmailClients
from storage.repositories.folders import EmailFolders
from storage.repositories.messages import Changes, EmailMessages
from storage.repositories.outbound import OutboundEmails
from storage.webhook_events import NewEvent, note

GOES_ON_SECONDS = 0.5
BRIEF_SECONDS = 0.5
"""A sync that is over by then tells nobody how far it has come: each telling is a commit, for which the next batch would wait."""
MANY = 200
"""Messages of a batch after which it is worth a look whether the database still knows what it has."""
RECOGNISED_FOR = timedelta(hours=1)
"""For so long a message that vanished from its folder is known again when it turns up in another."""


class SyncResult(TypedDict):
    """What a sync did; the timestamp in milliseconds since the epoch."""

    status: str
    messages_synced: int
    messages_updated: int
    messages_deleted: int
    sync_duration_seconds: float
    timestamp: int


@dataclass(frozen=True, slots=True)
class _Work:
    """What a run is to do, read once."""

    email_client_id: str
    endpoint: Endpoint
    is_pop3: bool
    folder_name: str | None
    full: bool
    spam: ArrivalCheck | None = None  # None: the account does not ask for it


@task(queue=Queue.SYNC, mail_host=lambda session, arguments: EmailClients(session).server_of(arguments["email_client_id"], "imap"))
def sync_emails(email_client_id: EmailClientId, folder_id: FolderId | None = None, force_full_sync: bool = False) -> SyncResult:
    """Bring an account's folders up to date with its IMAP or POP3 server."""
    started = time.monotonic()
    with account_to_itself(email_client_id):
        try:
            changes = _sync_logged_in(email_client_id, folder_id, full=force_full_sync)
        except SoftTimeLimitExceeded:  # every batch is stored with its cursor
            raise Snooze(GOES_ON_SECONDS, "A large mailbox; its sync goes on in a moment.") from None
    return SyncResult(
        status="success",
        messages_synced=changes.synced,
        messages_updated=changes.updated,
        messages_deleted=changes.deleted,
        sync_duration_seconds=round(time.monotonic() - started, 3),
        timestamp=epoch_ms(),
    )


def _tell(session: Session, email_client_id: str, changes: Changes) -> None:
    if changes.synced or changes.updated or changes.deleted:
        counts = {"messagesSynced": changes.synced, "messagesUpdated": changes.updated, "messagesDeleted": changes.deleted}
        event = NewEvent(current_identity().tenant_id, SYNCED, {"emailClientId": email_client_id, **counts})
        note(session.connection(), [event])


def _sync_logged_in(email_client_id: str, folder_id: str | None, *, full: bool) -> Changes:
    """A token that the server does not take may be void before its time: one fresh one is tried before the account is judged."""
    work = _prepare(email_client_id, folder_id, full=full)
    try:
        return _sync(work)
    except AuthenticationRefused:
        if work.endpoint.token is None:
            raise
        with session_scope() as session:
            EmailClients(session).token_refused(email_client_id)
        return _sync(_prepare(email_client_id, folder_id, full=full))


def _prepare(email_client_id: str, folder_id: str | None, *, full: bool) -> _Work:
    work = _work(email_client_id, folder_id, full=full)
    if work is None:
        with_fresh_token(email_client_id)
        work = _work(email_client_id, folder_id, full=full, has_fresh_token=True)
    assert work is not None
    return work


def _work(email_client_id: str, folder_id: str | None, *, full: bool, has_fresh_token: bool = False) -> _Work | None:
    """None when the account needs another access token first."""
    with session_scope() as session:
        clients = EmailClients(session, get_settings().credential_keys)
        client = clients.one(email_client_id)
        if client.refused_logins >= REFUSALS_UNTIL_STOPPED:
            raise PermanentError("The server refused this account's login three times in a row; change its credentials to sync again.")
        if not client.imap_host and not client.pop3_host:
            raise InvalidInputError("This e-mail client has no server to sync from; set imap_host or pop3_host.")
        folder = EmailFolders(session).one(folder_id, email_client_id) if folder_id is not None else None
        if not has_fresh_token and clients.stale_grant(client) is not None:
            return None
        is_pop3 = not client.imap_host
        login = clients.pop3_login(client) if is_pop3 else clients.imap_login(client)
        name = folder.name if folder is not None else None
        return _Work(email_client_id, endpoint_of(login), is_pop3, name, full, arrival_check(session, client))


def _sync(work: _Work) -> Changes:
    with talking_to(work.endpoint):
        changes = _sync_pop3(work) if work.is_pop3 else _sync_imap(work)
    with session_scope() as session:
        EmailMessages(session).forget_vanished(work.email_client_id, now() - RECOGNISED_FOR)
        _tell(session, work.email_client_id, changes)
    return changes


def _sync_imap(work: _Work) -> Changes:
    with ImapMailbox(work.endpoint) as mailbox:
        remotes = list_folders(mailbox)
        with session_scope() as session:
            folders = EmailFolders(session)
            deleted = folders.match(work.email_client_id, remotes)
            known = {folder.name: _known(folder) for folder in folders.matched}
        size = get_settings().sync_batch_size
        return _store(
            work,
            Changes(deleted=deleted),
            sync_mailbox(mailbox, known, folder=work.folder_name, full=work.full, batch_size=size, folders=remotes),
        )


def _sync_pop3(work: _Work) -> Changes:
    with Pop3Mailbox(work.endpoint) as mailbox:
        with session_scope() as session:
            folders = EmailFolders(session)
            folders.match(work.email_client_id, [INBOX])
            (inbox,) = folders.matched
            uidls = EmailMessages(session).uids_by_remote_id(inbox.id)
            next_uid = inbox.uid_next or 1
        return _store(
            work, Changes(), sync_pop3(mailbox, uidls, next_uid, batch_size=get_settings().sync_batch_size, limits=parse_limits())
        )


def _store(work: _Work, changes: Changes, batches: Iterable[SyncBatch]) -> Changes:
    """Each batch in a transaction of its own, on a thread of its own: while the database works the next one is fetched and read."""
    run, context, brief_until = current_run(), copy_context(), time.monotonic() + BRIEF_SECONDS
    with ThreadPoolExecutor(1, thread_name_prefix="store") as storing:
        under_way: Future[Changes] | None = None
        for batch in batches:
            if under_way is not None:
                changes += under_way.result()
            under_way = storing.submit(context.run, _store_one, work, batch)
            if time.monotonic() < brief_until:
                checkpoint()
            else:
                progress(batch.done, batch.total, batch.folder.role or "folder")
        if under_way is not None:
            changes += under_way.result()
    if run is not None and run.fence > 1:  # earlier turns of this run have stored some, too
        with session_scope() as session:
            changes.synced = max(changes.synced, EmailMessages(session).count_since(work.email_client_id, run.run_id))
    return changes


def _store_one(work: _Work, batch: SyncBatch) -> Changes:
    verdicts = work.spam.judge(batch) if work.spam is not None else {}
    with session_scope() as session:
        stored = EmailMessages(session).store(work.email_client_id, batch, keep_source=get_settings().raw_retention > 0)
        _note_bounces(session, batch)
        if work.spam is not None:
            work.spam.store(session, batch, stored, verdicts)
    if stored.synced >= MANY:
        with session_scope() as session:
            EmailMessages(session).keep_statistics()
    return stored


def _note_bounces(session: Session, batch: SyncBatch) -> None:
    """What came back of the user's own mails: the recipient is told in the outbox, and not written to again where it is for good."""
    for message in batch.new:
        if any(name.lower() == "content-type" and "multipart/report" in value.lower() for name, value in message.parsed.headers):
            reports = [report for report in read_bounce(message.raw) or () if report.action in {"failed", "delayed"}]
            OutboundEmails(session).came_back(reports)


def _known(folder: EmailFolder) -> KnownFolder:
    folder_id, uid_validity = folder.id, folder.uid_validity or 0

    def flags() -> dict[int, frozenset[str]]:
        with session_scope() as session:
            return EmailMessages(session).flags_by_uid(folder_id, uid_validity)

    def identities() -> list[Identity]:
        with session_scope() as session:
            return EmailMessages(session).identities(folder_id, uid_validity)

    def among(uids: Sequence[int]) -> list[int]:
        with session_scope() as session:
            return EmailMessages(session).uids_among(folder_id, uid_validity, uids)

    cursor = None
    if folder.uid_validity is not None and folder.uid_next is not None:
        cursor = FolderCursor(folder.uid_validity, folder.uid_next, folder.highest_modseq)
    return KnownFolder(folder.name, cursor, flags, folder.message_count, identities, among)
