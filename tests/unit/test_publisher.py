"""The process' publisher and the failover between brokers: what is taken, what waits, and when RabbitMQ is asked again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

import brokers.failover
from brokers.consumer import Delivery, Rejection, Verdict, settle_all
from brokers.failover import Failover
from brokers.message import Envelope, MessageEncoder, Outgoing
from brokers.publisher import MAX_BATCH, Publisher
from brokers.stub import StubBroker, StubConsumer
from core.ids import new_id
from tests.toys import wait_until

ENCODER = MessageEncoder({"k1": bytes(32)})
TENANT = new_id()


def envelope(queue: str = "default") -> Envelope:
    return Envelope(new_id(), "add", queue, TENANT)


class Sink(StubBroker):
    """Remembers the size of each batch; `gate` holds it up; `breaks` raises."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.breaks = False
        self.closed = 0

    def publish(self, messages: Sequence[Outgoing]) -> list[Outgoing]:
        self.gate.wait(30)
        self.batches.append(len(messages))
        if self.breaks:
            raise RuntimeError("a bug in the sink")
        return super().publish(messages)

    def close(self) -> None:
        self.closed += 1


class Publishing:
    def __init__(self) -> None:
        self.sink = Sink()
        self.opened = 0
        self.unpublished: list[str] = []
        self.publisher = Publisher(ENCODER, self._open, self.unpublished.extend)

    def _open(self) -> Sink:
        self.opened += 1
        return self.sink


@pytest.fixture
def publishing() -> Any:
    made = Publishing()
    yield made
    made.sink.gate.set()
    made.publisher.close()


def test_nothing_is_opened_before_the_first_message(publishing: Publishing) -> None:
    assert publishing.opened == 0
    publishing.publisher.publish([envelope()])
    assert publishing.publisher.flush()
    publishing.publisher.publish([envelope()])
    assert publishing.publisher.flush()
    assert publishing.opened == 1
    assert len(publishing.sink.queues["default"]) == 2


def test_what_gathers_meanwhile_goes_as_one_batch_and_none_is_too_large(publishing: Publishing) -> None:
    publishing.sink.gate.clear()
    publishing.publisher.publish([envelope()])
    time.sleep(0.05)  # the thread stands at the gate with the first one
    publishing.publisher.publish([envelope() for _ in range(MAX_BATCH + 200)])
    publishing.sink.gate.set()
    assert publishing.publisher.flush()
    assert publishing.sink.batches == [1, MAX_BATCH, 200]


def test_publishing_never_blocks(publishing: Publishing) -> None:
    publishing.sink.gate.clear()
    began = time.monotonic()
    publishing.publisher.publish([envelope() for _ in range(100)])
    assert time.monotonic() - began < 15
    assert publishing.publisher.flush(0.05) is False


def test_what_no_broker_takes_is_reported(publishing: Publishing) -> None:
    publishing.sink.is_down = True
    lost = [envelope(), envelope()]
    publishing.publisher.publish(lost)
    assert publishing.publisher.flush()
    assert publishing.unpublished == [each.run_id for each in lost]
    another = envelope()
    assert publishing.publisher.publish_now([another]) == [another.run_id]
    assert publishing.publisher.publish_now([]) == []


def test_the_thread_outlives_an_error(publishing: Publishing) -> None:
    publishing.sink.breaks = True
    publishing.publisher.publish([envelope()])
    assert publishing.publisher.flush()
    publishing.sink.breaks = False
    publishing.publisher.publish([envelope()])
    assert publishing.publisher.flush()
    assert publishing.sink.published == 1


def test_closing_sends_what_is_left_and_it_can_be_opened_again(publishing: Publishing) -> None:
    publishing.publisher.publish([envelope() for _ in range(50)])
    publishing.publisher.close()
    assert (publishing.sink.published, publishing.sink.closed) == (50, 1)
    publishing.publisher.close()
    publishing.publisher.publish([envelope()])
    assert publishing.publisher.flush()
    assert publishing.opened == 2


def test_a_dead_letter_goes_to_the_dead_letters(publishing: Publishing) -> None:
    publishing.publisher.publish_dead_letter(envelope("sync"))
    assert list(publishing.sink.queues) == ["sync.XQ"]
    assert publishing.publisher.depth("sync") == 0
    publishing.publisher.publish_dead_letter(envelope("sync"), "hard_limit")
    assert [letter.reason for letter in publishing.publisher.dead_letters("sync") or []] == ["worker_lost", "hard_limit"]


def test_a_broker_that_opens_slowly_keeps_no_caller_waiting() -> None:
    sink, opened = Sink(), threading.Event()

    def open_slowly() -> Sink:
        opened.wait(30)
        return sink

    publisher = Publisher(ENCODER, open_slowly, lambda _run_ids: None)
    began = time.monotonic()
    for _ in range(3):
        publisher.publish([envelope()])
    assert time.monotonic() - began < 15
    opened.set()
    assert publisher.flush()
    assert sink.published == 3
    publisher.close()


# Failover. The brokers are stubs with the few members that Failover asks for.


