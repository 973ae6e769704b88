"""Stored messages' bytes from their server, for whoever asks for them now: an attachment, a check, the source that was not kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Protocol

from actors.endpoints import endpoint_of, with_fresh_token
from actors.hosts import talking_to
from core.errors import PermanentError
from core.settings import get_settings
from mail.accounts import Endpoint
from mail.errors import FolderMissing
from mail.folder_names import RemoteFolder, decode_name
from mail.imap import ImapMailbox
from mail.spans import plan_spans
from storage.engine import session_scope
from storage.repositories.email_clients import EmailClients

AT_A_TIME = 100


class Place(Protocol):
    """Where a stored message is on its server."""

    @property
    def id(self) -> str: ...
    @property
    def raw_folder_name(self) -> str: ...
    @property
    def uid_validity(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def size(self) -> int: ...


def fetch_source(email_client_id: str, raw_folder_name: str, uid_validity: int, uid: int) -> bytes | None:
    """The message as its server has it; None when it is not there any more under that number.

    For the bound identity and on the caller's thread, which waits for the server. Raises PermanentError and TransientError, and Snooze
    while the server has a pause.
    """
    endpoint = _endpoint(email_client_id)
    with talking_to(endpoint), ImapMailbox(endpoint) as mailbox:
        state = mailbox.examine(RemoteFolder(decode_name(raw_folder_name), raw_folder_name))
        return mailbox.fetch_raw(uid) if state.uid_validity == uid_validity else None


def fetch_sources(email_client_id: str, places: Sequence[Place]) -> Iterator[dict[str, bytes]]:
    """The sources of many messages of an account over one connection, some at a time, by the ids of their rows. What is not there any
    more is left out; of one that is too large only the header comes. Raises as `fetch_source`."""
    endpoint = _endpoint(email_client_id)
    with talking_to(endpoint), ImapMailbox(endpoint) as mailbox:
        ordered = sorted(places, key=lambda place: (place.raw_folder_name, place.uid_validity, place.uid))
        for (name, uid_validity), inside in groupby(ordered, key=lambda place: (place.raw_folder_name, place.uid_validity)):
            ids = {place.uid: (place.id, place.size) for place in inside}
            try:
                state = mailbox.examine(RemoteFolder(decode_name(name), name))
            except FolderMissing:
                continue
            if state.uid_validity != uid_validity:
                continue
            spans = plan_spans([(uid, size) for uid, (_, size) in ids.items()], batch_size=AT_A_TIME, has_holes=True)
            for messages in mailbox.fetch(spans):
                yield {ids[each.uid][0]: each.raw for each in messages if each.raw is not None and each.uid in ids}


def _endpoint(email_client_id: str) -> Endpoint:
    with_fresh_token(email_client_id)
    with session_scope() as session:
        clients = EmailClients(session, get_settings().credential_keys)
        client = clients.one(email_client_id)
        if not client.imap_host:
            raise PermanentError("A POP3 server gives a message once; set RAW_RETENTION to keep the sources of this account.")
        return endpoint_of(clients.imap_login(client))
