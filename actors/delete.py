"""`delete_emails`: from the server first, then from the store, folder by folder; what the server did not do, the store does not say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TypedDict

from actors.endpoints import endpoint_of
from actors.hosts import talking_to
from actors.sync import sync_emails
from brokers.queues import Queue
from core.errors import InvalidInputError, MailroomError, PermanentError, Snooze
from core.logging import get_logger
from core.settings import get_settings
from mail.accounts import Endpoint
from mail.deletion import FolderRenumberedError, delete_messages
from mail.folder_names import RemoteFolder
from mail.imap import ImapMailbox
from runs.current import RunRevoked
from runs.enqueue import enqueue
from runs.limits import SoftTimeLimitExceeded
from runs.progress import progress
from runs.task import task
from storage.engine import session_scope
from storage.repositories.deletions import Deletions, Place
from storage.repositories.email_clients import EmailClients, sync_key

log = get_logger(__name__)
MAX_IDS = 10_000
GOES_ON_SECONDS = 1.0
Places = dict[Place, dict[int, str]]


class DeleteResult(TypedDict):
    """How many of the messages are deleted now, by this run or before it. `not_found`: the ids that name no message of the tenant."""

    status: str
    deleted_count: int
    not_found: list[str]


@task(queue=Queue.DELETE)
def delete_emails(email_ids: list[str], permanent: bool = False) -> DeleteResult:
    """Move messages to the Trash folder of their accounts, or delete them for good."""
    if len(email_ids) > MAX_IDS:
        raise InvalidInputError(f"delete_emails takes at most {MAX_IDS} ids at a time; send several.")
    with session_scope() as session:
        found = Deletions(session).locate(email_ids)
    by_account: dict[str, Places] = defaultdict(dict)
    for place, ids in found.places.items():
        by_account[place.client_id][place] = ids
    total = found.already_gone + sum(map(len, found.places.values()))
    done, errors = found.already_gone, []
    for client_id, places in by_account.items():
        try:
            done = _delete(client_id, places, done, total, permanent=permanent)
        except RunRevoked:
            raise
        except SoftTimeLimitExceeded:
            raise Snooze(GOES_ON_SECONDS, "Very many messages; it goes on in a moment.") from None
        except MailroomError as error:  # the other accounts' messages go all the same
            errors.append(error)
    _raise_worst(errors)
    return DeleteResult(status="success", deleted_count=total, not_found=found.unknown)


def _delete(client_id: str, places: Places, done: int, total: int, *, permanent: bool) -> int:
    """One account's messages. Returns how many are deleted so far."""
    endpoint = _endpoint(client_id)
    with talking_to(endpoint), ImapMailbox(endpoint) as mailbox:
        remotes = {remote.name: remote for remote in mailbox.list_folders()}
        trash = next((remote for remote in remotes.values() if remote.role == "trash"), None)
        for place, ids in places.items():
            folder = remotes.get(place.folder_name) or RemoteFolder(place.folder_name, place.folder_name)
            try:
                for deleted in delete_messages(mailbox, folder, place.uid_validity, sorted(ids), trash=trash, permanent=permanent):
                    with session_scope() as session:
                        Deletions(session).record(place, ids, trash.name if trash is not None else None, deleted)
                    done += len(deleted.gone) + len(deleted.moved)
                    progress(done, total, "deleted")
            except FolderRenumberedError:
                _sync_first(client_id)
                raise
    return done


def _endpoint(client_id: str) -> Endpoint:
    with session_scope() as session:
        clients = EmailClients(session, get_settings().credential_keys)
        client = clients.one(client_id)
        if not client.imap_host:
            raise PermanentError("The account has no IMAP server; what POP3 brought stays on its server.")
        return endpoint_of(clients.imap_login(client))


def _sync_first(client_id: str) -> None:
    with session_scope() as session:
        enqueue(session, sync_emails.options(unique_key=sync_key(client_id)), email_client_id=client_id)


def _raise_worst(errors: Iterable[MailroomError]) -> None:
    """One that may help to try again goes first: the accounts that failed for good fail again then, and are told at the end."""
    worst = sorted(errors, key=lambda error: isinstance(error, PermanentError))
    if worst:
        for error in worst[1:]:
            log.warning("accounts_not_reached", error=error.code)
        raise worst[0]
