"""Each broker's own ways to say no: an unreachable one, one that evicts, a queue that is gone."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pika
import pytest
import redis

from brokers.consumer import Delivery, Rejection, Verdict
from brokers.message import Outgoing
from brokers.rabbitmq import RabbitPublisher
from brokers.redis import RedisConsumer, RedisPublisher, check_server, dead_key, key
from core.errors import ConfigurationError
from tests.servers.process import free_port
from tests.servers.rabbitmq import RabbitMq
from tests.servers.redis import Redis
from tests.toys import wait_until

MESSAGES = [Outgoing("toys", f"body {number}".encode()) for number in range(3)]


@pytest.fixture
def rabbit_publisher(rabbitmq: RabbitMq) -> Iterator[RabbitPublisher]:
    publisher = RabbitPublisher(rabbitmq.url)
    publisher.start()
    assert publisher.ready.wait(30)
    yield publisher
    publisher.stop()
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        for queue in ("toys", "toys.XQ"):
            connection.channel().queue_delete(queue)


def test_rabbitmq_confirms_what_it_took_and_counts_it(rabbit_publisher: RabbitPublisher) -> None:
    assert rabbit_publisher.publish([]) == []
    assert rabbit_publisher.publish(MESSAGES) == []
    assert rabbit_publisher.depth("toys") == 3
    assert rabbit_publisher.depth("nobody") == 0


def test_a_message_for_a_queue_that_is_gone_comes_back_and_the_next_declares_it(
    rabbit_publisher: RabbitPublisher, rabbitmq: RabbitMq
) -> None:
    assert rabbit_publisher.publish(MESSAGES) == []
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        connection.channel().queue_delete("toys")
    assert rabbit_publisher.publish(MESSAGES) == MESSAGES
    assert rabbit_publisher.publish(MESSAGES) == []
    assert rabbit_publisher.depth("toys") == 3


def test_a_confirm_that_is_late_gives_up_the_connection_and_the_messages_come_back(rabbit_publisher: RabbitPublisher) -> None:
    before = rabbit_publisher.connection
    assert rabbit_publisher.publish(MESSAGES, timeout=0) == MESSAGES
    wait_until(lambda: rabbit_publisher.connection is not before and rabbit_publisher.ready.is_set())
    assert rabbit_publisher.publish(MESSAGES) == []


def test_an_unreachable_rabbitmq_takes_nothing_and_counts_nothing() -> None:
    publisher = RabbitPublisher(f"amqp://127.0.0.1:{free_port()}/")
    publisher.start()
    assert publisher.publish(MESSAGES) == MESSAGES
    assert publisher.depth("toys") is None
    publisher.stop()
    assert not publisher.is_alive()


def test_an_unreachable_redis_takes_nothing_and_counts_nothing() -> None:
    publisher = RedisPublisher(f"redis://127.0.0.1:{free_port()}/0")
    assert publisher.publish(MESSAGES) == MESSAGES
    assert publisher.publish([]) == []
    assert (publisher.depth("toys"), publisher.is_reachable()) == (None, False)
    publisher.close()


@pytest.fixture(params=["redis_server", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    found: Redis = request.getfixturevalue(request.param)
    client = redis.Redis.from_url(found.url)
    yield client
    client.config_set("maxmemory-policy", "noeviction")
    client.flushall()


def url_of(client: redis.Redis) -> str:
    return f"redis://127.0.0.1:{client.get_connection_kwargs()['port']}/0"


def test_a_redis_that_evicts_stops_the_start(server: redis.Redis) -> None:
    check_server(url_of(server))
    server.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigurationError, match="maxmemory-policy noeviction"):
        check_server(url_of(server))


def test_a_redis_that_does_not_answer_is_no_reason_not_to_start() -> None:
    check_server(f"redis://127.0.0.1:{free_port()}/0")


def test_redis_takes_counts_and_says_so(server: redis.Redis) -> None:
    publisher = RedisPublisher(url_of(server))
    assert publisher.is_reachable()
    assert publisher.publish(MESSAGES) == []
    assert publisher.depth("toys") == 3
    publisher.close()


def consume(server: redis.Redis, got: list[Delivery], *, breaks_on: bytes = b"never") -> RedisConsumer:
    def take(delivery: Delivery) -> None:
        if breaks_on in delivery.body:
            raise RuntimeError("a bug in whoever takes it")
        got.append(delivery)

    consumer = RedisConsumer(url_of(server), take, lambda: 10)
    consumer.subscribe("toys")
    consumer.start()
    return consumer


def test_a_dead_letter_in_redis_has_its_reason_and_stays_when_looked_at(server: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brokers.redis.POLL_SECONDS", 0.1)
    got: list[Delivery] = []
    consumer, publisher = consume(server, got), RedisPublisher(url_of(server))
    bodies = [b"first", b'{"second": "\xc3\xbc"}', b"\xff\x00 third"]
    publisher.publish([Outgoing("toys", body) for body in bodies])
    wait_until(lambda: len(got) == 3)
    consumer.settle(zip(got, (Rejection("unsigned"), Verdict.REJECT, Rejection("not_json")), strict=True))
    publisher.publish([Outgoing("toys.XQ", b"fourth", declared="toys", reason="worker_lost")])
    for _ in range(2):
        letters = publisher.dead_letters("toys", 10)
        assert letters is not None
        assert [(letter.reason, letter.body) for letter in letters] == [
            ("worker_lost", b"fourth"),
            ("not_json", bodies[2]),
            (None, bodies[1]),
            ("unsigned", bodies[0]),
        ]
        assert all(abs((letter.died_at or 0) - time.time()) < 5 for letter in letters)
    assert [letter.body for letter in publisher.dead_letters("toys", 1) or []] == [b"fourth"]
    assert (publisher.dead_letters("toys", 0), publisher.dead_letters("nobody")) == ([], [])
    assert 0 < server.pttl(dead_key("toys")) <= 7 * 86_400_000
    consumer.stop()
    publisher.close()


def test_a_message_moved_back_in_redis_says_so_and_is_as_it_was(server: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brokers.redis.POLL_SECONDS", 0.1)
    got: list[Delivery] = []
    consumer = consume(server, got)
    server.rpush(key("toys"), b"one")
    wait_until(lambda: len(got) == 1)
    consumer.settle([(got[0], Rejection("unsigned"))])
    server.lmove(dead_key("toys"), key("toys"))
    wait_until(lambda: len(got) == 2)
    consumer.pause()
    time.sleep(0.2)
    consumer.settle([(got[1], Verdict.REQUEUE)])  # it goes back as it came
    consumer.resume()
    wait_until(lambda: len(got) == 3)
    server.rpush(key("toys"), b'{"x-mailroom-reason":"but the rest is missing"}')
    wait_until(lambda: len(got) == 4)
    assert [(delivery.body[:20], delivery.was_dead) for delivery in got] == [
        (b"one", False),
        (b"one", True),
        (b"one", True),
        (b'{"x-mailroom-reason"', False),
    ]
    consumer.stop()


def test_redis_keeps_no_more_dead_letters_than_it_should(server: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brokers.redis.DEAD_LETTERS_KEPT", 3)
    publisher = RedisPublisher(url_of(server))
    publisher.publish([Outgoing("toys.XQ", str(number).encode(), declared="toys", reason="x") for number in range(5)])
    assert [letter.body for letter in publisher.dead_letters("toys") or []] == [b"4", b"3", b"2"]
    publisher.close()


def test_one_that_nobody_can_take_is_a_dead_letter_of_redis(server: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brokers.redis.POLL_SECONDS", 0.1)
    got: list[Delivery] = []
    consumer, publisher = consume(server, got, breaks_on=b"poison"), RedisPublisher(url_of(server))
    publisher.publish([Outgoing("toys", body) for body in (b"poison", b"food")])
    wait_until(lambda: len(got) == 1 and publisher.dead_letters("toys"))
    assert [(letter.body, letter.reason) for letter in publisher.dead_letters("toys") or []] == [(b"poison", "not_taken")]
    consumer.stop()
    publisher.close()
