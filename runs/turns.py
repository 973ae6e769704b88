"""What a recorder claims next: of the messages that wait and of the held runs, and which of the two goes first."""

from __future__ import annotations

from collections.abc import Container

from runs.held import HeldRuns
from runs.message import RunMessage
from runs.waiting import WaitingMessages
from storage.outcomes import HeldLane

OTHER_WAY_EVERY = 4
"""Every so many turns the less urgent of messages and held runs goes first, so that neither ever starves."""


class Turns:
    """Used by the recorder's thread."""

    def __init__(self, waiting: WaitingMessages, lanes: HeldRuns) -> None:
        self._waiting = waiting
        self._lanes = lanes
        self._number = 0

    def take(self, free: int, held: Container[str]) -> tuple[dict[str, RunMessage], list[HeldLane], list[RunMessage]]:
        """The messages (by run id) and the lanes to claim from, the most urgent first and together no more than `free`;
        and the duplicates that were met, of each other or of what is held."""
        self._number += 1
        other_way = self._number % OTHER_WAY_EVERY == 0
        held_first = self._lanes.most_urgent() if free > 0 and self._waiting else None
        lanes: list[HeldLane] = []
        if held_first is not None and (held_first < self._waiting.most_urgent()) is not other_way:
            lanes = self._lanes.choose(free)
        wanted, duplicates = self._waiting.take(free - sum(lane.wanted for lane in lanes), held)
        return wanted, lanes or self._lanes.choose(free - len(wanted)), duplicates
