"""Which messages are the same before and after a server counted anew, told without reading them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from mail.mailbox import Identity


def recognised(stored: Iterable[Identity], present: Iterable[Identity]) -> dict[int, int]:
    """Stored UID to present UID of every message that exactly one stored and exactly one present message can be.

    All that is known of both must agree: Message-ID (none on both sides is agreement), size and INTERNALDATE to the second. Two alike
    on either side are left out, for taking one for the other would show somebody's flags on another mail.
    """
    before, now = _unique(stored), _unique(present)
    return {before[key]: uid for key, uid in now.items() if key in before}


def _unique(identities: Iterable[Identity]) -> dict[Hashable, int]:
    found: dict[Hashable, int] = {}
    twice: set[Hashable] = set()
    for each in identities:
        key = (each.message_id or None, each.size, int(each.received_at.timestamp()) if each.received_at is not None else None)
        if key in found or each.received_at is None:
            twice.add(key)
        found[key] = each.uid
    return {key: uid for key, uid in found.items() if key not in twice}
