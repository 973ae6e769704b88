"""Each broker as an operator sees it: how many messages lie where, and how to lose, add or cut something."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pika
import redis
from pika.adapters.blocking_connection import BlockingChannel
from pydantic import SecretStr

from brokers.dead_letters import DeadLetter, from_headers, unwrap
from brokers.queues import Queue, dead_letter_queue
from tests.servers.rabbitmq import RabbitMq
from tests.servers.redis import Redis

QUEUES = [str(queue) for queue in Queue]


class Wire(ABC):
    """One broker, cleaned before each test."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings that make Mailroom use this broker alone."""

    @abstractmethod
    def put(self, queue: str, body: bytes) -> None:
        """A message from somebody else."""

    @abstractmethod
    def depth(self, queue: str) -> int:
        """Messages waiting in a queue."""

    def dead_letters(self, queue: str) -> list[bytes]:
        """The bodies among a queue's dead letters; they stay there."""
        return [letter.body for letter in self.letters(queue)]

    @abstractmethod
    def letters(self, queue: str) -> list[DeadLetter]:
        """The same with their reasons."""

    @abstractmethod
    def lose_everything(self) -> None:
        """What an operator's purge or FLUSHALL does."""

    @abstractmethod
    def cut_connections(self) -> None:
        """Every client loses its connection; the broker stays up."""

    @abstractmethod
    def clean(self) -> None:
        """As on the first day."""


class RabbitWire(Wire):
    """RabbitMQ over a connection for each look."""

    def __init__(self, server: RabbitMq) -> None:
        self._server = server

    @property
    def settings(self) -> dict[str, Any]:
        return {"rabbitmq_url": SecretStr(self._server.url)}

    def put(self, queue: str, body: bytes) -> None:
        with self._channel() as channel:
            channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2))

    def depth(self, queue: str) -> int:
        try:
            with self._channel() as channel:
                return int(channel.queue_declare(queue, passive=True).method.message_count)
        except pika.exceptions.ChannelClosedByBroker:
            return 0

    def letters(self, queue: str) -> list[DeadLetter]:
        name = dead_letter_queue(queue)
        with self._channel() as channel:  # closing the channel puts back what was not acknowledged
            got = [channel.basic_get(name) for _ in range(self.depth(name))]
        return [from_headers(body, properties.headers or {}) for _, properties, body in got]

    def lose_everything(self) -> None:
        for queue in QUEUES:
            if self.depth(queue):
                with self._channel() as channel:
                    channel.queue_purge(queue)

    def cut_connections(self) -> None:
        self._server.close_all_connections()

    def clean(self) -> None:
        with self._channel() as channel:
            for queue in QUEUES:
                channel.queue_delete(queue)
                channel.queue_delete(dead_letter_queue(queue))

    @contextmanager
    def _channel(self) -> Iterator[BlockingChannel]:
        connection = pika.BlockingConnection(pika.URLParameters(self._server.url))
        try:
            yield connection.channel()
        finally:
            if connection.is_open:
                connection.close()


class RedisWire(Wire):
    """Redis or Valkey."""

    def __init__(self, server: Redis) -> None:
        self._server = server
        self._client = redis.Redis.from_url(server.url)

    @property
    def settings(self) -> dict[str, Any]:
        return {"redis_url": SecretStr(self._server.url)}

    def put(self, queue: str, body: bytes) -> None:
        self._client.rpush(f"mailroom:{queue}:1", body)

    def depth(self, queue: str) -> int:
        return sum(int(self._client.llen(f"mailroom:{queue}:{level}")) for level in range(3))

    def letters(self, queue: str) -> list[DeadLetter]:
        found = cast("list[bytes]", self._client.lrange(f"mailroom:{queue}.XQ", 0, -1))
        return [letter for text in found if (letter := unwrap(text))]

    def lose_everything(self) -> None:
        self._client.flushall()

    def cut_connections(self) -> None:
        self._client.client_kill_filter(_type="normal", skipme=True)

    def clean(self) -> None:
        self._client.flushall()
