"""A look at the head of a queue that leaves every message where it is."""

from __future__ import annotations

import threading
from typing import Any

from brokers.dead_letters import DeadLetter, from_headers
from brokers.rabbitmq.frames import headers_of
from brokers.rabbitmq.link import RabbitLink


class Peek:
    """Takes up to `count` messages on a channel of its own, which puts them back in their places by closing.

    Consumed and not got one by one: two round trips instead of `count`, and properties that pika cannot read do no harm.
    """

    def __init__(self, link: RabbitLink, queue: str, count: int) -> None:
        self._link = link
        self._queue = queue
        self._count = count
        self._channel: Any = None
        self.found: list[DeadLetter] = []
        self.done = threading.Event()

    def begin(self) -> None:
        """On the link's thread."""
        self._link.connection.channel(on_open_callback=self._opened)

    def end(self) -> None:
        """On the link's thread; a second time does nothing."""
        if self._channel is not None and self._channel.is_open:
            self._channel.close()

    def take(self, properties: bytes, body: bytes) -> None:
        """One message came."""
        if len(self.found) < self._count:
            self.found.append(from_headers(body, headers_of(properties)))
        if len(self.found) == self._count:
            self.end()

    def _opened(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._closed)
        channel.queue_declare(self._queue, passive=True, callback=self._counted)  # 404, no such queue, closes the channel

    def _counted(self, frame: Any) -> None:
        self._count = min(self._count, frame.method.message_count)
        if self._count == 0:
            self.end()
            return
        self._channel.basic_qos(prefetch_count=self._count)
        self._link.connection.consumers[self._channel.channel_number] = self
        self._channel.basic_consume(self._queue, lambda *_delivery: None)  # see FastConnection

    def _closed(self, channel: Any, _reason: object) -> None:
        self._link.connection.forget(channel.channel_number)
        self.done.set()
