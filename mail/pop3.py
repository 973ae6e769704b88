"""A mailbox behind POP3: everything new is read once and left on the server. What IMAP has and POP3 lacks (UIDs, folders) is made up."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import TracebackType
from typing import Self

from mail.accounts import Endpoint
from mail.folder_names import RemoteFolder
from mail.imap_reader import MAX_LITERAL
from mail.imap_syntax import MAX_SIZE
from mail.mime import ParseLimits, parse_message
from mail.mime_headers import DEFAULT_LIMITS, by_name, date, first, read_headers, split_message
from mail.pop3_connection import Pop3Connection, Pop3Refused
from mail.spans import MAX_BATCH_BYTES
from mail.sync import FetchedMessage, FolderCursor, SyncBatch

INBOX = RemoteFolder("INBOX", "INBOX", None, "inbox")
UID_VALIDITY = 1
_PIPELINE = 20
"""RETRs under way: the commands are short, the answers are read as they come."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A message of this session. `key` tells it apart in the next ones: its UIDL, or a digest of its header where there is none."""

    number: int
    size: int
    key: str


class Pop3Mailbox:
    """Use as a context manager. The server locks the mailbox meanwhile, so one at a time for an account."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._where = endpoint.where
        self._without = endpoint.without
        self._connection = Pop3Connection(endpoint)

    def __enter__(self) -> Self:
        self._connection.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.quit()

    def entries(self) -> list[Entry]:
        """LIST and UIDL, oldest first. Where UIDLs are missing, malformed or not unique the headers are read instead; of messages that
        have the very same header only the first is told."""
        sizes = self._sizes()
        uidls = self._uidls()
        times = Counter(uidls.values())
        found: dict[str, Entry] = {}
        for number, size in sorted(sizes.items()):
            uidl = uidls.get(number)
            key = uidl if uidl is not None and times[uidl] == 1 else self._digest(number)
            if key is not None:
                found.setdefault(key, Entry(number, size, key))
        return list(found.values())

    def retrieve(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | None]]:
        """RETR, many under way with PIPELINING (RFC 2449 6.6); None for a message the server does not give."""
        ahead = _PIPELINE if "PIPELINING" in self._connection.capabilities else 1
        sent = 0
        for position, entry in enumerate(entries):
            wanted = entries[sent : position + ahead]
            if wanted:
                self._connection.send(*(b"RETR %d" % each.number for each in wanted))
                sent += len(wanted)
            yield entry, self._answer("RETR")

    def header(self, entry: Entry) -> bytes | None:
        """TOP (RFC 1939 7), for a message that is too large."""
        return self._top(entry.number)

    def _sizes(self) -> dict[int, int]:
        pairs = [line.split() for line in self._connection.run_list(b"LIST")]
        numbers = [(pair[0], pair[1]) for pair in pairs if len(pair) >= 2]
        found = {int(number): min(int(size), MAX_SIZE) for number, size in numbers if _is_number(number) and _is_number(size)}
        return {number: size for number, size in found.items() if 0 < number <= MAX_SIZE}

    def _uidls(self) -> dict[int, str]:
        """By message number; a UIDL is 1 to 70 printable characters (RFC 1939 7)."""
        if "UIDL" in self._without:
            return {}
        try:
            lines = self._connection.run_list(b"UIDL")
        except Pop3Refused:
            return {}
        pairs = [line.split() for line in lines]
        texts = [(pair[0], pair[1].decode("ascii", "replace")) for pair in pairs if len(pair) == 2 and _is_number(pair[0])]
        return {int(number): text for number, text in texts if len(text) <= 70 and text.isascii() and text.isprintable()}

    def _digest(self, number: int) -> str | None:
        """A key no UIDL can be, for it has a blank."""
        head = self._top(number)
        return None if head is None else "sha256 " + hashlib.sha256(split_message(head)[0].rstrip()).hexdigest()

    def _top(self, number: int) -> bytes | None:
        if "TOP" not in self._without:
            self._connection.send(b"TOP %d 0" % number)
            head = self._answer("TOP")
            if head is not None:
                return head
        self._connection.send(b"RETR %d" % number)
        whole = self._answer("RETR")
        return None if whole is None else split_message(whole)[0] + b"\r\n\r\n"

    def _answer(self, name: str) -> bytes | None:
        try:
            self._connection.status(name)
        except Pop3Refused:
            return None
        return self._connection.body()


def sync_pop3(
    mailbox: Pop3Mailbox, known_uidls: Mapping[str, int], next_uid: int, *, batch_size: int = 500, limits: ParseLimits = DEFAULT_LIMITS
) -> Iterator[SyncBatch]:
    """Yields what is new and what is gone, at least one batch; see `sync.SyncBatch`. `known_uidls`: the stored messages' `remote_id` to
    their UID. New ones get UIDs from `next_uid` on, and `cursor.uid_next` is the next one to give.

    Raises TransientError when the connection is lost, after whole batches only.
    """
    entries = mailbox.entries()
    here = {entry.key for entry in entries}
    gone = sorted(uid for key, uid in known_uidls.items() if key not in here)
    fresh = [entry for entry in entries if entry.key not in known_uidls]
    uid, done = max(next_uid, 1), 0
    for batch in _batches(fresh, batch_size=max(1, batch_size)):
        new: list[FetchedMessage] = []
        for entry, raw in _read(mailbox, batch):
            if raw is not None:
                new.append(_fetched(entry, raw, uid, limits))
                uid += 1
        done += len(new)
        yield _batch(new, gone, uid, done=done, total=len(fresh))
        gone = []
    if gone or not fresh:
        yield _batch([], gone, uid, done=0, total=0)


def _batches(entries: Sequence[Entry], *, batch_size: int) -> Iterator[list[Entry]]:
    """At most `batch_size` messages and about MAX_BATCH_BYTES; one too large for memory stands alone."""
    inside: list[Entry] = []
    weight = 0
    for entry in entries:
        is_alone = entry.size > MAX_LITERAL or any(each.size > MAX_LITERAL for each in inside[:1])
        if inside and (is_alone or len(inside) >= batch_size or weight + entry.size > MAX_BATCH_BYTES):
            yield inside
            inside, weight = [], 0
        inside.append(entry)
        weight += entry.size
    if inside:
        yield inside


def _read(mailbox: Pop3Mailbox, batch: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | None]]:
    if batch[0].size > MAX_LITERAL:
        yield batch[0], mailbox.header(batch[0])
    else:
        yield from mailbox.retrieve(batch)


def _fetched(entry: Entry, raw: bytes, uid: int, limits: ParseLimits) -> FetchedMessage:
    parsed = parse_message(raw, limits)
    if entry.size > MAX_LITERAL:
        parsed = replace(parsed, size=entry.size, defects=sorted({*parsed.defects, "oversized"}))
    return FetchedMessage(uid, frozenset(), _received_at(raw), entry.size or len(raw), parsed, raw, entry.key)


def _received_at(raw: bytes) -> datetime | None:
    """When the last server got it: the date in the newest Received header (RFC 5321 4.4). POP3 itself does not tell."""
    _, semicolon, moment = first(by_name(read_headers(split_message(raw)[0], set())), "received").rpartition(";")
    return date({"date": [moment.strip()]}, set()) if semicolon else None


def _batch(new: list[FetchedMessage], gone: list[int], uid: int, *, done: int, total: int) -> SyncBatch:
    return SyncBatch(INBOX, UID_VALIDITY, False, new, [], gone, FolderCursor(UID_VALIDITY, uid, None), done, total)


def _is_number(text: bytes) -> bool:
    return text.isdigit() and len(text) < 16
