"""Consumes every subscribed queue over one connection, a channel each, so that a closed channel hurts one queue only."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from brokers.consumer import Delivery, HandOver, OnDeliveries, OnDelivery, Rejection, Settlement, Verdict
from brokers.dead_letters import reasoned, was_dead
from brokers.queues import dead_letter_queue
from brokers.rabbitmq.frames import ACK, MULTIPLE, NACK, REQUEUE, Arrival, headers_of, properties_of, settlement
from brokers.rabbitmq.link import RabbitLink, declare
from core.logging import get_logger

log = get_logger(__name__)
REOPEN_SECONDS = 1
FLUSH_SECONDS = 0.005
BLOCKED_SECONDS = 60
"""So long after an alarm of the server nothing is published on this connection: it would not read our acknowledgements either."""


class _Channel:
    """The deliveries of one queue on one channel.

    This object is the fence: RabbitMQ counts delivery tags from 1 again on a new channel, so a receipt is this object and a
    tag, and a closed one drops what it is told. (Stock dramatiq acknowledges the wrong message here.)
    """

    def __init__(self, channel: Any, queue: str) -> None:
        self.channel = channel
        self.queue = queue
        self.outstanding: set[int] = set()  # tags; never more than the prefetch
        self._consumer_tag: str | None = None

    def consume(self) -> None:
        """Once; the same object for as long as the channel lives, because `multiple` counts over all its consumers."""
        if self.channel.is_open and self._consumer_tag is None:
            self._consumer_tag = self.channel.basic_consume(self.queue, lambda *_delivery: None)  # see FastConnection

    def cancel(self) -> None:
        """No further deliveries; those that came stay to be settled."""
        tag, self._consumer_tag = self._consumer_tag, None
        if self.channel.is_open and tag is not None:
            self.channel.basic_cancel(tag)

    def settle(self, verdicts: Iterable[tuple[int, Verdict]]) -> list[bytes]:
        """The frames. One ack with `multiple` for all below the oldest delivery that is still going, single ones above it."""
        number, frames, acked = self.channel.channel_number, [], []
        for tag, verdict in verdicts:
            if tag not in self.outstanding:
                continue  # settled before; twice would close the channel
            self.outstanding.discard(tag)
            if verdict is Verdict.ACK:
                acked.append(tag)
            else:  # before the acks: one with `multiple` would settle it as well
                frames.append(settlement(number, NACK, tag, REQUEUE if verdict is Verdict.REQUEUE else 0))
        oldest = min(self.outstanding, default=None)
        below = [tag for tag in acked if oldest is None or tag < oldest]
        if below:
            frames.append(settlement(number, ACK, max(below), MULTIPLE))
        if oldest is not None:
            frames += (settlement(number, ACK, tag) for tag in acked if tag > oldest)
        return frames


class _Outbox:
    """When settlements of one connection are sent: the first at once, those that follow within 5 ms together, or as soon as a
    quarter of the prefetch has gathered. Nothing ticks while nothing is settled, and no call costs the link's thread a wake-up
    that the one before it has paid. One for each connection: a new one cannot find a wake-up pending that died with the old.
    """

    def __init__(self, link: RabbitLink, flush: Callable[[], bool], many: int) -> None:
        self._link = link
        self._flush = flush
        self._many = many
        self._resting = False  # a flush was a moment ago, and the timer that follows it will look again
        self._called = False

    def wake(self, waiting: int) -> None:
        """Something was put into the outbox (from any thread)."""
        if not self._called and (not self._resting or waiting >= self._many):
            self._called = True  # before the call: the link's thread may be faster than this one
            if not self._link.call_soon(self._flush_now):
                self._called = False

    def _flush_now(self) -> None:
        self._called = False  # before looking: what comes from now on calls again
        if self._flush() and not self._resting:
            self._rest()

    def _rest(self) -> None:
        self._resting = True
        self._link.call_later(FLUSH_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._resting = False  # before looking
        if self._flush():
            self._rest()


class RabbitConsumer(RabbitLink):
    """A BrokerConsumer over RabbitMQ. `prefetch` is how many unsettled messages of each queue it may hold. With `on_deliveries`
    they are handed over together, all that one read brought; else each to `on_delivery`.
    """

    def __init__(
        self, url: str, on_delivery: OnDelivery, *, prefetch: int, queue_type: str = "classic", on_deliveries: OnDeliveries | None = None
    ) -> None:
        super().__init__("rabbitmq-consumer", url, queue_type)
        self._hand_over = HandOver(self, on_delivery, on_deliveries)
        self._prefetch = prefetch
        self._queues: list[str] = []
        self._channels: dict[str, _Channel] = {}
        self._asked_for: set[str] = set()  # queues that have a channel, or will have one in a moment
        self._to_settle: collections.deque[Settlement] = collections.deque()
        self._outbox = self._new_outbox()
        self._paused = False
        self._no_copies_before = 0.0

    def subscribe(self, queue: str) -> None:
        """See BrokerConsumer."""
        self._queues.append(queue)
        if self.ready.is_set():  # else `on_open` finds it; at that very moment both may
            self.call_soon(partial(self._open_channel, queue))

    def settle(self, settled: Iterable[Settlement]) -> None:
        """See BrokerConsumer."""
        self._to_settle.extend(settled)
        self._outbox.wake(len(self._to_settle))

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
            for fence in self._channels.values():
                self._consume(fence)

        self._paused = False
        self.call_soon(consume_again)

    def on_open(self) -> None:
        """Opens the channels of all queues anew."""
        self._outbox = self._new_outbox()
        self.ready.set()
        for queue in list(self._queues):
            self._open_channel(queue)

    def on_lost(self) -> None:
        """Forgets the channels; late settlements of their deliveries find them closed."""
        self._channels.clear()
        self._asked_for.clear()
        self._to_settle.clear()

    def on_blocked(self) -> None:
        """A copy for the dead letters met an alarm: the acknowledgements behind it are not read until it is over."""
        self._no_copies_before = time.monotonic() + BLOCKED_SECONDS

    def on_arrivals(self, arrivals: list[Arrival]) -> None:
        """Takes note of the tags, then hands over."""
        deliveries = []
        for fence, tag, properties, body in arrivals:
            fence.outstanding.add(tag)
            headers = headers_of(properties)
            deliveries.append(Delivery(body, fence.queue, self, (fence, tag, properties), bool(headers) and was_dead(headers)))
        self._hand_over(deliveries)

    def _new_outbox(self) -> _Outbox:
        return _Outbox(self, self._flush, max(1, self._prefetch // 4))

    def _open_channel(self, queue: str) -> None:
        """One for each queue: a second one would be paused and settled by nobody."""
        if queue in self._asked_for:
            return
        self._asked_for.add(queue)

        def opened(channel: Any) -> None:
            channel.add_on_close_callback(closed)
            channel.add_on_cancel_callback(lambda _frame: channel.close())  # the queue was deleted; declare it again
            channel.basic_qos(prefetch_count=self._prefetch)
            fence = self._channels[queue] = self.connection.consumers[channel.channel_number] = _Channel(channel, queue)
            declare(channel, queue, self.queue_type, callback=lambda _frame: self._consume(fence))

        def closed(channel: Any, reason: object) -> None:
            self.connection.forget(channel.channel_number)
            self._channels.pop(queue, None)
            self._asked_for.discard(queue)
            if self.connection.is_open:
                log.warning("rabbitmq_channel_closed", queue=queue, reason=str(reason))
                self.call_later(REOPEN_SECONDS, partial(self._open_channel, queue))

        self.connection.channel(on_open_callback=opened)

    def _consume(self, fence: _Channel) -> None:
        if not self._paused:
            fence.consume()

    def _flush(self) -> bool:
        """Sends what there is to settle; whether there was anything."""
        by_channel: dict[_Channel, list[tuple[int, Verdict]]] = {}
        while self._to_settle:
            delivery, verdict = self._to_settle.popleft()
            fence, tag, properties = delivery.receipt
            if fence.channel.is_open:
                if isinstance(verdict, Rejection):
                    verdict = self._copy_to_the_dead(delivery, verdict.reason, fence, tag, properties)
                by_channel.setdefault(fence, []).append((tag, verdict))
        frames = [frame for fence, verdicts in by_channel.items() for frame in fence.settle(verdicts)]
        if frames:
            self.connection.send_frames([b"".join(frames)])
        return bool(frames)

    def _copy_to_the_dead(self, delivery: Delivery, reason: str, fence: _Channel, tag: int, properties: bytes) -> Verdict:
        """On the channel of the original and before its ack, so that the message is among the dead letters or comes again."""
        if tag not in fence.outstanding or time.monotonic() < self._no_copies_before:
            return Verdict.REJECT
        copy = properties_of(properties)
        copy.headers = {**(copy.headers or {}), **reasoned(reason)}
        copy.delivery_mode = 2
        fence.channel.basic_publish("", dead_letter_queue(delivery.queue), delivery.body, copy)
        return Verdict.ACK

    def _close(self) -> None:
        self._flush()
        super()._close()
