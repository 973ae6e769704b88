"""What dramatiq's Worker iterates over and takes runs from, although claimed runs come from the recorder."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dramatiq.broker import Consumer, MessageProxy

from runs.inbox import Inbox
from runs.message import RunMessage
from runs.retry import handed_back

if TYPE_CHECKING:
    from runs.broker import RunBroker

ASLEEP_SECONDS = 60.0
_GET_UP = object()


class QueueConsumer(Consumer):
    """Nothing comes this way; it is how the Worker hands runs back."""

    def __init__(self, broker: RunBroker, queue_name: str, timeout: float) -> None:
        self._broker = broker
        self._queue_name = queue_name
        self._timeout = timeout
        self._closing = broker.work_queue.closing

    def __iter__(self) -> QueueConsumer:
        # Not earlier: ConsumerThread.consumer is set only after consume(), and a run that ended before could not be settled.
        for consumer in self._broker.consumers:
            consumer.subscribe(self._queue_name)
        return self

    def __next__(self) -> None:
        if self._closing.wait(ASLEEP_SECONDS):
            time.sleep(self._timeout)  # the thread only has to notice that it is to stop

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
    """Claimed runs on their way to a thread, in the recorder's order. The rest is what Worker.join and stop expect.

    A thread that waits here is asleep until there is a run or the worker is about to stop, for dramatiq's own time-out (once a second
    in each thread) is for noticing that only.
    """

    unfinished_tasks = 0

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.closing = threading.Event()
        self._threads = threads

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """See Inbox."""
        is_asleep = block and timeout is not None and not self.closing.is_set()
        item = super().get(block, ASLEEP_SECONDS if is_asleep else timeout)
        if item is not _GET_UP:
            return item
        if block:
            raise queue.Empty
        return self.get(block)

    def wake(self) -> None:
        """The worker is about to stop: from now on all threads look for that as often as dramatiq has it."""
        if not self.closing.is_set():
            self.closing.set()
            for _ in range(self._threads):
                self.put(_GET_UP)

    def task_done(self) -> None: ...

    def join(self) -> None: ...
