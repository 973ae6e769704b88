"""Consumes every subscribed queue over one connection, a channel each, so that a closed channel hurts one queue only."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from brokers.consumer import Delivery, OnDelivery, Verdict
from brokers.rabbitmq.link import RabbitLink, declare
from core.logging import get_logger

log = get_logger(__name__)
REOPEN_SECONDS = 1


class _Channel:
    """The deliveries of one queue on one channel.

    This object is the fence: RabbitMQ counts delivery tags from 1 again on a new channel, so a receipt is this object and a
    tag, and a closed one drops what it is told. (Stock dramatiq acknowledges the wrong message here.)
    """

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self._consumer_tag: str | None = None
        self._outstanding: collections.deque[int] = collections.deque()  # tags in the order they came
        self._settled: dict[int, bool] = {}  # tag -> whether its ack is still to be sent

    def consume(self, queue: str, deliver: Callable[..., None]) -> None:
        """Once; the same object for as long as the channel lives, because `multiple` counts over all its consumers."""
        if self.channel.is_open and self._consumer_tag is None:
            self._consumer_tag = self.channel.basic_consume(queue, deliver)

    def cancel(self) -> None:
        """No further deliveries; those that came stay to be settled."""
        tag, self._consumer_tag = self._consumer_tag, None
        if self.channel.is_open and tag is not None:
            self.channel.basic_cancel(tag)

    def delivered(self, tag: int) -> None:
        self._outstanding.append(tag)

    def settle(self, verdicts: Iterable[tuple[int, Verdict]]) -> None:
        """One ack with `multiple` for the unbroken prefix, single acks behind a run that is still going."""
        if not self.channel.is_open:
            return
        for tag, verdict in verdicts:
            if verdict is not Verdict.ACK:
                self.channel.basic_nack(tag, requeue=verdict is Verdict.REQUEUE)  # without requeue: natively to <queue>.XQ
            self._settled[tag] = verdict is Verdict.ACK
        self._acknowledge()

    def _acknowledge(self) -> None:
        last = None
        while self._outstanding and self._outstanding[0] in self._settled:
            tag = self._outstanding.popleft()
            if self._settled.pop(tag):
                last = tag
        if last is not None:
            self.channel.basic_ack(last, multiple=True)
        for tag, unsent in self._settled.items():
            if unsent:
                self.channel.basic_ack(tag)
                self._settled[tag] = False


class RabbitConsumer(RabbitLink):
    """A BrokerConsumer over RabbitMQ."""

    def __init__(self, url: str, on_delivery: OnDelivery, *, prefetch: int, queue_type: str = "classic") -> None:
        super().__init__("rabbitmq-consumer", url, queue_type)
        self._on_delivery = on_delivery
        self._prefetch = prefetch
        self._queues: list[str] = []
        self._channels: dict[str, _Channel] = {}
        self._to_settle: collections.deque[tuple[Any, Verdict]] = collections.deque()
        self._paused = False

    def subscribe(self, queue: str) -> None:
        """See BrokerConsumer."""

        def add() -> None:
            if queue not in self._channels:
                self._open_channel(queue)

        self._queues.append(queue)
        if self.ready.is_set():
            self.call_soon(add)

    def settle(self, settled: Iterable[tuple[Delivery, Verdict]]) -> None:
        """See BrokerConsumer."""
        self._to_settle.extend((delivery.receipt, verdict) for delivery, verdict in settled)
        self.call_soon(self._flush)

    def pause(self) -> None:
        """See BrokerConsumer."""

        def cancel() -> None:
            for fence in self._channels.values():
                fence.cancel()

        self._paused = True
        self.call_soon(cancel)

    def resume(self) -> None:
        """See BrokerConsumer."""

        def consume_again() -> None:
            for queue, fence in self._channels.items():
                self._consume(fence, queue)

        self._paused = False
        self.call_soon(consume_again)

    def on_open(self) -> None:
        """Opens the channels of all queues anew."""
        self.ready.set()
        for queue in list(self._queues):
            self._open_channel(queue)

    def on_lost(self) -> None:
        """Forgets the channels; late settlements of their deliveries find them closed."""
        self._channels.clear()
        self._to_settle.clear()

    def _open_channel(self, queue: str) -> None:
        def opened(channel: Any) -> None:
            channel.add_on_close_callback(closed)
            channel.add_on_cancel_callback(lambda _frame: channel.close())  # the queue was deleted; declare it again
            channel.basic_qos(prefetch_count=self._prefetch)
            fence = self._channels[queue] = _Channel(channel)
            declare(channel, queue, self.queue_type, callback=lambda _frame: self._consume(fence, queue))

        def closed(_channel: Any, reason: object) -> None:
            self._channels.pop(queue, None)
            if self.connection.is_open:
                log.warning("rabbitmq_channel_closed", queue=queue, reason=str(reason))
                self.connection.ioloop.call_later(REOPEN_SECONDS, partial(self._open_channel, queue))

        self.connection.channel(on_open_callback=opened)

    def _consume(self, fence: _Channel, queue: str) -> None:
        def deliver(_channel: Any, method: Any, _properties: Any, body: bytes) -> None:
            fence.delivered(method.delivery_tag)
            self._on_delivery(Delivery(body, queue, self, (fence, method.delivery_tag)))

        if not self._paused:
            fence.consume(queue, deliver)

    def _flush(self) -> None:
        by_channel: dict[_Channel, list[tuple[int, Verdict]]] = {}
        while self._to_settle:
            (fence, tag), verdict = self._to_settle.popleft()
            by_channel.setdefault(fence, []).append((tag, verdict))
        for fence, verdicts in by_channel.items():
            fence.settle(verdicts)

    def _close(self) -> None:
        self._flush()
        super()._close()
