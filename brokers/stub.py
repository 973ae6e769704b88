"""The in-memory twin of a broker, for unit tests: it keeps messages, loses them when told to, and delivers to a consumer."""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterable, Sequence

from brokers.consumer import Delivery, OnDelivery, Rejection, Settlement, Verdict
from brokers.dead_letters import DeadLetter
from brokers.message import Outgoing
from brokers.queues import dead_letter_queue


class StubBroker:
    """Queues of bodies. `is_down` refuses to take any."""

    def __init__(self) -> None:
        self.queues: dict[str, collections.deque[bytes]] = collections.defaultdict(collections.deque)
        self.reasons: dict[bytes, str] = {}  # of dead letters, by body
        self.is_down = False
        self.published = 0
        self._arrived = threading.Condition()

    def publish(self, messages: Sequence[Outgoing]) -> list[Outgoing]:
        """See MessageSink."""
        if self.is_down:
            return list(messages)
        with self._arrived:
            for message in messages:
                self.queues[message.routing_key].append(message.body)
                self.published += 1
                if message.reason is not None:
                    self.reasons[message.body] = message.reason
            self._arrived.notify_all()
        return []

    def depth(self, queue: str) -> int | None:
        """See MessageSink."""
        return None if self.is_down else len(self.queues[queue])

    def dead_letters(self, queue: str, count: int = 20) -> list[DeadLetter] | None:
        """See MessageSink."""
        bodies = list(self.queues[dead_letter_queue(queue)])
        return None if self.is_down else [DeadLetter(body, self.reasons.get(body)) for body in bodies[-count:]]

    def lose_everything(self) -> int:
        """A purge, FLUSHALL or a wiped disk. Returns how many messages were lost."""
        with self._arrived:
            lost = sum(len(bodies) for bodies in self.queues.values())
            self.queues.clear()
        return lost

    def pop(self, queues: Iterable[str], timeout: float) -> tuple[str, bytes] | None:
        """The next body of the first queue that has one."""
        with self._arrived:
            self._arrived.wait_for(lambda: any(self.queues[name] for name in queues), timeout)
            for name in queues:
                if self.queues[name]:
                    return name, self.queues[name].popleft()
        return None

    def close(self) -> None:
        """See MessageSink."""


class StubConsumer(threading.Thread):
    """A BrokerConsumer over a StubBroker. Remembers every verdict in `settled`; the broker remembers the reasons."""

    def __init__(self, broker: StubBroker, on_delivery: OnDelivery) -> None:
        super().__init__(name="stub-consumer", daemon=True)
        self._broker = broker
        self._on_delivery = on_delivery
        self._queues: list[str] = []
        self._stopping = threading.Event()
        self._paused = threading.Event()
        self.settled: list[tuple[Delivery, Verdict]] = []

    def subscribe(self, queue: str) -> None:
        """See BrokerConsumer."""
        self._queues.append(queue)

    def run(self) -> None:
        """Delivers until stopped."""
        while not self._stopping.is_set():
            popped = None if self._paused.is_set() else self._broker.pop(self._queues, 0.05)
            if popped:
                self._on_delivery(Delivery(popped[1], popped[0], self, popped[0]))
            elif self._paused.is_set():
                self._stopping.wait(0.05)

    def settle(self, settled: Iterable[Settlement]) -> None:
        """See BrokerConsumer."""
        for delivery, answer in settled:
            verdict = Verdict.REJECT if isinstance(answer, Rejection) else answer
            if isinstance(answer, Rejection):
                self._broker.reasons[delivery.body] = answer.reason
            self.settled.append((delivery, verdict))
            if verdict is Verdict.REQUEUE:
                self._broker.queues[delivery.queue].appendleft(delivery.body)
            elif verdict is Verdict.REJECT:
                self._broker.queues[dead_letter_queue(delivery.queue)].append(delivery.body)

    def pause(self) -> None:
        """See BrokerConsumer."""
        self._paused.set()

    def resume(self) -> None:
        """See BrokerConsumer."""
        self._paused.clear()

    def stop(self) -> None:
        """See BrokerConsumer."""
        self._stopping.set()
        if self.is_alive():
            self.join(2)
