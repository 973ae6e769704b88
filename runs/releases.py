"""The relay's part in chains and groups: whoever waited for what has ended is released, or revoked.

Workers tell which of their runs ended and were waited for; that makes it quick. A walk over all that is waited for, a page a second,
makes it sure: whatever ended a run, and whoever died before telling of it.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from sqlalchemy import Connection

from core.logging import get_logger
from storage import followers
from storage.followers import BATCH, Settled, Walk
from storage.outcomes import Claim
from storage.postgres import BEFORE_ANY_ID

log = get_logger(__name__)
WALK_SECONDS = 0.9
"""At least so long between two pages: less than a relay's own rhythm."""
MAX_ROUNDS = 200
"""How many batches a turn settles: other chores wait."""
WalkOn = Callable[[Connection, str], Walk]


class Releases:
    """Used by the relay's thread, but for `ended`."""

    def __init__(self, transaction: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._transaction = transaction
        self._told: queue.SimpleQueue[tuple[list[str], list[str]]] = queue.SimpleQueue()
        self._walked_at = -WALK_SECONDS
        self._places: dict[WalkOn, str] = {followers.walk_predecessors: BEFORE_ANY_ID, followers.walk_groups: BEFORE_ANY_ID}

    def ended(self, claims: Iterable[Claim], running: Iterable[Claim]) -> bool:
        """Takes note of runs that ended, from any thread. Whether anybody may wait for one of them.

        A group is not over as long as this process runs members of it; it is told of when the last of them ends.
        """
        claims = list(claims)
        followed = [claim.run_id for claim in claims if claim.is_followed]
        groups = {claim.group_id for claim in claims if claim.group_id is not None}
        if groups:
            groups -= {claim.group_id for claim in running}
        if followed or groups:
            self._told.put((followed, sorted(groups)))
        return bool(followed or groups)

    def turn(self, anybody_waits: bool) -> bool:
        """Settles what was told of, and the next page of the walk if it is time. Whether anything was released."""
        released = self._settle(*self._take_told())
        now = time.monotonic()
        if anybody_waits and now - self._walked_at >= WALK_SECONDS:
            self._walked_at = now
            released += self._settle(self._walk(followers.walk_predecessors), self._walk(followers.walk_groups))
        if released:
            log.info("followers_released", runs=released)
        return released > 0

    def _take_told(self) -> tuple[list[str], list[str]]:
        runs, groups = [], []
        while not self._told.empty():
            more_runs, more_groups = self._told.get()
            runs += more_runs
            groups += more_groups
        return runs, groups

    def _walk(self, walk_on: WalkOn) -> list[str]:
        """The next page: what of it has ended."""
        with self._transaction() as connection:
            walk = walk_on(connection, self._places[walk_on])
            orphans = followers.revoke_orphans(connection, walk.gone) if walk.gone else None
        self._places[walk_on] = walk.goes_on_after or BEFORE_ANY_ID
        if orphans is not None:
            self._tell(orphans)
            self._told.put((orphans.revoked, orphans.groups))
        return walk.ended

    def _settle(self, runs: list[str], groups: list[str]) -> int:
        """Returns how many were released. Who is revoked has ended too: so a chain is revoked to its end."""
        released, rounds = 0, 0
        while runs and rounds < MAX_ROUNDS:
            with self._transaction() as connection:
                settled = followers.settle(connection, runs[:BATCH])
            self._tell(settled)
            released += settled.released
            runs = (runs if settled.is_full else runs[BATCH:]) + settled.revoked
            groups = groups + settled.groups
            rounds += 1
        if runs:
            self._told.put((runs, []))
        for start in range(0, len(groups), BATCH):
            with self._transaction() as connection:
                released += followers.release_callbacks(connection, groups[start : start + BATCH])
        return released

    @staticmethod
    def _tell(settled: Settled) -> None:
        for run_id in settled.revoked:
            log.warning("run_revoked", task_id=run_id, reason=followers.PREDECESSOR_FAILED)
