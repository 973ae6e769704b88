"""Each broker's own ways to say no: an unreachable one, one that evicts, a queue that is gone."""

from __future__ import annotations

from collections.abc import Iterator

import pika
import pytest
import redis

from brokers.message import Outgoing
from brokers.rabbitmq import RabbitPublisher
from brokers.redis import RedisPublisher, check_server
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
    assert publisher.ready.wait(10)
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
