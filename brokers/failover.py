"""Which broker takes new messages: RabbitMQ, and Redis while RabbitMQ is unreachable, blocked or late with a confirm.

A breaker with dwell: one failure opens it, three good probes two seconds apart close it. Workers always drain both brokers and
nothing is moved between them, so every process may decide this for itself; a message that exists twice is claimed once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from brokers.dead_letters import DeadLetter
from brokers.message import Outgoing
from brokers.rabbitmq.publisher import RabbitPublisher
from brokers.redis import RedisPublisher
from core.logging import get_logger

log = get_logger(__name__)
PROBE_SECONDS = 2.0
GOOD_PROBES = 3
FIRST_CONNECT_SECONDS = 3.0


class Failover:
    """Publishes to the first broker that takes a message. Either may be absent."""

    def __init__(self, rabbitmq: RabbitPublisher | None, redis: RedisPublisher | None) -> None:
        self.rabbitmq = rabbitmq
        self.redis = redis
        self._lock = threading.Lock()
        self._open = threading.Event()  # the breaker is open: RabbitMQ is not asked
        self._closing = threading.Event()
        if rabbitmq is not None:
            rabbitmq.start()
            rabbitmq.ready.wait(FIRST_CONNECT_SECONDS)

    @property
    def rabbitmq_in_use(self) -> bool:
        """Whether new messages go to RabbitMQ now."""
        return self.rabbitmq is not None and self.rabbitmq.ready.is_set() and not self._open.is_set()

    def publish(self, messages: Sequence[Outgoing]) -> list[Outgoing]:
        """Returns the messages that no broker took."""
        left = list(messages)
        if self.rabbitmq is not None and not self._open.is_set():
            left = self.rabbitmq.publish(left)
            if left and self.rabbitmq.ready.is_set():
                left = self.rabbitmq.publish(left)  # somebody deleted the queue, which is declared again now
            if left and self.redis is not None:
                self._trip()
        if left and self.redis is not None:
            left = self.redis.publish(left)
        return left

    def depth(self, queue: str) -> int | None:
        """Messages both brokers hold for the queue; None when one of them cannot be asked, for then nothing can be called lost."""
        depths = [broker.depth(queue) for broker in (self.rabbitmq, self.redis) if broker is not None]
        known = [depth for depth in depths if depth is not None]
        return sum(known) if len(known) == len(depths) else None

    def dead_letters(self, queue: str, count: int = 20) -> list[DeadLetter] | None:
        """Up to `count` dead letters of the queue from each broker, which keep them; None when one of them cannot be asked."""
        found = [broker.dead_letters(queue, count) for broker in (self.rabbitmq, self.redis) if broker is not None]
        known = [letters for letters in found if letters is not None]
        return [letter for letters in known for letter in letters] if len(known) == len(found) else None

    def close(self) -> None:
        """Closes both."""
        self._closing.set()
        if self.rabbitmq is not None:
            self.rabbitmq.stop()
        if self.redis is not None:
            self.redis.close()

    def _trip(self) -> None:
        with self._lock:
            if self._open.is_set():
                return
            self._open.set()
        log.warning("failover_to_redis")
        threading.Thread(target=self._probe, name="failover-probe", daemon=True).start()

    def _probe(self) -> None:
        good = 0
        while good < GOOD_PROBES and not self._closing.wait(PROBE_SECONDS):
            good = good + 1 if self.rabbitmq is not None and self.rabbitmq.depth("default") is not None else 0
        self._open.clear()
        if not self._closing.is_set():
            log.info("failover_back_to_rabbitmq")
