"""The lanes of held runs that a recorder knows of, and whose turn it is.

A lane is a tenant's held runs of one queue and priority. The most urgent queue goes first; between equals every tenant's lane
gets its turn, one run each, whatever the length of its backlog.

A tenant without a backlog whose runs come as messages is a guest among those that have one. As long as guests come, backlogs leave
a thread free: the next guest then starts at once and not when somebody's run ends.
"""

from __future__ import annotations

import collections
import random
import time
from collections.abc import Callable, Iterable, Sequence

from brokers.queues import policy_of
from storage.outcomes import Claim, HeldLane

Urgency = tuple[int, int]
LaneKey = tuple[str, str, int]
GUEST_SECONDS = 5.0
"""So long after the last one another guest is expected."""


def urgency_of(queue: str, priority: int) -> Urgency:
    """Smaller is sooner: the queue's priority, then the run's inside it."""
    return (-policy_of(queue).priority, -priority)


def kept_free(threads: int, claim_ahead: int) -> int:
    """A thread, and nothing is claimed ahead; of a few threads none: the price of one would be too high."""
    return claim_ahead + 1 if threads >= 4 else 0


class HeldRuns:
    """Used by the recorder's thread. `find` reads the lanes from the record; `kept_free` places are left to guests."""

    def __init__(self, find: Callable[[], list[HeldLane]], kept_free: int = 0) -> None:
        self._find = find
        self._kept_free = kept_free
        self._lanes: dict[Urgency, dict[LaneKey, HeldLane]] = {}  # in the order of their turns
        self._hosts: tuple[set[str], set[str]] = (set(), set())  # tenants with a backlog, at the last look and at the one before
        self._guests: dict[Urgency, float] = {}  # when the last one came

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def look(self) -> None:
        """Reads the lanes anew. One that is known keeps its place, so that what was claimed is not walked over again."""
        known = {key: lane for lanes in self._lanes.values() for key, lane in lanes.items()}
        found = self._find()
        random.shuffle(found)  # several processes begin with different tenants
        self._hosts = ({lane.tenant_id for lane in found}, self._hosts[0])
        self._lanes = {}
        for lane in found:
            self._lanes.setdefault(urgency_of(lane.queue, lane.priority), {})[_key(lane)] = known.get(_key(lane), lane)

    def start_over(self) -> None:
        """From the lanes' beginnings at the next look: a run may have been put back behind the place that was reached."""
        self._lanes = {}

    def most_urgent(self) -> Urgency | None:
        """How urgent the next held run is; None when there is none."""
        return min(self._lanes, default=None)

    def met(self, claims: Iterable[Claim]) -> None:
        """Runs that came as messages: some may be guests'."""
        for claim in claims if any(self._hosts) else ():
            if not any(claim.tenant_id in hosts for hosts in self._hosts):
                self._guests[urgency_of(claim.queue, claim.priority)] = time.monotonic()

    def room(self, free: int) -> int:
        """How many of the free places held runs may take now: those of guests that are no less urgent are left to them."""
        urgency = self.most_urgent()
        if urgency is None:
            return 0
        expected = time.monotonic() - GUEST_SECONDS
        has_guests = any(guest <= urgency and came >= expected for guest, came in self._guests.items())
        return max(0, free - self._kept_free) if has_guests else free

    def choose(self, free: int) -> list[HeldLane]:
        """The lanes whose turn it is, and how many runs to claim from each: of the most urgent only, as many together as have room."""
        urgency, number = self.most_urgent(), self.room(free)
        if urgency is None or number <= 0:
            return []
        lanes = list(self._lanes[urgency].values())[:number]
        share, rest = divmod(number, len(lanes))
        for place, lane in enumerate(lanes):
            lane.wanted = share + (place < rest)
        return lanes

    def took(self, lanes: Sequence[HeldLane], claims: Iterable[Claim]) -> None:
        """What came of them. A lane that gave less than was wanted is empty, until somebody looks again; the others queue up."""
        ids: dict[LaneKey, list[str]] = collections.defaultdict(list)
        for claim in claims:
            ids[claim.queue, claim.tenant_id, claim.priority].append(claim.run_id)
        for lane in sorted(lanes, key=lambda lane: lane.wanted):  # who got more than others is the last next time
            urgency, key = urgency_of(lane.queue, lane.priority), _key(lane)
            del self._lanes[urgency][key]
            if len(ids[key]) >= lane.wanted:
                lane.after = max(ids[key])
                self._lanes[urgency][key] = lane
            if not self._lanes[urgency]:
                del self._lanes[urgency]


def _key(lane: HeldLane) -> LaneKey:
    return (lane.queue, lane.tenant_id, lane.priority)
