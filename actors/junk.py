"""`move_to_junk`: what was found to be spam leaves the inbox, on the server first, and keeps its identity in the store.

`move_out_of_junk` is the way back for what somebody called wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TypedDict

from sqlalchemy.orm import Session

from actors.endpoints import endpoint_of, with_fresh_token
from actors.hosts import talking_to
from brokers.queues import Queue
from core.errors import PermanentError
from core.settings import get_settings
from mail.accounts import Endpoint
from mail.folder_names import RemoteFolder
from mail.imap import ImapMailbox
from mail.moving import move_messages
from runs.enqueue import enqueue
from runs.registry import EmailClientId
from runs.task import task
from storage.engine import session_scope
from storage.repositories.deletions import Deletions, Place
from storage.repositories.email_clients import EmailClients
from storage.repositories.spam_choices import SpamChoices
from storage.repositories.spam_feedback import SpamFeedbacks
from storage.repositories.spam_verdicts import SpamVerdicts, Unchecked

CLOCKS_DIFFER = timedelta(minutes=5)
"""Mail servers' times are in whole seconds, and theirs."""


class NoJunkError(PermanentError):
    """There is nowhere to move spam to."""

    code = "no_junk"

    def __init__(self) -> None:
        super().__init__("The account has no Junk folder; create one and sync, or switch moves_junk off.")


class NoInboxError(PermanentError):
    """There is nowhere to move mail back to."""

    code = "no_inbox"

    def __init__(self) -> None:
        super().__init__("The account's server lists no inbox.")


class MovedResult(TypedDict):
    """How many messages this run moved."""

    status: str
    moved_count: int


def enqueue_junking(session: Session, spam: Sequence[Unchecked]) -> None:
    """Those of these messages that are to leave the inbox start to do so, where their accounts want it. Mail that had come before its
    account was added stays where it is."""
    clients, choices = EmailClients(session), SpamChoices(session)
    for client_id in dict.fromkeys(each.client_id for each in spam if each.role == "inbox"):
        client = clients.one(client_id)
        since = client.created_at - CLOCKS_DIFFER
        ids = [each.id for each in spam if each.client_id == client_id and each.role == "inbox" and each.position[0] >= since]
        if ids and client.imap_host and choices.moves_junk(client):
            enqueue(session, move_to_junk, email_client_id=client_id, email_ids=ids)


@task(queue=Queue.SPAM)
def move_to_junk(email_client_id: EmailClientId, email_ids: list[str]) -> MovedResult:
    """Move spam from an account's inbox to its Junk folder."""
    with session_scope() as session:
        may_go = SpamVerdicts(session).junking(email_ids)  # before it is done: whoever sees the move knows that it is ours
        places = Deletions(session).locate(may_go).places
    here = {place: ids for place, ids in places.items() if place.client_id == email_client_id and place.role == "inbox"}
    try:
        moved = sum(len(_move(_endpoint(email_client_id), place, ids, "junk")) for place, ids in here.items())
    except PermanentError:
        with session_scope() as session:
            SpamVerdicts(session).not_junked(may_go)
        raise
    return MovedResult(status="success", moved_count=moved)


@task(queue=Queue.SPAM)
def move_out_of_junk(email_client_id: EmailClientId, email_ids: list[str]) -> MovedResult:
    """Move what somebody called wanted from an account's Junk folder back to its inbox."""
    with session_scope() as session:
        may_go = SpamFeedbacks(session).called_wanted(email_ids)
        places = Deletions(session).locate(may_go).places
    moved: list[str] = []
    for place, ids in places.items():
        if place.client_id == email_client_id and place.role == "junk":
            moved += _move(_endpoint(email_client_id), place, ids, "inbox")
    with session_scope() as session:
        SpamVerdicts(session).not_junked(moved)
    return MovedResult(status="success", moved_count=len(moved))


def _move(endpoint: Endpoint, place: Place, ids: dict[int, str], role: str) -> list[str]:
    """To the account's folder of that role. Returns the ids of those that were moved."""
    moved: list[str] = []
    with talking_to(endpoint), ImapMailbox(endpoint) as mailbox:
        remotes = {remote.name: remote for remote in mailbox.list_folders()}
        target = next((remote for remote in remotes.values() if remote.role == role), None)
        if target is None:
            raise NoJunkError if role == "junk" else NoInboxError
        folder = remotes.get(place.folder_name) or RemoteFolder(place.folder_name, place.folder_name)
        for done in move_messages(mailbox, folder, place.uid_validity, sorted(ids), target):
            with session_scope() as session:
                Deletions(session).record(place, ids, target.name, done)
            moved += [ids[uid] for uid in done.moved]
    return moved


def _endpoint(client_id: str) -> Endpoint:
    with_fresh_token(client_id)
    with session_scope() as session:
        clients = EmailClients(session, get_settings().credential_keys)
        return endpoint_of(clients.imap_login(clients.one(client_id)))
