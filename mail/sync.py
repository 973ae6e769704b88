"""What a sync has to do for each folder, and the doing of it, in batches that each carry the cursor to store with them.

The ladder, cheapest first: counters unchanged: nothing. New messages: only those. CONDSTORE: only the flags that changed. Otherwise
flags are compared one by one. Another UIDVALIDITY: everything again. A crash between two batches loses nothing: a batch's cursor,
stored in the same transaction, says exactly where to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from mail.errors import FolderMissing
from mail.folder_names import RemoteFolder
from mail.imap_reader import MAX_LITERAL
from mail.mailbox import Flags, FolderState, Mailbox, RawMessage, Span
from mail.mime import ParsedMessage, parse_message

MAX_BATCH_BYTES = 8 * 1024 * 1024
"""Two of these are held in memory at a time: one on the wire, one with the store."""


@dataclass(frozen=True, slots=True)
class FolderCursor:
    """How far a folder is stored: everything below `uid_next`, and all changes up to `highest_modseq` (None: flags must be compared)."""

    uid_validity: int
    uid_next: int
    highest_modseq: int | None


@dataclass(frozen=True, slots=True)
class KnownFolder:
    """What the store knows of a folder. `known_flags` (UID to flags) is called at most once, and only when it is needed."""

    name: str
    cursor: FolderCursor | None
    known_flags: Callable[[], Mapping[int, Flags]]
    message_count: int


@dataclass(frozen=True, slots=True)
class FetchedMessage:
    """A new message. `size` is the server's; `raw` is only the header where `parsed.defects` has `oversized`."""

    uid: int
    flags: Flags
    internal_date: datetime | None
    size: int
    parsed: ParsedMessage
    raw: bytes


@dataclass(frozen=True, slots=True)
class FlagsChanged:
    """The flags a message has now. May name a message the store does not know, or flags it already has: both are no work."""

    uid: int
    flags: Flags


@dataclass(frozen=True, slots=True)
class SyncBatch:
    """One transaction's worth: store new, changed and gone, and `cursor`, together.

    `is_reset` (first batch of a folder only): all UIDs stored before are void; drop or re-map them first. `done` of `total` counts new
    messages of this folder in this run.
    """

    folder: RemoteFolder
    uid_validity: int
    is_reset: bool
    new: list[FetchedMessage]
    changed: list[FlagsChanged]
    gone: list[int]
    cursor: FolderCursor
    done: int
    total: int


@dataclass(slots=True)
class _Changes:
    changed: list[FlagsChanged] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)


def list_folders(mailbox: Mailbox) -> list[RemoteFolder]:
    """Every folder of the account; one the store knows and this list lacks has vanished."""
    return mailbox.list_folders()


def sync_mailbox(
    mailbox: Mailbox,
    known: Mapping[str, KnownFolder],
    *,
    folder: str | None = None,
    full: bool = False,
    batch_size: int = 500,
    folders: Sequence[RemoteFolder] | None = None,
) -> Iterator[SyncBatch]:
    """Yields what changed, folder by folder. `known` is by decoded name; `folder` limits the run to one; `full` fetches all again.

    `folders` spares a second LIST to a caller that has one. Raises FolderMissing when `folder` is not there; one that vanishes or is
    forbidden in a run over all folders is passed over. Raises TransientError when the connection is lost, after whole batches only.
    """
    remotes = [each for each in folders or mailbox.list_folders() if each.selectable and folder in {None, each.name}]
    if folder is not None and not remotes:
        raise FolderMissing("The mailbox has no such folder, or it cannot be opened.")
    states = {} if full else mailbox.states(remotes)
    for remote in remotes:
        before = known.get(remote.name)
        if not full and _is_unchanged(states.get(remote.raw_name), before):
            continue
        try:
            state = mailbox.examine(remote)
        except FolderMissing:
            if folder is not None:
                raise
            continue
        yield from _FolderSync(mailbox, remote, state, before, batch_size=batch_size, full=full).batches()


def _is_unchanged(state: FolderState | None, before: KnownFolder | None) -> bool:
    """Whether the counters prove that nothing happened. Without change numbers flags may differ unless there are no messages at all."""
    if state is None or before is None or before.cursor is None:
        return False
    cursor = before.cursor
    if (state.uid_validity, state.uid_next, state.messages) != (cursor.uid_validity, cursor.uid_next, before.message_count):
        return False
    return state.messages == 0 or (state.highest_modseq is not None and state.highest_modseq == cursor.highest_modseq)


def plan_spans(listed: Sequence[tuple[int, int]], *, batch_size: int, max_bytes: int = MAX_BATCH_BYTES) -> list[Span]:
    """(UID, bytes) in UID order into spans of at most `batch_size` messages and about `max_bytes`.

    UIDs between two listed ones do not exist and never will, so that a span needs only its ends. A message too large for memory gets
    a span of its own and only its header.
    """
    spans: list[Span] = []
    first = count = weight = last = 0
    for uid, size in listed:
        is_oversized = size > MAX_LITERAL
        if count and (is_oversized or count >= batch_size or weight + size > max_bytes):
            spans.append(Span(first, last))
            count = weight = 0
        if is_oversized:
            spans.append(Span(uid, uid, header_only=True))
            continue
        first = first if count else uid
        last, count, weight = uid, count + 1, weight + size
    return [*spans, Span(first, last)] if count else spans