class FakeRabbit(StubBroker):
    def __init__(self, *, up: bool = True) -> None:
        super().__init__()
        self.is_down = not up
        self.ready = threading.Event()
        if up:
            self.ready.set()
        self.started = self.stopped = False

    def start(self) -> None:
        self.started = True

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def make_failover(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(brokers.failover, "PROBE_SECONDS", 0.02)
    monkeypatch.setattr(brokers.failover, "FIRST_CONNECT_SECONDS", 0.01)
    made: list[Failover] = []

    def make(rabbitmq: FakeRabbit | None, redis: StubBroker | None) -> Failover:
        made.append(Failover(cast("Any", rabbitmq), cast("Any", redis)))
        return made[-1]

    yield make
    for each in made:
        each.close()


Maker = Callable[[FakeRabbit | None, StubBroker | None], Failover]


def message(queue: str = "default") -> Outgoing:
    return Outgoing(queue, ENCODER.pack(envelope(queue)))


def test_rabbitmq_takes_everything_while_it_can(make_failover: Maker) -> None:
    rabbit, redis = FakeRabbit(), StubBroker()
    failover = make_failover(rabbit, redis)
    assert failover.publish([message(), message()]) == []
    assert (rabbit.published, redis.published, failover.rabbitmq_in_use) == (2, 0, True)


def test_redis_takes_over_and_rabbitmq_comes_back_after_good_probes(make_failover: Maker) -> None:
    rabbit, redis = FakeRabbit(), StubBroker()
    failover = make_failover(rabbit, redis)
    rabbit.is_down = True
    assert failover.publish([message()]) == []
    assert (redis.published, failover.rabbitmq_in_use) == (1, False)
    time.sleep(0.15)
    assert not failover.rabbitmq_in_use  # its probes fail
    rabbit.is_down = False
    assert failover.publish([message()]) == []
    assert redis.published == 2  # not at the first good word
    wait_until(lambda: failover.rabbitmq_in_use)
    assert failover.publish([message()]) == []
    assert rabbit.published == 1


def test_a_queue_that_was_deleted_is_no_reason_to_leave_rabbitmq(make_failover: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    rabbit, redis = FakeRabbit(), StubBroker()
    failover = make_failover(rabbit, redis)
    publish, calls = rabbit.publish, []

    def returned_once(messages: Sequence[Outgoing]) -> list[Outgoing]:
        calls.append(len(messages))
        return list(messages[1:]) if len(calls) == 1 else publish(messages)

    monkeypatch.setattr(rabbit, "publish", returned_once)
    assert failover.publish([message(), message(), message()]) == []
    assert (calls, rabbit.published, redis.published, failover.rabbitmq_in_use) == ([3, 2], 2, 0, True)


def test_the_dead_letters_are_those_of_both_brokers(make_failover: Maker) -> None:
    rabbit, redis = FakeRabbit(), StubBroker()
    failover = make_failover(rabbit, redis)
    for broker, reason in ((rabbit, "unsigned"), (redis, "too_large")):
        broker.publish([Outgoing("default.XQ", reason.encode(), declared="default", reason=reason)])
    assert [letter.reason for letter in failover.dead_letters("default") or []] == ["unsigned", "too_large"]
    redis.is_down = True
    assert failover.dead_letters("default") is None


def test_one_bad_probe_starts_the_count_again(make_failover: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    rabbit, answers = FakeRabbit(), iter([1, 1, None, 1, 1, 1])
    asked: list[int | None] = []

    def depth(_queue: str) -> int | None:
        asked.append(next(answers))
        return asked[-1]

    monkeypatch.setattr(rabbit, "depth", depth)
    failover = make_failover(rabbit, StubBroker())
    rabbit.is_down = True
    failover.publish([message()])
    wait_until(lambda: failover.rabbitmq_in_use)
    assert asked == [1, 1, None, 1, 1, 1]


def test_with_both_brokers_down_the_messages_come_back(make_failover: Maker) -> None:
    rabbit, redis = FakeRabbit(up=False), StubBroker()
    redis.is_down = True
    messages = [message(), message()]
    assert make_failover(rabbit, redis).publish(messages) == messages
    lone = FakeRabbit(up=False)
    failover = make_failover(lone, None)
    assert failover.publish(messages) == messages
    lone.is_down = False
    assert failover.publish(messages) == []  # alone, it is always asked


def test_either_broker_may_be_absent(make_failover: Maker) -> None:
    redis = StubBroker()
    failover = make_failover(None, redis)
    assert failover.publish([message()]) == []
    assert (redis.published, failover.rabbitmq_in_use, failover.depth("default")) == (1, False, 1)


def test_the_depth_is_unknown_while_one_broker_cannot_be_asked(make_failover: Maker) -> None:
    rabbit, redis = FakeRabbit(), StubBroker()
    failover = make_failover(rabbit, redis)
    rabbit.publish([message()])
    redis.publish([message()])
    assert failover.depth("default") == 2
    redis.is_down = True
    assert failover.depth("default") is None


def test_closing_closes_both(make_failover: Maker) -> None:
    rabbit = FakeRabbit()
    failover = make_failover(rabbit, StubBroker())
    failover.close()
    assert (rabbit.started, rabbit.stopped) == (True, True)


# The stub itself: it stands for a broker in every unit test, so it must behave like one.


def test_the_stub_delivers_settles_and_loses() -> None:
    broker, got = StubBroker(), list[Delivery]()
    consumer = StubConsumer(broker, got.append)
    consumer.subscribe("default")
    consumer.start()
    broker.publish([message(), message(), message()])
    wait_until(lambda: len(got) == 3)
    settle_all([(got[0], Verdict.ACK), (got[1], Rejection("unsigned"))])
    assert [(letter.body, letter.reason) for letter in broker.dead_letters("default") or []] == [(got[1].body, "unsigned")]
    consumer.pause()
    time.sleep(0.1)  # a look that was under way is over
    settle_all([(got[2], Verdict.REQUEUE)])
    time.sleep(0.1)
    assert broker.depth("default") == 1
    assert broker.lose_everything() == 2
    consumer.resume()
    broker.publish([message()])
    wait_until(lambda: len(got) == 4)
    consumer.stop()
    assert [verdict for _, verdict in consumer.settled] == [Verdict.ACK, Verdict.REJECT, Verdict.REQUEUE]
