"""Redis (or Valkey): the fallback. A list per queue and priority, no acknowledgements.

The record is what counts, so a message that dies with its worker is published again by the relay. That removes ack sets,
heartbeats and maintenance from Redis, and with them the lost leases of other Redis brokers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import redis

from brokers.consumer import Delivery, HandOver, OnDeliveries, OnDelivery, Rejection, Settlement, Verdict
from brokers.dead_letters import DeadLetter, unwrap, wrap
from brokers.message import Outgoing
from brokers.queues import DEAD_LETTER_TTL_MS, Priority, by_urgency, dead_letter_queue
from core.errors import ConfigurationError
from core.logging import get_logger

log = get_logger(__name__)
POLL_SECONDS = 1
DEAD_LETTERS_KEPT = 10_000
"""Of each queue; with `noeviction` a list that only grows ends with a server that takes nothing."""
LOW_FIRST_EVERY = 8
"""Every so many polls the least urgent queue is asked first, so that it never starves."""


def key(queue: str, level: int = Priority.NORMAL) -> str:
    """The list of a queue's messages of one priority."""
    return f"mailroom:{queue}:{int(level)}"


def dead_key(queue: str) -> str:
    """The list of a queue's dead letters."""
    return f"mailroom:{dead_letter_queue(queue)}"


def connect(url: str) -> redis.Redis:
    """A client whose calls end in seconds whatever happens to the server."""
    return redis.Redis.from_url(url, socket_timeout=POLL_SECONDS + 3, socket_connect_timeout=2, retry=None, health_check_interval=15)


def check_server(url: str) -> None:
    """Raises ConfigurationError when the server may evict messages or is too old for BLMPOP; warns about what it will not tell."""
    client = connect(url)
    try:
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy")
        if policy not in {"noeviction", None}:
            raise ConfigurationError(
                f"REDIS_URL: the server evicts keys ({policy}), which loses messages; set maxmemory-policy noeviction."
            )
        if client.config_get("appendonly").get("appendonly") != "yes":
            log.warning("redis_without_aof", advice="set appendonly yes, or a restart of Redis delays what it held")
    except redis.ResponseError:
        log.warning("redis_config_hidden", advice="make sure of maxmemory-policy noeviction and appendonly yes")
    except redis.RedisError as error:
        log.warning("redis_unreachable", error=type(error).__name__)
    finally:
        client.close()


def _bury(pipeline: redis.client.Pipeline, queue: str, body: bytes, reason: str | None) -> None:
    """Among the dead letters, of which as many and for as long are kept as RabbitMQ's TTL says: nothing else would remove them."""
    pipeline.rpush(dead_key(queue), wrap(body, reason))
    pipeline.ltrim(dead_key(queue), -DEAD_LETTERS_KEPT, -1)
    pipeline.pexpire(dead_key(queue), DEAD_LETTER_TTL_MS)


class RedisPublisher:
    """Pushes batches in one transaction: all of them or none."""

    def __init__(self, url: str) -> None:
        self._client = connect(url)

    def publish(self, messages: Sequence[Outgoing]) -> list[Outgoing]:
        """Returns those Redis did not take."""
        if not messages:
            return []
        pipeline = self._client.pipeline(transaction=True)
        by_key: dict[str, list[bytes]] = {}
        for message in messages:
            if message.declared:
                _bury(pipeline, message.declared, message.body, message.reason)
            else:
                by_key.setdefault(key(message.routing_key, message.priority), []).append(message.body)
        for target, bodies in by_key.items():
            pipeline.rpush(target, *bodies)
        try:
            pipeline.execute()
        except redis.RedisError as error:
            log.warning("redis_publish_failed", messages=len(messages), error=type(error).__name__)
            return list(messages)
        return []

    def depth(self, queue: str) -> int | None:
        """Messages waiting in a queue, all priorities; None when nobody can say."""
        try:
            return sum(int(self._client.llen(key(queue, level))) for level in Priority)
        except redis.RedisError:
            return None

    def dead_letters(self, queue: str, count: int = 20) -> list[DeadLetter] | None:
        """The newest dead letters of a queue, the newest first; they stay there. None when nobody can say."""
        try:
            found = cast("list[bytes]", self._client.lrange(dead_key(queue), -count, -1)) if count > 0 else []
        except redis.RedisError:
            return None
        return [unwrap(text) or DeadLetter(text) for text in reversed(found)]

    def is_reachable(self) -> bool:
        """Whether the server answers."""
        try:
            return bool(self._client.ping())
        except redis.RedisError:
            return False

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()


class RedisConsumer(threading.Thread):
    """A BrokerConsumer over Redis. It takes no more than `room()` messages: what it holds, nobody else can have."""

    def __init__(self, url: str, on_delivery: OnDelivery, room: Callable[[], int], *, on_deliveries: OnDeliveries | None = None) -> None:
        super().__init__(name="redis-consumer", daemon=True)
        self._client = connect(url)
        self._hand_over = HandOver(self, on_delivery, on_deliveries)
        self._room = room
        self._queues: list[str] = []
        self._polls = 0
        self._paused = threading.Event()
        self._stopping = threading.Event()

    def subscribe(self, queue: str) -> None:
        """See BrokerConsumer."""
        self._queues.append(queue)  # in one step: a thread for each queue says so at the same moment, and none may be forgotten

    def run(self) -> None:
        """Pops and delivers until stopped."""
        while not self._stopping.is_set():
            room = self._room() if self._queues and not self._paused.is_set() else 0
            if room <= 0:
                time.sleep(0.02)
                continue
            try:
                self._pop(room)
            except redis.RedisError as error:
                log.warning("redis_consume_failed", error=type(error).__name__)
                self._stopping.wait(1)

    def settle(self, settled: Iterable[Settlement]) -> None:
        """See BrokerConsumer. A message that cannot be put back is published again by the relay."""
        pipeline = self._client.pipeline(transaction=True)
        for delivery, verdict in settled:
            name, text = delivery.receipt
            if isinstance(verdict, Rejection):
                _bury(pipeline, delivery.queue, delivery.body, verdict.reason)
            elif verdict is Verdict.REJECT:
                _bury(pipeline, delivery.queue, delivery.body, None)
            elif verdict is Verdict.REQUEUE:
                pipeline.lpush(name, text)
        try:
            pipeline.execute()
        except redis.RedisError as error:
            log.warning("redis_settle_failed", error=type(error).__name__)

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
            self.join(POLL_SECONDS + 4)
        self._client.close()

    def _pop(self, room: int) -> None:
        """BLMPOP takes from the first key that has any: the most urgent queue, in it the highest priority."""
        queues = by_urgency(list(self._queues))
        self._polls += 1
        if self._polls % LOW_FIRST_EVERY == 0:
            queues.reverse()
        keys = {key(queue, level): queue for queue in queues for level in reversed(Priority)}
        popped = cast("tuple[bytes, list[bytes]] | None", self._client.blmpop(POLL_SECONDS, len(keys), *keys, direction="LEFT", count=room))
        if popped:
            name = popped[0].decode()
            self._hand_over([self._delivery(name, keys[name], text) for text in popped[1]])

    def _delivery(self, name: str, queue: str, text: bytes) -> Delivery:
        letter = unwrap(text)  # moved back from the dead letters as it lay there
        return Delivery(text if letter is None else letter.body, queue, self, (name, text), letter is not None)