class _FolderSync:
    """One folder that is open, against what was known of it."""

    def __init__(
        self, mailbox: Mailbox, remote: RemoteFolder, state: FolderState, known: KnownFolder | None, *, batch_size: int, full: bool
    ) -> None:
        self._mailbox = mailbox
        self._remote = remote
        self._state = state
        self._known = known
        self._batch_size = max(1, batch_size)
        cursor = known.cursor if known else None
        # != and not <: a restored server may count from anywhere. A UIDNEXT that fell back breaks the same promise.
        self._is_reset = cursor is not None and (cursor.uid_validity != state.uid_validity or state.uid_next < cursor.uid_next)
        self._cursor = None if self._is_reset or full else cursor
        self._first_new = self._cursor.uid_next if self._cursor else 1
        self._final = FolderCursor(state.uid_validity, state.uid_next, state.highest_modseq)

    def batches(self) -> Iterator[SyncBatch]:
        """Flags and vanished messages first, then new ones from the oldest. Only the last batch carries the counters of EXAMINE:
        changes that come while this runs have higher ones and are seen the next time."""
        state, listed = self._state, self._list_new()
        spans = plan_spans(listed, batch_size=self._batch_size)
        changes = self._changes(listed)
        if changes.changed or changes.gone or not spans:
            yield self._batch([], changes, self._final if not spans else self._cursor_at(self._first_new), done=0, total=len(listed))
        done = 0
        for span, messages in zip(spans, self._mailbox.fetch(spans), strict=True):
            new = [_fetched(message, message.raw, span) for message in messages if message.raw is not None]
            gone = [message.uid for message in messages if message.raw is None]
            done += len(new)
            cursor = self._final if span is spans[-1] else self._cursor_at(min(span.last + 1, state.uid_next))
            yield self._batch(new, _Changes(gone=gone), cursor, done=done, total=len(listed))

    def _list_new(self) -> list[tuple[int, int]]:
        """Up to UIDNEXT as it was at EXAMINE, so that the final cursor is true whatever arrives meanwhile."""
        if not self._state.messages or self._first_new >= self._state.uid_next:
            return []
        return self._mailbox.sizes(self._first_new, self._state.uid_next - 1)

    def _changes(self, listed: Sequence[tuple[int, int]]) -> _Changes:
        known, cursor, last = self._known, self._cursor, self._first_new - 1
        if known is None or self._is_reset:
            return _Changes()
        if cursor is None:  # all of them are fetched anyway, with their flags
            present = {uid for uid, _ in listed}
            return _Changes(gone=sorted(uid for uid in known.known_flags() if uid not in present) if known.message_count else [])
        if last < 1 or not known.message_count:
            return _Changes()
        if cursor.highest_modseq is None or self._state.highest_modseq is None:
            return self._compared(known.known_flags(), last)
        return self._since(cursor.highest_modseq, known, last, new=len(listed))

    def _compared(self, before: Mapping[int, Flags], last: int) -> _Changes:
        now = self._mailbox.flags(1, last)
        changed = [FlagsChanged(uid, flags) for uid, flags in sorted(now.items()) if uid in before and before[uid] != flags]
        return _Changes(changed, sorted(uid for uid in before if uid not in now))

    def _since(self, modseq: int, known: KnownFolder, last: int, *, new: int) -> _Changes:
        """Vanished messages are looked for only when the counts do not add up: what is stored plus what is new must be what is there."""
        changes = _Changes()
        if self._state.highest_modseq != modseq:
            changes.changed = [FlagsChanged(uid, flags) for uid, flags in sorted(self._mailbox.changed_since(modseq, last).items())]
        if self._state.messages - new != known.message_count:
            present = self._mailbox.present(last)
            changes.gone = sorted(uid for uid in known.known_flags() if uid not in present)
        return changes

    def _cursor_at(self, uid_next: int) -> FolderCursor:
        """The cursor inside a run: the old change number still counts, none in a first run (flags are then compared once)."""
        return FolderCursor(self._state.uid_validity, uid_next, self._cursor.highest_modseq if self._cursor else None)

    def _batch(self, new: list[FetchedMessage], changes: _Changes, cursor: FolderCursor, *, done: int, total: int) -> SyncBatch:
        is_reset, self._is_reset = self._is_reset, False
        return SyncBatch(self._remote, self._state.uid_validity, is_reset, new, changes.changed, changes.gone, cursor, done, total)


def _fetched(message: RawMessage, raw: bytes, span: Span) -> FetchedMessage:
    parsed = parse_message(raw)
    if span.header_only:
        parsed = replace(parsed, size=message.size, defects=sorted({*parsed.defects, "oversized"}))
    return FetchedMessage(message.uid, message.flags, message.internal_date, message.size, parsed, raw)
