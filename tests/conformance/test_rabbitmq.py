"""RabbitMQ's side of the wire: what a consumer settles, what it says of dead letters, and a server that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

import brokers.failover
from brokers.consumer import Delivery, Rejection, Verdict
from brokers.failover import Failover
from brokers.message import Envelope, MessageEncoder, Outgoing
from brokers.publisher import Publisher
from brokers.rabbitmq import RabbitConsumer, RabbitPublisher
from brokers.redis import RedisPublisher
from core.ids import new_id
from tests.conformance.wires import RabbitWire
from tests.servers.process import ServerFactory
from tests.servers.rabbitmq import RabbitMq
from tests.servers.redis import Redis
from tests.toys import wait_until

QUEUE, DEAD = "toys", "toys.XQ"


@pytest.fixture
def channel(rabbitmq: RabbitMq) -> Iterator[BlockingChannel]:
    """An operator's; the queues are gone at the end."""
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        channel = connection.channel()
        for queue in (QUEUE, DEAD):
            channel.queue_delete(queue)
        yield channel
        for queue in (QUEUE, DEAD):
            channel.queue_delete(queue)


class Consuming:
    """A consumer that keeps what it gets."""

    def __init__(self, url: str, *, prefetch: int = 8, together: bool = False) -> None:
        self.got: list[Delivery] = []
        self.breaks_on = b"never"
        batches = self._take_all if together else None
        self.consumer = RabbitConsumer(url, self._take, prefetch=prefetch, on_deliveries=batches)
        self.consumer.subscribe(QUEUE)
        self.consumer.start()

    def _take(self, delivery: Delivery) -> None:
        if self.breaks_on in delivery.body:
            raise RuntimeError("a bug in whoever takes it")
        self.got.append(delivery)

    def _take_all(self, deliveries: list[Delivery]) -> None:
        self.got += deliveries

    def wait_for(self, count: int) -> list[Delivery]:
        wait_until(lambda: len(self.got) >= count)
        return self.got

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.got]


Maker = Callable[..., Consuming]


@pytest.fixture
def consume(rabbitmq: RabbitMq, channel: BlockingChannel) -> Iterator[Maker]:
    made: list[Consuming] = []

    def make(*, prefetch: int = 8, together: bool = False) -> Consuming:
        made.append(Consuming(rabbitmq.url, prefetch=prefetch, together=together))
        wait_until(lambda: is_there(rabbitmq, QUEUE))
        return made[-1]

    yield make
    for each in made:
        each.consumer.stop()


def is_there(rabbitmq: RabbitMq, queue: str) -> bool:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        try:
            return connection.channel().queue_declare(queue, passive=True) is not None
        except pika.exceptions.ChannelClosedByBroker:
            return False


def depth(channel: BlockingChannel, queue: str) -> int:
    return int(channel.queue_declare(queue, passive=True).method.message_count)


def consumers(channel: BlockingChannel, queue: str) -> int:
    return int(channel.queue_declare(queue, passive=True).method.consumer_count)


def put(channel: BlockingChannel, *bodies: bytes, **properties: object) -> None:
    for body in bodies:
        channel.basic_publish("", QUEUE, body, pika.BasicProperties(delivery_mode=2, **properties))


def numbered(count: int) -> list[bytes]:
    return [f"message {number}".encode() for number in range(count)]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("order", [1, -1, 0])
def test_what_is_acknowledged_is_gone_in_whatever_order(consume: Maker, channel: BlockingChannel, order: int, together: bool) -> None:
    consuming = consume(prefetch=10, together=together)
    put(channel, *numbered(30))
    for begin in (0, 10, 20):
        batch = consuming.wait_for(begin + 10)[begin : begin + 10]
        for delivery in batch[::order] if order else batch[5:] + batch[:5]:
            consuming.consumer.settle([(delivery, Verdict.ACK)])
    wait_until(lambda: len(consuming.got) == 30)
    consuming.consumer.stop()
    assert consuming.bodies == numbered(30)
    assert depth(channel, QUEUE) == 0


