"""What a sync has to do for each folder, and the doing of it, in batches that each carry the cursor to store with them.

The ladder, cheapest first: counters unchanged: nothing. New messages: only those. QRESYNC: what changed and vanished comes with the
opening; CONDSTORE: only the flags that changed. Otherwise flags are compared one by one. Another UIDVALIDITY: messages are told by
their identity, and only the others fetched again. A crash between two batches loses nothing: a batch's cursor, stored in the same
transaction, says exactly where to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from mail.errors import FolderMissing
from mail.folder_names import RemoteFolder
from mail.identity import recognised
from mail.imap_reader import MAX_LITERAL
from mail.mailbox import Flags, FolderChanges, FolderState, Identity, Mailbox, RawMessage, Span, UidRanges
from mail.mime import ParsedMessage, ParseLimits, parse_message
from mail.mime_headers import DEFAULT_LIMITS
from mail.spans import plan_spans, windows

__all__ = [
    "FetchedMessage",
    "FlagsChanged",
    "FolderCursor",
    "Identity",
    "KnownFolder",
    "SyncBatch",
    "list_folders",
    "sync_mailbox",
]


_FEW = 2000
"""UIDs that are looked up one by one rather than all of the folder's read."""


def _no_identities() -> list[Identity]:
    return []


@dataclass(frozen=True, slots=True)
class FolderCursor:
    """How far a folder is stored: everything below `uid_next`, and all changes up to `highest_modseq` (None: flags must be compared)."""

    uid_validity: int
    uid_next: int
    highest_modseq: int | None


@dataclass(frozen=True, slots=True)
class KnownFolder:
    """What the store knows of a folder. `known_flags` (UID to flags) and `identities` (of all stored messages, by the UIDs they are
    stored under) are called at most once, and only when they are needed; `stored_among` says which of a few UIDs are stored."""

    name: str
    cursor: FolderCursor | None
    known_flags: Callable[[], Mapping[int, Flags]]
    message_count: int
    identities: Callable[[], list[Identity]] = _no_identities
    stored_among: Callable[[Sequence[int]], Collection[int]] | None = None


@dataclass(frozen=True, slots=True)
class FetchedMessage:
    """A new message. `size` is the server's; `raw` is only the header where `parsed.defects` has `oversized`."""

    uid: int
    flags: Flags
    internal_date: datetime | None
    size: int
    parsed: ParsedMessage
    raw: bytes
    remote_id: str | None = None


@dataclass(frozen=True, slots=True)
class FlagsChanged:
    """The flags a message has now. May name a message the store does not know, or flags it already has: both are no work."""

    uid: int
    flags: Flags


