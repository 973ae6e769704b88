"""The lanes of held runs that a recorder knows of, and whose turn it is.

A lane is a tenant's held runs of one queue and priority. The most urgent queue goes first; between equals every tenant's lane
gets its turn, one run each, whatever the length of its backlog.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Callable, Iterable, Sequence

from brokers.queues import policy_of
from storage.outcomes import Claim, HeldLane

Urgency = tuple[int, int]
LaneKey = tuple[str, str, int]


def urgency_of(queue: str, priority: int) -> Urgency:
    """Smaller is sooner: the queue's priority, then the run's inside it."""
    return (-policy_of(queue).priority, -priority)


class HeldRuns:
    """Used by the recorder's thread. `find` reads the lanes from the record."""

    def __init__(self, find: Callable[[], list[HeldLane]]) -> None:
        self._find = find
        self._lanes: dict[Urgency, dict[LaneKey, HeldLane]] = {}  # in the order of their turns

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def look(self) -> None:
        """Reads the lanes anew. One that is known keeps its place, so that what was claimed is not walked over again."""
        known = {key: lane for lanes in self._lanes.values() for key, lane in lanes.items()}
        found = self._find()
        random.shuffle(found)  # several processes begin with different tenants
        self._lanes = {}
        for lane in found:
            self._lanes.setdefault(urgency_of(lane.queue, lane.priority), {})[_key(lane)] = known.get(_key(lane), lane)

    def start_over(self) -> None:
        """From the lanes' beginnings at the next look: a run may have been put back behind the place that was reached."""
        self._lanes = {}

    def most_urgent(self) -> Urgency | None:
        """How urgent the next held run is; None when there is none."""
        return min(self._lanes, default=None)

    def choose(self, number: int) -> list[HeldLane]:
        """The lanes whose turn it is, and how many runs to claim from each: so many together, of the most urgent only."""
        urgency = self.most_urgent()
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
