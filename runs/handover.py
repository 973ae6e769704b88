"""What dramatiq's Worker iterates over and takes runs from, although claimed runs come from the recorder."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dramatiq.broker import Consumer, MessageProxy

from runs.inbox import Inbox
from runs.message import RunMessage
from runs.retry import handed_back

if TYPE_CHECKING:
    from runs.broker import RunBroker


class QueueConsumer(Consumer):
    """Nothing comes this way; it is how the Worker hands runs back."""

    def __init__(self, broker: RunBroker, queue_name: str, timeout: float) -> None:
        self._broker = broker
        self._queue_name = queue_name
        self._timeout = timeout

    def __iter__(self) -> QueueConsumer:
        # Not earlier: ConsumerThread.consumer is set only after consume(), and a run that ended before could not be settled.
        for consumer in self._broker.consumers:
            consumer.subscribe(self._queue_name)
        return self

    def __next__(self) -> None:
        time.sleep(self._timeout)  # the thread only has to notice pause and stop

    def ack(self, message: MessageProxy) -> None:
        """The worker thread is free; the broker is told after the outcome is committed."""
        assert isinstance(message, RunMessage)
        if message.outcome is None and message.claim is not None:
            message.outcome = handed_back(message.claim)
        self._broker.recorder.finished(message)

    def nack(self, message: MessageProxy) -> None:
        """The same; the outcome says that it is a dead letter."""
        self.ack(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """The Worker stops and these were claimed and never started."""
        for message in messages:
            self.ack(message)


class WorkQueue(Inbox[Any]):
    """Claimed runs on their way to a thread, in the recorder's order. The rest is what Worker.join and stop expect."""

    unfinished_tasks = 0

    def task_done(self) -> None: ...

    def join(self) -> None: ...
