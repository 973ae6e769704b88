"""Publishes batches with pipelined confirms: persistent, mandatory, and no round trip per message."""

from __future__ import annotations

import collections
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pika

from brokers.dead_letters import DeadLetter, reasoned
from brokers.message import Outgoing
from brokers.queues import dead_letter_queue
from brokers.rabbitmq.frames import Arrival, Confirm, publications
from brokers.rabbitmq.link import RabbitLink, declare
from brokers.rabbitmq.peek import Peek
from core.logging import get_logger

log = get_logger(__name__)
CONFIRM_SECONDS = 5.0
ANSWER_SECONDS = 2.0
TOGETHER = 500
"""How many messages go to the socket in one piece: what a send leaves over is copied."""


@dataclass(eq=False)
class _Batch:
    """Done when each message is confirmed or known to have failed."""

    messages: Sequence[Outgoing]
    first_tag: int = 0
    waiting: int = 0
    failed: list[Outgoing] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def settle(self, failed: Outgoing | None = None) -> None:
        if failed is not None:
            self.failed.append(failed)
        self.waiting -= 1
        if self.waiting == 0:
            self.done.set()

    def fail(self) -> None:
        self.failed = list(self.messages)
        self.done.set()


class RabbitPublisher(RabbitLink):
    """One connection, one channel in confirm mode."""

    def __init__(self, url: str, *, queue_type: str = "classic") -> None:
        super().__init__("rabbitmq-publisher", url, queue_type)
        self._channel: Any = None
        self._declared: set[str] = set()
        self._batches: set[_Batch] = set()  # on their way: declaring or unconfirmed
        self._unconfirmed: dict[int, _Batch] = {}  # by tag
        self._returned: collections.Counter[tuple[str, bytes]] = collections.Counter()
        self._next_tag = self._oldest = 1  # no tag below the oldest is unconfirmed
        self._parameters.blocked_connection_timeout = None  # while it is blocked, it is not ready

    def publish(self, messages: Sequence[Outgoing], timeout: float = CONFIRM_SECONDS) -> list[Outgoing]:
        """Returns those RabbitMQ did not confirm in time. A late confirm then makes a duplicate, which a claim tells apart."""
        if not messages:
            return []
        if not self.ready.is_set():
            return list(messages)
        batch = _Batch(messages, waiting=len(messages))
        if not self.call_soon(lambda: self._declare_then_send(batch)):
            return list(messages)
        if not batch.done.wait(timeout):
            log.warning("rabbitmq_confirm_late", messages=len(messages))
            self.ready.clear()  # the next caller does not wait for the same server again
            self.call_soon(lambda: self.connection.abort("a confirm is late"))
            return list(messages)
        return batch.failed

    def depth(self, queue: str, timeout: float = ANSWER_SECONDS) -> int | None:
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

    def dead_letters(self, queue: str, count: int = 20, timeout: float = ANSWER_SECONDS) -> list[DeadLetter] | None:
        """The oldest dead letters of a queue, for it can only be looked at from its head; they stay there. None when nobody can say."""
        if not self.ready.is_set():
            return None
        peek = Peek(self, dead_letter_queue(queue), count)
        if not self.call_soon(peek.begin):
            return None
        if not peek.done.wait(timeout):  # somebody else was faster, or the server hangs
            self.call_soon(peek.end)
        return list(peek.found)

    def on_open(self) -> None:
        """Opens the channel in confirm mode; only then is the publisher ready."""

        def opened(channel: Any) -> None:
            self._channel, self._next_tag, self._oldest = channel, 1, 1
            self._declared.clear()
            self.connection.confirming.add(channel.channel_number)
            channel.add_on_return_callback(self._on_return)
            channel.add_on_close_callback(lambda _channel, _reason: self.connection.is_open and self.connection.close())
            channel.confirm_delivery(lambda _frame: None, callback=lambda _frame: self.ready.set())

        self.connection.channel(on_open_callback=opened)

    def on_lost(self) -> None:
        """Whatever was not confirmed may be lost: its batch is told so."""
        self._fail_all()

    def on_blocked(self) -> None:
        """Nothing is taken until the alarm is over: the failover need not wait for a confirm to be late."""
        log.warning("rabbitmq_blocked")
        self.ready.clear()
        self._fail_all()

    def on_unblocked(self) -> None:
        """As if it had just been opened."""
        if self._channel is not None and self._channel.is_open:
            self.ready.set()

    def on_confirms(self, confirms: list[Confirm]) -> None:
        """Settles what RabbitMQ has taken or refused."""
        for last, multiple, taken in confirms:
            for tag in range(self._oldest, last + 1) if multiple else (last,):
                batch = self._unconfirmed.pop(tag, None)
                if batch is not None:
                    self._settle(batch, batch.messages[tag - batch.first_tag], taken)
            if multiple:
                self._oldest = max(self._oldest, last + 1)

    def on_arrivals(self, arrivals: list[Arrival]) -> None:
        """What somebody looks at."""
        for peek, _tag, properties, body in arrivals:
            peek.take(properties, body)

    def _settle(self, batch: _Batch, message: Outgoing, taken: bool) -> None:
        if self._returned and (letter := (message.routing_key, message.body)) in self._returned:
            self._returned -= collections.Counter([letter])
            self._declared.discard(message.declared or message.routing_key)  # the queue is gone; declare it next time
            taken = False
        batch.settle(None if taken else message)
        if not batch.waiting:
            self._batches.discard(batch)

    def _on_return(self, _channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        """Unroutable: returned first, then confirmed."""
        self._returned[method.routing_key, body] += 1

    def _fail_all(self) -> None:
        batches, self._batches = self._batches, set()
        self._unconfirmed = {}
        self._returned.clear()
        for batch in batches:
            batch.fail()

    def _declare_then_send(self, batch: _Batch) -> None:
        if not self.ready.is_set():  # blocked or given up since it was handed over
            batch.fail()
            return
        self._batches.add(batch)
        missing = {message.declared or message.routing_key for message in batch.messages} - self._declared
        if not missing:
            self._send(batch)
            return
        queue = min(missing)

        def declared(_frame: object) -> None:
            self._declared.add(queue)
            self._declare_then_send(batch)

        declare(self._channel, queue, self.queue_type, callback=declared)

    def _send(self, batch: _Batch) -> None:
        batch.first_tag = self._next_tag
        self._next_tag += len(batch.messages)
        self._unconfirmed.update(dict.fromkeys(range(batch.first_tag, self._next_tag), batch))
        number, frame_max = self._channel.channel_number, self.connection.params.frame_max
        plain = [message for message in batch.messages if message.reason is None]
        if len(plain) < len(batch.messages):
            self._send_one_by_one(batch.messages)
            return
        for at in range(0, len(plain), TOGETHER):
            self.connection.send_frames([publications(number, plain[at : at + TOGETHER], frame_max)])

    def _send_one_by_one(self, messages: Sequence[Outgoing]) -> None:
        """With headers: dead letters, and whatever came along with them."""
        for message in messages:
            headers = None if message.reason is None else reasoned(message.reason)
            properties = pika.BasicProperties("application/json", headers=headers, delivery_mode=2, priority=message.priority)
            self._channel.basic_publish("", message.routing_key, message.body, properties, mandatory=True)
