"""What a consumer of any broker is to the recorder: it brings deliveries and is told what became of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from core.logging import get_logger

log = get_logger(__name__)


class Verdict(Enum):
    """What to tell the broker about a delivery."""

    ACK = "ack"  # done with, or stale
    REJECT = "reject"  # to the dead letters
    REQUEUE = "requeue"  # never started; somebody else may have it


@dataclass(frozen=True, slots=True)
class Rejection:
    """A REJECT that says why, in one word: the dead letter carries it."""

    reason: str


@dataclass(slots=True, eq=False)  # frozen would double the cost of making one
class Delivery:
    """One message as it came. `receipt` is the consumer's own: it names the channel, so that a late settlement of a closed
    channel is dropped and never acknowledges another message that has the same number on the new one. `was_dead`: it lay among
    the dead letters before and somebody moved it back."""

    body: bytes
    queue: str
    consumer: BrokerConsumer
    receipt: Any
    was_dead: bool = False


OnDelivery = Callable[[Delivery], None]
OnDeliveries = Callable[[list[Delivery]], None]
Settlement = tuple[Delivery, Verdict | Rejection]


class BrokerConsumer(Protocol):
    """A thread that consumes its queues from one broker for as long as it runs, reconnecting by itself."""

    def start(self) -> None:
        """Begins to connect and consume; returns at once."""

    def subscribe(self, queue: str) -> None:
        """Adds a queue; may be called before or after start, from any thread."""

    def settle(self, settled: Iterable[Settlement]) -> None:
        """Tells the broker, soon; never blocks and never raises. Deliveries of a lost connection are dropped."""

    def pause(self) -> None:
        """No new deliveries from now on; those under way may still come."""

    def resume(self) -> None:
        """Deliveries again, after a pause."""

    def stop(self) -> None:
        """Sends what is still to be settled and closes. What was not settled, the broker delivers to somebody else."""


class HandOver:
    """How a consumer hands deliveries over: all that came together to `on_deliveries`, or one by one to `on_delivery`. What nobody
    can take becomes a dead letter: it must neither end the consumer nor come again and again.
    """

    def __init__(self, consumer: BrokerConsumer, on_delivery: OnDelivery, on_deliveries: OnDeliveries | None) -> None:
        self._consumer = consumer
        self._on_delivery = on_delivery
        self._on_deliveries = on_deliveries or self._one_by_one

    def __call__(self, deliveries: list[Delivery]) -> None:
        try:
            self._on_deliveries(deliveries)
        except Exception as error:
            self._not_taken(deliveries, error)

    def _one_by_one(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            try:
                self._on_delivery(delivery)
            except Exception as error:
                self._not_taken([delivery], error)

    def _not_taken(self, deliveries: list[Delivery], error: Exception) -> None:
        log.error("delivery_not_taken", messages=len(deliveries), exc_info=error)
        self._consumer.settle([(delivery, Rejection("not_taken")) for delivery in deliveries])


def settle_all(settled: Iterable[Settlement]) -> None:
    """Settles deliveries of several consumers, each with its own."""
    by_consumer: dict[int, list[Settlement]] = {}
    for settlement in settled:
        by_consumer.setdefault(id(settlement[0].consumer), []).append(settlement)
    for group in by_consumer.values():
        group[0][0].consumer.settle(group)
