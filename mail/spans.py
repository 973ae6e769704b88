"""Which messages go into one command: by their number, by their bytes, and by how many of them a process should know of at a time."""

from __future__ import annotations

from collections.abc import Sequence

from mail.imap_reader import MAX_LITERAL
from mail.mailbox import Span

MAX_BATCH_BYTES = 8 * 1024 * 1024
"""Two of these are held in memory at a time: one on the wire, one with the store."""
WINDOW = 50_000
"""Messages that are listed at a time: a mailbox may have millions."""
_LONGEST_UID_LIST = 500
"""UIDs that surely fit one command line when they are named one by one."""


def windows(first: int, last: int, expected: int) -> list[tuple[int, int]]:
    """The UIDs from first to last in pieces that hold about WINDOW of the `expected` messages each; one piece when they are not many."""
    if last < first:
        return []
    if expected <= WINDOW:
        return [(first, last)]
    step = max(WINDOW, (last - first + 1) * WINDOW // expected)
    return [(start, min(start + step - 1, last)) for start in range(first, last + 1, step)]


def plan_spans(
    listed: Sequence[tuple[int, int]],
    *,
    batch_size: int,
    max_bytes: int = MAX_BATCH_BYTES,
    has_holes: bool = False,
    oversized: int = MAX_LITERAL,
) -> list[Span]:
    """(UID, bytes) in UID order into spans of at most `batch_size` messages and about `max_bytes`.

    UIDs between two listed ones do not exist and never will, so that a span needs only its ends; with `has_holes` some do exist and are
    not wanted. A message that is `oversized` gets a span of its own and only its header.
    """
    spans: list[Span] = []
    inside: list[int] = []
    weight = 0
    most = min(batch_size, _LONGEST_UID_LIST) if has_holes else batch_size
    for uid, size in listed:
        is_oversized = size > oversized
        if inside and (is_oversized or len(inside) >= most or weight + size > max_bytes):
            spans.append(_span(inside, has_holes=has_holes))
            inside, weight = [], 0
        if is_oversized:
            spans.append(Span(uid, uid, header_only=True))
            continue
        inside.append(uid)
        weight += size
    return [*spans, _span(inside, has_holes=has_holes)] if inside else spans


def _span(uids: Sequence[int], *, has_holes: bool) -> Span:
    return Span(uids[0], uids[-1], uids=tuple(uids) if has_holes else None)