def test_one_that_is_still_going_keeps_its_message_and_nobody_elses(consume: Maker, channel: BlockingChannel) -> None:
    consuming = consume(prefetch=4)
    put(channel, *numbered(200))
    settled = 1  # the first one runs for ever
    while settled < 200:
        consuming.wait_for(settled + 1)
        consuming.consumer.settle([(consuming.got[settled], Verdict.ACK)])
        settled += 1
    consuming.consumer.settle([(consuming.got[7], Verdict.ACK), (consuming.got[7], Verdict.REJECT)])  # again: no harm
    consuming.consumer.stop()
    wait_until(lambda: depth(channel, QUEUE) == 1)
    assert channel.basic_get(QUEUE)[2] == b"message 0"


def test_what_was_settled_before_the_stop_is_settled(consume: Maker, channel: BlockingChannel) -> None:
    consuming = consume(prefetch=100)
    put(channel, *numbered(100))
    got = consuming.wait_for(100)
    for number, delivery in enumerate(got):
        consuming.consumer.settle([(delivery, (Verdict.ACK, Verdict.REJECT, Verdict.REQUEUE, Rejection("why"))[number % 4])])
        if number == 79:
            break
    consuming.consumer.pause()
    consuming.consumer.stop()
    wait_until(lambda: (depth(channel, QUEUE), depth(channel, DEAD)) == (40, 40))  # 20 given back and 20 never settled


def test_many_small_settlements_cost_few_frames_and_none_while_nothing_happens(consume: Maker, channel: BlockingChannel) -> None:
    consuming = consume(prefetch=64)
    put(channel, *numbered(64))
    got = consuming.wait_for(64)
    before = consuming.consumer.connection.frames_sent
    for delivery in got:
        consuming.consumer.settle([(delivery, Verdict.ACK)])
    wait_until(lambda: depth(channel, QUEUE) == 0)
    time.sleep(0.05)
    assert consuming.consumer.connection.frames_sent - before <= 16
    polled = consuming.consumer.connection.ioloop._poller.poll
    turns: list[None] = []

    def poll() -> None:
        turns.append(None)
        polled()

    consuming.consumer.connection.ioloop._poller.poll = poll
    time.sleep(0.5)
    assert len(turns) <= 2


def test_a_rejection_with_a_reason_is_a_copy_that_keeps_what_came_along(consume: Maker, channel: BlockingChannel) -> None:
    consuming = consume()
    put(channel, b"from afar", headers={"trace": "7"}, priority=2, content_type="text/plain")
    put(channel, b"plain")
    put(channel, b"native")
    got = consuming.wait_for(3)
    by_body = {delivery.body: delivery for delivery in got}
    consuming.consumer.settle([(by_body[b"from afar"], Rejection("bad_signature")), (by_body[b"plain"], Rejection("unsigned"))])
    consuming.consumer.settle([(by_body[b"native"], Verdict.REJECT)])
    wait_until(lambda: depth(channel, DEAD) == 3)
    found = {body: properties for _, properties, body in (channel.basic_get(DEAD, auto_ack=True) for _ in range(3))}
    first = found[b"from afar"]
    assert first.headers["x-mailroom-reason"] == "bad_signature"
    assert (first.headers["trace"], first.priority, first.content_type, first.delivery_mode) == ("7", 2, "text/plain", 2)
    assert found[b"plain"].headers["x-mailroom-reason"] == "unsigned"
    assert "x-mailroom-reason" not in found[b"native"].headers
    assert found[b"native"].headers["x-death"][0]["reason"] == "rejected"
    assert depth(channel, QUEUE) == 0


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Rejection("unsigned")])
def test_a_message_moved_back_from_the_dead_letters_says_so(consume: Maker, channel: BlockingChannel, verdict: Verdict | Rejection) -> None:
    consuming = consume()
    put(channel, b"one")
    (delivery,) = consuming.wait_for(1)
    assert not delivery.was_dead
    consuming.consumer.settle([(delivery, verdict)])
    wait_until(lambda: depth(channel, DEAD) == 1)
    _, properties, body = channel.basic_get(DEAD, auto_ack=True)
    channel.basic_publish("", QUEUE, body, properties)
    put(channel, b"with headers", headers={"trace": "7"})
    _, again, other = consuming.wait_for(3)
    assert (again.body, again.was_dead, other.was_dead) == (b"one", True, False)


