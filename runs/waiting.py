"""Messages that a process has and that are not claimed yet, the most urgent first."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Container, Iterable

from brokers.consumer import Settlement, Verdict
from runs.held import Urgency, urgency_of
from runs.message import RunMessage


class WaitingMessages:
    """Used by the recorder's thread; equals keep the order in which they came."""

    def __init__(self) -> None:
        self._heap: list[tuple[Urgency, int, RunMessage]] = []
        self._arrival = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, message: RunMessage) -> None:
        """One more."""
        urgency = urgency_of(message.envelope.queue, message.envelope.priority)
        heapq.heappush(self._heap, (urgency, next(self._arrival), message))

    def most_urgent(self) -> Urgency:
        """How urgent the next one is. Raises IndexError when there is none."""
        return self._heap[0][0]

    def longest_wait(self) -> float:
        """Seconds since the first of them came; 0 when there is none."""
        now = time.monotonic()
        return now - min((message.arrived_at for _, _, message in self._heap), default=now)

    def take(self, number: int, held: Container[str]) -> tuple[dict[str, RunMessage], list[RunMessage]]:
        """The next so many by run id, and the duplicates that were met: of each other, or of what is held."""
        taken: dict[str, RunMessage] = {}
        duplicates = []
        while self._heap and len(taken) < number:
            message = heapq.heappop(self._heap)[2]
            if message.run_id in held or message.run_id in taken:
                duplicates.append(message)
            else:
                taken[message.run_id] = message
        return taken, duplicates

    def take_all(self) -> list[RunMessage]:
        """All of them."""
        heap, self._heap = self._heap, []
        return [message for _, _, message in heap]


def told(messages: Iterable[RunMessage], verdict: Verdict) -> list[Settlement]:
    """The settlements of those that came as messages."""
    return [(message.delivery, verdict) for message in messages if message.delivery is not None]
