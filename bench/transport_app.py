"""An actor that does nothing, and two brokers under the stock Worker: dramatiq's own RabbitmqBroker, and `brokers/` with nothing recorded.

`python -m bench.transport_app fill|work ours|stock URL COUNT` (how many messages, or how many threads).
"""

from __future__ import annotations

import json
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

import dramatiq
from dramatiq.broker import Broker, Consumer, MessageProxy
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.middleware import default_middleware

from bench.marks import mark
from brokers.consumer import Delivery, Verdict
from brokers.message import MessageEncoder, Outgoing
from brokers.rabbitmq import RabbitConsumer, RabbitPublisher
from core.ids import new_id
from runs.emission import EmittingBroker

AT_A_TIME = 1000
TENANT = new_id()


class Delivered(MessageProxy):
    """A message with the delivery that brought it."""

    def __init__(self, message: dramatiq.Message[Any], delivery: Delivery) -> None:
        super().__init__(message)
        self.delivery = delivery


class WireBroker(EmittingBroker):
    """Messages go from the consumer's thread to the work queue; what became of them goes straight back. Signals go only to middleware
    that does something, as in the product."""

    def __init__(self, url: str, prefetch: int) -> None:
        super().__init__([make() for make in default_middleware])
        self.publisher = RabbitPublisher(url)
        self.consumer = RabbitConsumer(url, self._take, prefetch=prefetch)
        self.worker: dramatiq.Worker

    def declare_queue(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = None
            self.emit_after("declare_queue", queue_name)

    def enqueue(self, message: dramatiq.Message[Any], *, delay: int | None = None) -> dramatiq.Message[Any]:
        self.enqueue_many([message])
        return message

    def enqueue_many(self, messages: Iterable[dramatiq.Message[Any]]) -> None:
        left = self.publisher.publish([Outgoing(message.queue_name, message.encode()) for message in messages], timeout=60)
        assert not left

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30_000) -> Consumer:
        return NothingComes(self, queue_name, timeout / 1000)

    def close(self) -> None:
        self.publisher.stop()
        self.consumer.stop()

    def _take(self, delivery: Delivery) -> None:
        self.worker.consumers[delivery.queue].handle_message(Delivered(dramatiq.Message.decode(delivery.body), delivery))


class NothingComes(Consumer):
    """What the Worker's thread for a queue iterates over."""

    def __init__(self, broker: WireBroker, queue_name: str, timeout: float) -> None:
        self._broker, self._queue_name, self._timeout = broker, queue_name, timeout

    def __iter__(self) -> NothingComes:
        self._broker.consumer.subscribe(self._queue_name)
        return self

    def __next__(self) -> None:
        time.sleep(self._timeout)

    def ack(self, message: MessageProxy) -> None:
        assert isinstance(message, Delivered)
        self._broker.consumer.settle(((message.delivery, Verdict.ACK),))

    def nack(self, message: MessageProxy) -> None:
        assert isinstance(message, Delivered)
        self._broker.consumer.settle(((message.delivery, Verdict.REJECT),))

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        self._broker.consumer.settle([(message.delivery, Verdict.REQUEUE) for message in messages if isinstance(message, Delivered)])


class Hook(dramatiq.Middleware):
    """Before the Worker makes its threads."""

    def before_worker_boot(self, broker: Broker, worker: dramatiq.Worker) -> None:
        assert isinstance(broker, WireBroker)
        broker.worker = worker
        worker.work_queue = FirstInFirstOut()  # type: ignore[assignment]
        broker.consumer.start()


class FirstInFirstOut(queue.SimpleQueue[Any]):
    """As in runs/broker.py: RabbitMQ has put them in order already."""

    unfinished_tasks = 0

    def task_done(self) -> None: ...

    def join(self) -> None: ...


def make_broker(kind: str, url: str, prefetch: int) -> Broker:
    """With dramatiq's standard middleware, both."""
    if kind == "stock":
        return RabbitmqBroker(url=url)
    dramatiq.set_encoder(MessageEncoder({"k1": bytes(32)}))
    broker = WireBroker(url, prefetch)
    broker.add_middleware(Hook())
    return broker


def noop(_first: str, _second: str, asked: str) -> None:
    """Three strings come along, and the time of the start is noted."""
    mark(asked)


def fill(broker: Broker, actor: dramatiq.Actor[..., Any], count: int) -> None:
    """So many messages; each is confirmed on `brokers/`, none on the stock broker, whose confirms are a round trip each. Says how many
    seconds that took."""
    if isinstance(broker, WireBroker):
        broker.publisher.start()
        assert broker.publisher.ready.wait(10)
    began = time.perf_counter()
    messages = (actor.message_with_options(args=(TENANT, "something", "0"), tenant_id=TENANT) for _ in range(count))
    batch: list[dramatiq.Message[Any]] = []
    for message in messages:
        if isinstance(broker, WireBroker):
            batch.append(message)
            if len(batch) == AT_A_TIME:
                broker.enqueue_many(batch)
                batch = []
        else:
            broker.enqueue(message)
    if isinstance(broker, WireBroker) and batch:
        broker.enqueue_many(batch)
    print(json.dumps({"seconds": time.perf_counter() - began}))
    broker.close()


def work(broker: Broker, threads: int) -> None:
    """Until SIGTERM."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: ended.set())
    worker = dramatiq.Worker(broker, worker_threads=threads)
    worker.start()
    while not ended.wait(1):
        pass
    worker.stop()
    broker.close()


def main(what: str, kind: str, url: str, count: str, prefetch: str = "64") -> None:
    """One process."""
    broker = make_broker(kind, url, int(prefetch))
    actor = dramatiq.Actor(noop, broker=broker, actor_name="noop", queue_name=kind, priority=0, options={})
    if what == "fill":
        fill(broker, actor, int(count))
    else:
        work(broker, int(count))


if __name__ == "__main__":
    main(*sys.argv[1:])
