"""Publishes batches with pipelined confirms: persistent, mandatory, and no round trip per message."""

from __future__ import annotations

import collections
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pika

from brokers.message import Outgoing
from brokers.rabbitmq.link import RabbitLink, declare
from core.logging import get_logger

log = get_logger(__name__)
CONFIRM_SECONDS = 5.0
PROPERTIES = [pika.BasicProperties(delivery_mode=2, content_type="application/json", priority=level) for level in range(3)]


@dataclass(eq=False)
class _Batch:
    """Done when each message is confirmed or known to have failed."""

    waiting: int
    failed: list[Outgoing] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def settle(self, failed: Outgoing | None) -> None:
        if failed is not None:
            self.failed.append(failed)
        self.waiting -= 1
        if self.waiting == 0:
            self.done.set()


class RabbitPublisher(RabbitLink):
    """One connection, one channel in confirm mode."""

    def __init__(self, url: str, *, queue_type: str = "classic") -> None:
        super().__init__("rabbitmq-publisher", url, queue_type)
        self._channel: Any = None
        self._declared: set[str] = set()
        self._unconfirmed: collections.OrderedDict[int, tuple[_Batch, Outgoing]] = collections.OrderedDict()
        self._returned: set[bytes] = set()
        self._next_tag = 1

    def publish(self, messages: Sequence[Outgoing], timeout: float = CONFIRM_SECONDS) -> list[Outgoing]:
        """Returns those RabbitMQ did not confirm in time. A late confirm then makes a duplicate, which a claim tells apart."""
        if not messages:
            return []
        if not self.ready.is_set():
            return list(messages)
        batch = _Batch(len(messages))
        if not self.call_soon(lambda: self._declare_then_send(batch, messages)):
            return list(messages)
        if not batch.done.wait(timeout):
            log.warning("rabbitmq_confirm_late", messages=len(messages))
            self.call_soon(self._give_up)
            return list(messages)
        return batch.failed

    def depth(self, queue: str, timeout: float = 2.0) -> int | None:
        """Messages ready in a queue; 0 for one that does not exist; None when nobody can say."""
        answer: list[int] = []
        done = threading.Event()

        def asked(channel: Any) -> None:
            def counted(frame: Any) -> None:
                answer.append(frame.method.message_count)
                channel.close()
                done.set()

            def closed(_channel: Any, _reason: object) -> None:  # 404: no such queue
                if not answer and self.connection.is_open:
                    answer.append(0)
                done.set()

            channel.add_on_close_callback(closed)
            channel.queue_declare(queue, passive=True, callback=counted)

        if not self.ready.is_set() or not self.call_soon(lambda: self.connection.channel(on_open_callback=asked)):
            return None
        return answer[0] if done.wait(timeout) and answer else None

    def on_open(self) -> None:
        """Opens the channel in confirm mode; only then is the publisher ready."""

        def opened(channel: Any) -> None:
            self._channel, self._next_tag = channel, 1
            self._declared.clear()
            channel.add_on_return_callback(lambda _channel, _method, _properties, body: self._returned.add(body))
            channel.add_on_close_callback(lambda _channel, _reason: self.connection.is_open and self.connection.close())
            channel.confirm_delivery(self._on_confirm, callback=lambda _frame: self.ready.set())

        self.connection.channel(on_open_callback=opened)

    def on_lost(self) -> None:
        """Whatever was not confirmed may be lost: its batch is told so."""
        waiting, self._unconfirmed = self._unconfirmed, collections.OrderedDict()
        self._returned.clear()
        for batch, message in waiting.values():
            batch.settle(message)

    def _declare_then_send(self, batch: _Batch, messages: Sequence[Outgoing]) -> None:
        missing = {message.declared or message.routing_key for message in messages} - self._declared
        if not missing:
            self._send(batch, messages)
            return
        queue = min(missing)

        def declared(_frame: object) -> None:
            self._declared.add(queue)
            self._declare_then_send(batch, messages)

        declare(self._channel, queue, self.queue_type, callback=declared)

    def _send(self, batch: _Batch, messages: Sequence[Outgoing]) -> None:
        for message in messages:
            self._unconfirmed[self._next_tag] = (batch, message)
            self._next_tag += 1
            self._channel.basic_publish("", message.routing_key, message.body, PROPERTIES[message.priority], mandatory=True)

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        nacked = isinstance(method, pika.spec.Basic.Nack)
        for tag in self._confirmed_tags(method.delivery_tag, multiple=method.multiple):
            batch, message = self._unconfirmed.pop(tag)
            unroutable = message.body in self._returned  # returned first, then confirmed
            if unroutable:
                self._returned.discard(message.body)
                self._declared.discard(message.declared or message.routing_key)  # the queue is gone; declare it next time
            batch.settle(message if nacked or unroutable else None)

    def _confirmed_tags(self, last: int, *, multiple: bool) -> list[int]:
        if not multiple:
            return [last]
        tags = []
        for tag in self._unconfirmed:
            if tag > last:
                break
            tags.append(tag)
        return tags

    def _give_up(self) -> None:
        """A confirm that does not come means a connection that is not worth keeping."""
        if self.connection.is_open:
            self.connection.close()