def test_one_that_nobody_can_take_is_a_dead_letter_and_the_next_is_taken(consume: Maker, channel: BlockingChannel) -> None:
    consuming = consume()
    consuming.breaks_on = b"poison"
    put(channel, b"poison", b"food", b"more poison", b"more food")
    wait_until(lambda: depth(channel, DEAD) == 2)
    assert consuming.bodies == [b"food", b"more food"]


def test_bodies_of_any_size_arrive(consume: Maker, channel: BlockingChannel, rabbitmq: RabbitMq) -> None:
    consuming = consume(prefetch=20)
    bodies = [b"." * size for size in (0, 1, 131_063, 131_064, 131_065, 400_000)]
    publisher = RabbitPublisher(rabbitmq.url)
    publisher.start()
    assert publisher.ready.wait(30)
    assert publisher.publish([Outgoing(QUEUE, body) for body in bodies]) == []
    publisher.stop()
    consuming.wait_for(len(bodies))
    assert consuming.bodies == bodies


def test_pausing_and_going_on(consume: Maker, channel: BlockingChannel) -> None:
    consuming = consume()
    put(channel, b"first")
    consuming.wait_for(1)
    consuming.consumer.pause()
    time.sleep(0.2)
    put(channel, b"second")
    time.sleep(0.2)
    assert consuming.bodies == [b"first"]
    consuming.consumer.resume()
    consuming.wait_for(2)
    consuming.consumer.settle([(delivery, Verdict.ACK) for delivery in consuming.got])
    consuming.consumer.stop()
    assert depth(channel, QUEUE) == 0


def test_a_queue_that_somebody_deletes_is_consumed_again(consume: Maker, channel: BlockingChannel, rabbitmq: RabbitMq) -> None:
    consuming = consume()
    put(channel, b"first")
    consuming.wait_for(1)
    channel.queue_delete(QUEUE)
    wait_until(lambda: is_there(rabbitmq, QUEUE))
    put(channel, b"second")
    consuming.wait_for(2)
    consuming.consumer.settle([(delivery, Verdict.ACK) for delivery in consuming.got])  # the first one's channel is gone
    wait_until(lambda: depth(channel, QUEUE) == 0)


def test_dead_letters_are_looked_at_and_stay(rabbitmq: RabbitMq, channel: BlockingChannel) -> None:
    publisher = RabbitPublisher(rabbitmq.url)
    publisher.start()
    assert publisher.ready.wait(30)
    assert publisher.dead_letters(QUEUE) == []
    assert publisher.publish([Outgoing(DEAD, body, declared=QUEUE, reason="worker_lost") for body in numbered(5)]) == []
    assert publisher.dead_letters(QUEUE, 0) == []
    for _ in range(2):
        found = publisher.dead_letters(QUEUE, 3)
        assert found is not None
        assert [(letter.body, letter.reason) for letter in found] == [(body, "worker_lost") for body in numbered(3)]
        assert abs((found[0].died_at or 0) - time.time()) < 5
    assert [letter.body for letter in publisher.dead_letters(QUEUE, 99) or []] == numbered(5)
    wait_until(lambda: depth(channel, DEAD) == 5)
    publisher.stop()
    assert publisher.dead_letters(QUEUE) is None


# A server that hangs, on one that is this test's alone.


@pytest.fixture
def frozen_failover(own_server: ServerFactory, redis_server: Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RabbitMq, Failover]]:
    monkeypatch.setattr(brokers.failover, "PROBE_SECONDS", 0.2)
    server = own_server(RabbitMq)
    server.start()
    failover = Failover(RabbitPublisher(server.url), RedisPublisher(redis_server.url))
    yield server, failover
    server.thaw()
    failover.close()


def test_a_rabbitmq_that_hangs_blocks_no_caller_and_gives_the_batch_to_redis(frozen_failover: tuple[RabbitMq, Failover]) -> None:
    server, failover = frozen_failover
    deferred: list[str] = []
    publisher = Publisher(MessageEncoder({"k1": bytes(32)}), lambda: failover, deferred.extend)
    envelope = Envelope(new_id(), "add", QUEUE, new_id())
    publisher.publish([envelope])
    assert publisher.flush()
    assert failover.rabbitmq_in_use
    server.freeze()
    in_redis = failover.redis.depth(QUEUE) if failover.redis else None
    assert in_redis is not None
    began = time.monotonic()
    publisher.publish([envelope] * 100)
    assert time.monotonic() - began < 4
    assert publisher.flush(20)
    assert 4.5 < time.monotonic() - began < 20
    began = time.monotonic()
    for _ in range(5):
        publisher.publish([envelope] * 10)
        assert publisher.flush(20)
    assert time.monotonic() - began < 15  # they do not wait for the same server
    assert failover.redis is not None
    assert failover.redis.depth(QUEUE) == in_redis + 150
    assert not failover.rabbitmq_in_use
    server.thaw()
    wait_until(lambda: failover.rabbitmq_in_use, timeout=30)
    publisher.publish([envelope])
    assert publisher.flush()
    assert failover.redis.depth(QUEUE) == in_redis + 150
    assert deferred == []


