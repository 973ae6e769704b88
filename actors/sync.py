"""`sync_emails`: what changed on the IMAP server since the last time, folder by folder, into the database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

from actors.endpoints import endpoint_of
from brokers.queues import Queue
from core.clock import epoch_ms
from core.errors import MailroomError, PermanentError, Snooze
from core.ids import new_id
from core.settings import get_settings
from mail.accounts import Endpoint
from mail.errors import AuthenticationRefused
from mail.folder_names import RemoteFolder
from mail.imap import ImapMailbox
from mail.sync import FolderCursor, KnownFolder, list_folders, sync_mailbox
from runs.current import RunRevoked, current_run
from runs.progress import progress
from runs.registry import EmailClientId, FolderId
from runs.task import task
from storage.engine import session_scope
from storage.models import EmailFolder
from storage.repositories.email_clients import REFUSALS_UNTIL_STOPPED, EmailClients
from storage.repositories.messages import Changes, EmailFolders, EmailMessages

BUSY_SECONDS = 2.0


class SyncResult(TypedDict):
    """What a sync did; the timestamp in milliseconds since the epoch."""

    status: str
    messages_synced: int
    messages_updated: int
    messages_deleted: int
    sync_duration_seconds: float
    timestamp: int


@task(queue=Queue.SYNC, mail_host=lambda session, arguments: EmailClients(session).server_of(arguments["email_client_id"], "imap"))
def sync_emails(email_client_id: EmailClientId, folder_id: FolderId | None = None, force_full_sync: bool = False) -> SyncResult:
    """Bring an account's folders up to date with its IMAP server."""
    started = time.monotonic()
    endpoint, folder_name = _prepare(email_client_id, folder_id)
    with _account_to_itself(email_client_id), _account_told(email_client_id):
        changes = _sync(email_client_id, endpoint, folder_name, full=force_full_sync)
    return SyncResult(
        status="success",
        messages_synced=changes.synced,
        messages_updated=changes.updated,
        messages_deleted=changes.deleted,
        sync_duration_seconds=round(time.monotonic() - started, 3),
        timestamp=epoch_ms(),
    )


def _prepare(email_client_id: str, folder_id: str | None) -> tuple[Endpoint, str | None]:
    with session_scope() as session:
        clients = EmailClients(session, get_settings().credential_keys)
        client = clients.one(email_client_id)
        if client.refused_logins >= REFUSALS_UNTIL_STOPPED:
            raise PermanentError("The server refused this account's login three times in a row; change its credentials to sync again.")
        folder = EmailFolders(session).one(folder_id, email_client_id) if folder_id is not None else None
        return endpoint_of(clients.imap_login(client)), folder.name if folder is not None else None


def _sync(email_client_id: str, endpoint: Endpoint, folder_name: str | None, *, full: bool) -> Changes:
    changes = Changes()
    with ImapMailbox(endpoint) as mailbox:
        remotes = list_folders(mailbox)
        known, changes.deleted = _known_folders(email_client_id, remotes)
        batches = sync_mailbox(mailbox, known, folder=folder_name, full=full, batch_size=get_settings().sync_batch_size, folders=remotes)
        for batch in batches:
            with session_scope() as session:
                changes += EmailMessages(session).store(email_client_id, batch)
            progress(batch.done, batch.total, batch.folder.role or "folder")
    return changes


def _known_folders(email_client_id: str, remotes: list[RemoteFolder]) -> tuple[dict[str, KnownFolder], int]:
    with session_scope() as session:
        folders = EmailFolders(session)
        deleted = folders.match(email_client_id, remotes)
        return {folder.name: _known(folder) for folder in folders.of(email_client_id)}, deleted


def _known(folder: EmailFolder) -> KnownFolder:
    def flags() -> dict[int, frozenset[str]]:
        with session_scope() as session:
            return EmailMessages(session).flags_by_uid(folder.id, folder.uid_validity or 0)

    cursor = None
    if folder.uid_validity is not None and folder.uid_next is not None:
        cursor = FolderCursor(folder.uid_validity, folder.uid_next, folder.highest_modseq)
    return KnownFolder(folder.name, cursor, flags, folder.message_count)


@contextmanager
def _account_to_itself(email_client_id: str) -> Iterator[None]:
    """One sync at a time for an account; another one waits without spending an attempt."""
    run = current_run()
    run_id = run.run_id if run is not None else new_id()
    with session_scope() as session:
        if not EmailClients(session).begin_sync(email_client_id, run_id):
            raise Snooze(BUSY_SECONDS, "Another sync of this account is running.")
    try:
        yield
    finally:
        with session_scope() as session:
            EmailClients(session).end_sync(email_client_id, run_id)


@contextmanager
def _account_told(email_client_id: str) -> Iterator[None]:
    """The account remembers how its sync went; a refused login counts, and the third in a row stops it."""
    try:
        yield
    except AuthenticationRefused as error:
        with session_scope() as session:
            EmailClients(session).login_refused(email_client_id, str(error))
        raise
    except RunRevoked:  # nothing is wrong with the account
        raise
    except MailroomError as error:
        with session_scope() as session:
            EmailClients(session).sync_failed(email_client_id, str(error))
        raise
    with session_scope() as session:
        EmailClients(session).synced(email_client_id)