@dataclass(frozen=True, slots=True)
class SyncBatch:
    """One transaction's worth: store new, changed and gone, and `cursor`, together.

    `is_reset` (first batch of a folder only): all UIDs stored before are void, and this comes first. The messages in `kept` (old UID to
    new UID) stay what they are under their new UID and the new UIDVALIDITY, the others go; `changed` then speaks of the new UIDs.
    `done` of `total` counts new messages of this folder in this run.
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
    kept: dict[int, int] = field(default_factory=dict)


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
    limits: ParseLimits = DEFAULT_LIMITS,
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
            state, told = _opened(mailbox, remote, None if full else before)
        except FolderMissing:
            if folder is not None:
                raise
            continue
        yield from _FolderSync(mailbox, remote, state, before, told, batch_size=batch_size, full=full, limits=limits).batches()


def _opened(mailbox: Mailbox, remote: RemoteFolder, before: KnownFolder | None) -> tuple[FolderState, FolderChanges | None]:
    cursor = before.cursor if before is not None and before.message_count else None
    if cursor is None or cursor.highest_modseq is None:
        return mailbox.examine(remote), None
    return mailbox.examine_since(remote, cursor.uid_validity, cursor.highest_modseq, cursor.uid_next - 1)


def _is_unchanged(state: FolderState | None, before: KnownFolder | None) -> bool:
    """Whether the counters prove that nothing happened. Without change numbers flags may differ unless there are no messages at all."""
    if state is None or before is None or before.cursor is None:
        return False
    cursor = before.cursor
    if (state.uid_validity, state.uid_next, state.messages) != (cursor.uid_validity, cursor.uid_next, before.message_count):
        return False
    return state.messages == 0 or (state.highest_modseq is not None and state.highest_modseq == cursor.highest_modseq)


class _FolderSync:
    """One folder that is open, against what was known of it and what the server `told` at the opening."""

    def __init__(
        self,
        mailbox: Mailbox,
        remote: RemoteFolder,
        state: FolderState,
        known: KnownFolder | None,
        told: FolderChanges | None,
        *,
        batch_size: int,
        full: bool,
        limits: ParseLimits,
    ) -> None:
        self._limits = limits
        self._mailbox = mailbox
        self._remote = remote
        self._state = state
        self._known = known
        self._told = told
        self._batch_size = max(1, batch_size)
        self._full = full
        cursor = known.cursor if known else None
        # != and not <: a restored server may count from anywhere. A UIDNEXT that fell back breaks the same promise.
        self._is_reset = cursor is not None and (cursor.uid_validity != state.uid_validity or state.uid_next < cursor.uid_next)
        self._cursor = None if self._is_reset or full else cursor
        self._first_new = self._cursor.uid_next if self._cursor else 1
        self._final = FolderCursor(state.uid_validity, state.uid_next, state.highest_modseq)
        self._stored: Mapping[int, Flags] | None = None

    def batches(self) -> Iterator[SyncBatch]:
        """Kept, changed and vanished messages first, then new ones from the oldest, a window of UIDs at a time. Only the last batch
        carries the counters of EXAMINE: changes that come while this runs have higher ones and are seen the next time."""
        kept = self._recognised()
        here = set(kept.values()) if kept else self._stored_ahead()
        expected = max(0, self._state.messages - (len(here) if self._cursor is None else self._stored_count()))
        wanted = windows(self._first_new, self._last_new(), expected)
        listed = self._listed(wanted[0], here) if wanted else []
        total = expected if len(wanted) > 1 else len(listed)
        changes = self._renumbered(kept) if kept else self._changes(listed, new=total, is_whole=len(wanted) < 2)
        if changes.changed or changes.gone or kept or not listed:
            is_all = not listed and len(wanted) < 2
            cursor = self._final if is_all else self._cursor_at(listed[0][0] if listed else self._first_new)
            yield self._batch([], changes, cursor, done=0, total=total, kept=kept)
        done = 0
        for number, window in enumerate(wanted):
            if number:
                listed = self._listed(window, here)
            is_last = number == len(wanted) - 1
            for batch in self._fetch(listed, has_holes=bool(here), is_last=is_last, done=done, total=total):
                done = batch.done
                yield batch
            if is_last and number and not listed:
                yield self._batch([], _Changes(), self._final, done=done, total=total)

    def _fetch(self, listed: Sequence[tuple[int, int]], *, has_holes: bool, is_last: bool, done: int, total: int) -> Iterator[SyncBatch]:
        oversized = min(self._limits.message, MAX_LITERAL)
        spans = plan_spans(listed, batch_size=self._batch_size, has_holes=has_holes, oversized=oversized)
        for span, messages in zip(spans, self._mailbox.fetch(spans), strict=True):
            new = [_fetched(message, message.raw, span, self._limits) for message in messages if message.raw is not None]
            gone = [message.uid for message in messages if message.raw is None]
            done += len(new)
            is_end = is_last and span is spans[-1]
            cursor = self._final if is_end else self._cursor_at(min(span.last + 1, self._state.uid_next))
            yield self._batch(new, _Changes(gone=gone), cursor, done=done, total=total)

    def _recognised(self) -> dict[int, int]:
        """After a reset: stored UID to present UID of the messages that are surely the same."""
        stored = self._known.identities() if self._is_reset and self._known is not None and self._state.messages else []
        return recognised(stored, self._mailbox.identities(1, self._state.uid_next - 1)) if stored else {}

    def _renumbered(self, kept: Mapping[int, int]) -> _Changes:
        """Of messages that only got another UID the flags may have changed all the same."""
        before, now = self._known_flags(), self._mailbox.flags(1, self._state.uid_next - 1)
        changed = [FlagsChanged(new, now[new]) for old, new in kept.items() if new in now and before.get(old) != now[new]]
        return _Changes(sorted(changed, key=lambda change: change.uid))

    def _stored_ahead(self) -> set[int]:
        """UIDs at or above the cursor that are stored already: a run that kept them after a reset ended early. It has no change number."""
        cursor, known = self._cursor, self._known
        if known is None or not known.message_count or cursor is None or cursor.highest_modseq is not None:
            return set()
        return {uid for uid in self._known_flags() if uid >= cursor.uid_next}

    def _known_flags(self) -> Mapping[int, Flags]:
        if self._stored is None:
            self._stored = self._known.known_flags() if self._known else {}
        return self._stored

    def _stored_count(self) -> int:
        return self._known.message_count if self._known is not None else 0

    def _last_new(self) -> int:
        """Up to UIDNEXT as it was at EXAMINE, so that the final cursor is true whatever arrives meanwhile."""
        return self._state.uid_next - 1 if self._state.messages else 0

    def _listed(self, window: tuple[int, int], here: Container[int]) -> list[tuple[int, int]]:
        """(UID, bytes) of what is to be fetched there."""
        return [each for each in self._mailbox.sizes(*window) if self._full or each[0] not in here]

    def _changes(self, listed: Sequence[tuple[int, int]], *, new: int, is_whole: bool) -> _Changes:
        """`new` messages are to come; `listed` are all of them if it `is_whole`."""
        known, cursor = self._known, self._cursor
        if known is None or self._is_reset or not known.message_count:
            return _Changes()
        if cursor is None:  # all of them are fetched anyway, with their flags
            present: Container[int] = {uid for uid, _ in listed} if is_whole else self._mailbox.present(self._last_new())
            return _Changes(gone=sorted(uid for uid in self._known_flags() if uid not in present))
        if cursor.highest_modseq is None or self._state.highest_modseq is None:
            return self._compared()
        return self._since(cursor.highest_modseq, known, new=new)

    def _compared(self) -> _Changes:
        before = self._known_flags()
        now = self._mailbox.flags(1, max([self._first_new - 1, *before]))
        changed = [FlagsChanged(uid, flags) for uid, flags in sorted(now.items()) if uid in before and before[uid] != flags]
        return _Changes(changed, sorted(uid for uid in before if uid not in now))

    def _since(self, modseq: int, known: KnownFolder, *, new: int) -> _Changes:
        """Vanished messages are looked for only when the counts do not add up: what is stored plus what is new must be what is there.

        That also catches a server whose VANISHED is wrong; UIDs in it that were never stored do not count.
        """
        last, told = self._first_new - 1, self._told
        if last < 1:
            return _Changes()
        flags: Mapping[int, Flags] = {}
        if told is not None:
            flags = told.flags
        elif self._state.highest_modseq != modseq:
            flags = self._mailbox.changed_since(modseq, last)
        changes = _Changes([FlagsChanged(uid, flags[uid]) for uid in sorted(flags)])
        missing = known.message_count + new - self._state.messages
        if missing and told is not None:
            changes.gone = self._stored_of(told.vanished, known)
        if missing != len(changes.gone):
            present = self._mailbox.present(last)
            changes.gone = sorted(uid for uid in self._known_flags() if uid <= last and uid not in present)
        return changes

    def _stored_of(self, vanished: UidRanges, known: KnownFolder) -> list[int]:
        """A few are asked for by their UIDs: a large folder is not read because a message left it."""
        few = vanished.named(_FEW) if known.stored_among is not None else None
        if few is None or known.stored_among is None:
            return sorted(uid for uid in self._known_flags() if uid in vanished)
        return sorted(known.stored_among(few))

    def _cursor_at(self, uid_next: int) -> FolderCursor:
        """The cursor inside a run. The old change number still counts; in a first run the one of EXAMINE, for everything that is stored
        was fetched after it; after a reset and in a full run none, so that flags are compared once."""
        if self._cursor is not None:
            modseq = self._cursor.highest_modseq
        else:
            modseq = self._state.highest_modseq if self._known is None or self._known.cursor is None else None
        return FolderCursor(self._state.uid_validity, uid_next, modseq)

    def _batch(
        self,
        new: list[FetchedMessage],
        changes: _Changes,
        cursor: FolderCursor,
        *,
        done: int,
        total: int,
        kept: dict[int, int] | None = None,
    ) -> SyncBatch:
        is_reset, self._is_reset = self._is_reset, False
        validity = self._state.uid_validity
        return SyncBatch(self._remote, validity, is_reset, new, changes.changed, changes.gone, cursor, done, total, kept or {})


def _fetched(message: RawMessage, raw: bytes, span: Span, limits: ParseLimits) -> FetchedMessage:
    parsed = parse_message(raw, limits)
    if span.header_only:
        parsed = replace(parsed, size=message.size, defects=sorted({*parsed.defects, "oversized"}))
    return FetchedMessage(message.uid, message.flags, message.internal_date, message.size, parsed, raw, message.remote_id)