def test_an_alarm_of_the_server_gives_the_batch_to_redis_at_once(frozen_failover: tuple[RabbitMq, Failover]) -> None:
    server, failover = frozen_failover
    messages = [Outgoing(QUEUE, body) for body in numbered(10)]
    assert failover.publish(messages) == []
    server.ctl("set_vm_memory_high_watermark", "0.000001")
    time.sleep(1)
    assert failover.redis is not None
    before = failover.redis.depth(QUEUE)
    began = time.monotonic()
    assert failover.publish(messages) == []
    assert time.monotonic() - began < 4
    assert failover.redis.depth(QUEUE) == (before or 0) + 10
    time.sleep(1)
    assert not failover.rabbitmq_in_use
    server.ctl("set_vm_memory_high_watermark", "0.4")
    wait_until(lambda: failover.rabbitmq_in_use, timeout=20)


def test_stopping_does_not_wait_for_a_server_that_hangs(own_server: ServerFactory) -> None:
    server = own_server(RabbitMq)
    server.start()
    consuming = Consuming(server.url)
    wait_until(consuming.consumer.ready.is_set)
    server.freeze()
    began = time.monotonic()
    consuming.consumer.stop()
    assert time.monotonic() - began < 20
    assert not consuming.consumer.is_alive()
    server.thaw()


def test_two_connections_serve_a_process(rabbitmq: RabbitMq, channel: BlockingChannel) -> None:
    before = len(rabbitmq.ctl("list_connections", "pid").split())
    consumer = RabbitConsumer(rabbitmq.url, lambda _delivery: None, prefetch=4)
    for queue in (QUEUE, "toys2", "toys3"):
        consumer.subscribe(queue)
    publisher = RabbitPublisher(rabbitmq.url)
    for link in (consumer, publisher):
        link.start()
        assert link.ready.wait(30)
    assert publisher.publish([Outgoing("toys3", b"one")]) == []
    assert len(rabbitmq.ctl("list_connections", "pid").split()) == before + 2
    for link in (consumer, publisher):
        link.stop()
    for queue in ("toys2", "toys3"):
        for name in (queue, f"{queue}.XQ"):
            channel.queue_delete(name)


def test_a_queue_has_one_consumer_although_it_is_asked_for_twice_at_once(
    consume: Maker, rabbitmq: RabbitMq, channel: BlockingChannel
) -> None:
    consuming = consume()
    wait_until(consuming.consumer.ready.is_set)
    for queue in ("toys2", "toys2", "toys3"):
        consuming.consumer.subscribe(queue)
    wait_until(lambda: is_there(rabbitmq, "toys3") and consumers(channel, "toys3") == 1)  # the last of them
    assert consumers(channel, "toys2") == 1
    consuming.consumer.stop()
    for queue in ("toys2", "toys3"):
        for name in (queue, f"{queue}.XQ"):
            channel.queue_delete(name)


def test_settling_from_many_threads_loses_nothing(consume: Maker, channel: BlockingChannel, rabbitmq: RabbitMq) -> None:
    consuming = consume(prefetch=16)
    put(channel, *numbered(2000))
    todo = iter(range(2000))
    lock = threading.Lock()

    def settle() -> None:
        while True:
            with lock:
                number = next(todo, None)
            if number is None:
                return
            delivery = consuming.wait_for(number + 1)[number]
            consuming.consumer.settle([(delivery, Verdict.ACK)])

    threads = [threading.Thread(target=settle) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    wait_until(lambda: RabbitWire(rabbitmq).depth(QUEUE) == 0)
    consuming.consumer.stop()
    assert depth(channel, QUEUE) == 0
