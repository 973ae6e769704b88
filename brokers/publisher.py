"""The process' publisher: a thread that takes envelopes after commit and sends them, as many at a time as have gathered.

`publish` never blocks and never raises. What no broker took is reported to `on_unpublished`, which lets the record wait.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from brokers.dead_letters import DeadLetter
from brokers.message import Envelope, MessageEncoder, Outgoing
from brokers.queues import dead_letter_queue
from core.logging import get_logger

log = get_logger(__name__)
MAX_BATCH = 1000
OnUnpublished = Callable[[list[str]], None]


class MessageSink(Protocol):
    """Where a publisher sends: a Failover, or the stub in tests."""

    def publish(self, messages: Sequence[Outgoing]) -> list[Outgoing]:
        """Returns the messages that were not taken."""

    def depth(self, queue: str) -> int | None:
        """Messages held for the queue; None when nobody can say."""

    def dead_letters(self, queue: str, count: int = 20) -> list[DeadLetter] | None:
        """Some of the queue's dead letters, which stay there; None when nobody can say."""

    def close(self) -> None:
        """Closes the connections."""


class Publisher:
    """Opened on first use, never before a fork and not in a process that publishes nothing."""

    def __init__(self, encoder: MessageEncoder, open_sink: Callable[[], MessageSink], on_unpublished: OnUnpublished) -> None:
        self._encoder = encoder
        self._open_sink = open_sink
        self._on_unpublished = on_unpublished
        self._inbox: queue.SimpleQueue[Envelope | threading.Event | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._opening = threading.Lock()  # not the other: opening may take seconds, and `publish` returns at once
        self._thread: threading.Thread | None = None
        self._sink: MessageSink | None = None

    def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Hands the envelopes to the thread; returns at once."""
        for envelope in envelopes:
            self._inbox.put(envelope)
        self._ensure_running()

    def publish_now(self, envelopes: Sequence[Envelope]) -> list[str]:
        """Sends on the calling thread (the relay's). Returns the run ids that no broker took."""
        return self._send(list(envelopes))

    def publish_dead_letter(self, envelope: Envelope, reason: str = "worker_lost") -> None:
        """Puts a copy among the queue's dead letters, for a run that was lost with its worker and has no message to reject."""
        body = self._encoder.pack(envelope)
        self._get_sink().publish([Outgoing(dead_letter_queue(envelope.queue), body, declared=envelope.queue, reason=reason)])

    def depth(self, queue_name: str) -> int | None:
        """Messages all brokers hold for the queue; None when nobody can say."""
        return self._get_sink().depth(queue_name)

    def dead_letters(self, queue_name: str, count: int = 20) -> list[DeadLetter] | None:
        """Up to `count` of the queue's dead letters from each broker, which keep them; None when nobody can say."""
        return self._get_sink().dead_letters(queue_name, count)

    def flush(self, timeout: float = 10.0) -> bool:
        """Waits until everything handed over before this call has been sent. False when it took too long."""
        sent = threading.Event()
        self._inbox.put(sent)
        self._ensure_running()
        return sent.wait(timeout)

    def close(self) -> None:
        """Sends what is left and closes the connections."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._inbox.put(None)
            thread.join(10)
        with self._opening:
            sink, self._sink = self._sink, None
        if sink is not None:
            sink.close()

    def _ensure_running(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
                self._thread.start()

    def _get_sink(self) -> MessageSink:
        with self._opening:
            if self._sink is None:
                self._sink = self._open_sink()
            return self._sink

    def _run(self) -> None:
        stopped = False
        while not stopped:
            envelopes, flushed, stopped = self._gather()
            try:
                self._send(envelopes)
            except Exception:  # a batch that fails stays in the record; the thread must go on for the next
                log.exception("publish_failed", messages=len(envelopes))
            for event in flushed:
                event.set()

    def _gather(self) -> tuple[list[Envelope], list[threading.Event], bool]:
        """Waits for the first item, then takes all there are: batches grow with the load, and a lonely message waits for nothing."""
        envelopes: list[Envelope] = []
        flushed: list[threading.Event] = []
        item = self._inbox.get()
        while True:
            if item is None:
                return envelopes, flushed, True
            if isinstance(item, Envelope):
                envelopes.append(item)
            else:
                flushed.append(item)
            if len(envelopes) >= MAX_BATCH:
                return envelopes, flushed, False
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return envelopes, flushed, False

    def _send(self, envelopes: list[Envelope]) -> list[str]:
        run_ids = {}
        messages = []
        for envelope in envelopes:
            message = Outgoing(envelope.queue, self._encoder.pack(envelope), envelope.priority)
            run_ids[message] = envelope.run_id
            messages.append(message)
        left = [run_ids[message] for message in self._get_sink().publish(messages)] if messages else []
        if left:
            log.warning("publish_deferred", messages=len(left))
            self._on_unpublished(left)
        return left
