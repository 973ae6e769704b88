"""Which lists a consumer asks Redis for, without a Redis."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

import brokers.redis
from brokers.queues import Queue
from brokers.redis import RedisConsumer, key

ROUNDS = 300


class AskedRedis:
    """Notes the lists of the last question; has nothing in them."""

    def __init__(self) -> None:
        self.asked: tuple[str, ...] = ()
        self.was_asked = threading.Event()

    def blmpop(self, _timeout: float, _number: int, *keys: str, direction: str, count: int) -> None:
        self.asked = keys
        self.was_asked.set()

    def close(self) -> None: ...


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that take turns after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_no_queue_is_forgotten_although_all_are_subscribed_at_the_same_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(ROUNDS):
        asked = asked_after_subscribing_at_once(monkeypatch)
        assert {name for name in asked if name.endswith(":1")} == {key(queue) for queue in Queue}


def asked_after_subscribing_at_once(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    client = AskedRedis()
    monkeypatch.setattr(brokers.redis, "connect", lambda _url: client)
    consumer = RedisConsumer("redis://nobody", lambda _delivery: None, lambda: 1)
    start = threading.Barrier(len(Queue))

    def subscribe(queue: str) -> None:
        start.wait()
        consumer.subscribe(queue)

    threads = [threading.Thread(target=subscribe, args=(queue,)) for queue in Queue]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    consumer.start()
    assert client.was_asked.wait(10)
    consumer.stop()
    return client.asked
