"""What sync needs of a mailbox, whether it is a real IMAP server (`imap`) or the one in memory (`fake`)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Sequence
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
    """The messages to fetch in one command: every existing UID from first to last. `header_only` for one that is too large."""

    first: int
    last: int
    header_only: bool = False


@dataclass(frozen=True, slots=True)
class RawMessage:
    """One FETCH answer. `size` is the server's RFC822.SIZE; `raw` is None when the message was expunged meanwhile."""

    uid: int
    flags: Flags
    internal_date: datetime | None
    size: int
    raw: bytes | None


class UidRanges:
    """A set of UIDs as ranges. Never expanded: a server can say `1:4294967295` in a few bytes."""

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

    def fetch(self, spans: Sequence[Span]) -> Iterator[list[RawMessage]]:
        """Whole messages, one list for each span, in order."""
        ...
