"""What sync needs of a mailbox, whether it is a real IMAP server (`imap`) or the one in memory (`fake`)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from mail.folder_names import RemoteFolder

Flags = frozenset[str]
"""IMAP flags without `\\Recent`, which belongs to a session and not to a message."""


@dataclass(frozen=True, slots=True)
class FolderState:
    """The counters of a folder (STATUS or EXAMINE). `highest_modseq` is None where the server keeps none (no CONDSTORE, NOMODSEQ)."""

    uid_validity: int
    uid_next: int
    messages: int
    highest_modseq: int | None


@dataclass(frozen=True, slots=True)
class Span:
    """The messages to fetch in one command: every existing UID from first to last, or of these only `uids` when they are given.

    `header_only` for one that is too large.
    """

    first: int
    last: int
    header_only: bool = False
    uids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class RawMessage:
    """One FETCH answer. `size` is the server's RFC822.SIZE; `raw` is None when the message was expunged meanwhile.

    `remote_id` stays the same wherever the message is moved: EMAILID (RFC 8474), X-GM-MSGID, or a POP3 server's UIDL.
    """

    uid: int
    flags: Flags
    internal_date: datetime | None
    size: int
    raw: bytes | None
    remote_id: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells a mail apart when its UID no longer does. `message_id` keeps its angle brackets; `received_at` is the INTERNALDATE,
    aware; `size` is the server's RFC822.SIZE."""

    uid: int
    message_id: str | None
    received_at: datetime | None
    size: int


class UidRanges:
    """A set of UIDs as ranges. Never expanded unasked: a server can say `1:4294967295` in a few bytes."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        ordered = sorted((min(pair), max(pair)) for pair in ranges)
        self._firsts = [first for first, _ in ordered]
        self._lasts = [last for _, last in ordered]

    def __contains__(self, uid: object) -> bool:
        if not isinstance(uid, int):
            return False
        index = bisect_right(self._firsts, uid) - 1
        return index >= 0 and uid <= self._lasts[index]

    def named(self, most: int) -> list[int] | None:
        """Each UID, if there are at most so many; None otherwise."""
        pairs = list(zip(self._firsts, self._lasts, strict=True))
        if sum(last - first + 1 for first, last in pairs) > most:
            return None
        return sorted({uid for first, last in pairs for uid in range(first, last + 1)})


@dataclass(frozen=True, slots=True)
class FolderChanges:
    """What became of the messages that were known: the flags of those that changed, and the UIDs that vanished (some never seen)."""

    flags: dict[int, Flags]
    vanished: UidRanges


class Mailbox(Protocol):
    """A mailbox open for reading. UIDs only, sequence numbers never; nothing here changes the mailbox, not even `\\Seen`."""

    def list_folders(self) -> list[RemoteFolder]:
        """Every folder, those that only hold others included."""
        ...

    def states(self, folders: Sequence[RemoteFolder]) -> dict[str, FolderState]:
        """The counters by `raw_name`, without opening the folders. A folder the server does not answer for is left out."""
        ...

    def examine(self, folder: RemoteFolder) -> FolderState:
        """Opens the folder for reading only. Raises FolderMissing."""
        ...

    def examine_since(self, folder: RemoteFolder, uid_validity: int, modseq: int, last: int) -> tuple[FolderState, FolderChanges | None]:
        """`examine`, and what changed up to UID `last` since `modseq`; None when the server cannot tell that at once (QRESYNC)."""
        ...

    def sizes(self, first: int, last: int) -> list[tuple[int, int]]:
        """(UID, bytes) of every message in the range, in UID order."""
        ...

    def flags(self, first: int, last: int) -> dict[int, Flags]:
        """The flags of every message in the range."""
        ...

    def changed_since(self, modseq: int, last: int) -> dict[int, Flags]:
        """The flags of the messages up to `last` that changed after `modseq` (RFC 7162)."""
        ...

    def present(self, last: int) -> Container[int]:
        """The UIDs up to `last` that exist."""
        ...

    def identities(self, first: int, last: int) -> list[Identity]:
        """What tells the messages in the range apart, without their bodies."""
        ...

    def fetch(self, spans: Sequence[Span]) -> Iterator[list[RawMessage]]:
        """Whole messages, one list for each span, in order."""
        ...


class WritableMailbox(Mailbox, Protocol):
    """A mailbox that can be changed. UIDs that do not exist (any more) are passed over, so that everything may be repeated."""

    def select(self, folder: RemoteFolder) -> FolderState:
        """Opens the folder for changes. Raises FolderMissing."""
        ...

    def move(self, uids: Sequence[int], to: RemoteFolder) -> dict[int, int | None]:
        """Moves messages out of the open folder. The new UIDs by the old ones, None where the server does not tell."""
        ...

    def expunge(self, uids: Sequence[int], /) -> None:
        """Deletes these messages for good. Raises MailboxProtocolError when the server cannot delete single ones."""
        ...

    def store_flags(self, uids: Sequence[int], add: Collection[str] = frozenset(), remove: Collection[str] = frozenset()) -> None:
        """Adds and removes flags."""
        ...

    def append(self, folder: RemoteFolder, raw: bytes, flags: Collection[str] = (), received_at: datetime | None = None) -> int | None:
        """Puts a message into any folder; its UID where the server tells it."""
        ...

    def find_message_id(self, message_id: str) -> list[int]:
        """The UIDs with this Message-ID (brackets included) in the open folder."""
        ...

    def fetch_raw(self, uid: int) -> bytes | None:
        """The whole message, None when it is gone."""
        ...

    def fetch_part(self, uid: int, part: str) -> bytes | None:
        """One body part (`2.1`, RFC 9051 6.4.5.1) still encoded for transfer, None when there is no such message or part."""
        ...

    def fetch_part_header(self, uid: int, part: str) -> bytes | None:
        """The MIME header of a body part, which says how `fetch_part` is encoded."""
        ...
