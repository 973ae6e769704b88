"""The dramatiq broker: the stock Worker and command, our brokers and our record.

Every method the Worker calls is public dramatiq API. What it gets for a queue is a consumer that brings it nothing: claimed runs
reach its work queue from the recorder, through ConsumerThread.handle_message, a batch at a time.
"""

from __future__ import annotations

import inspect
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import dramatiq
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.errors import ActorNotFound
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from brokers.consumer import BrokerConsumer, OnDelivery, Verdict
from brokers.message import Envelope, MessageEncoder
from brokers.publisher import MessageSink, Publisher
from core.errors import MailroomError, UnavailableError
from core.logging import get_logger
from core.tenancy import Identity, acting_as
from runs.enqueue import record
from runs.message import RunMessage
from runs.middleware import middleware
from runs.recorder import Recorder
from runs.relay import Housekeeper, Relay
from runs.retry import handed_back
from runs.task import Call, Task
from runs.ticks import enqueue_tick, minute_of
from storage import dispatch
from storage.engine import session_scope, system_connection

log = get_logger(__name__)
HEARTBEAT_SECONDS = 3.0
PARKED_SECONDS = 30.0
"""How long a run waits whose task this worker does not have: a rolling deploy may bring it."""


@dataclass(frozen=True)
class Parts:
    """What a RunBroker is made of. All are called late: importing the actors opens no connection and reads no key."""

    get_engine: Callable[[], Engine]
    get_encoder: Callable[[], MessageEncoder]
    open_sink: Callable[[], MessageSink]
    make_consumers: Callable[[OnDelivery, Callable[[], int], int], list[BrokerConsumer]]
    claim_ahead: int = 0


class RunBroker(dramatiq.Broker):
    """Records what is enqueued and runs what is claimed."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(middleware=middleware())
        self.queues: set[str] = set()
        self.recorder: Recorder
        self.consumers: list[BrokerConsumer] = []
        self.worker_id = ""
        self._parts = parts
        self._publisher: Publisher | None = None
        self._lock = threading.Lock()
        self._worker: dramatiq.Worker | None = None
        self._housekeepers: list[Housekeeper] = []
        self._state = "running"

    def task(self, name: str) -> Task[Any, Any]:
        """A declared task. Raises dramatiq's ActorNotFound."""
        found = self.get_actor(name)
        assert isinstance(found, Task)
        return found

    # The producer's side.

    @property
    def publisher(self) -> Publisher:
        """The process' publisher, made on first use: never before a fork."""
        with self._lock:
            if self._publisher is None:
                self._publisher = Publisher(self._parts.get_encoder(), self._parts.open_sink, self._wait_for_broker)
            return self._publisher

    def enqueue(self, message: dramatiq.Message[Any], *, delay: int | None = None) -> dramatiq.Message[Any]:
        """A plain `actor.send()`: recorded like any other run, in a transaction of its own. `delay` in milliseconds."""
        task = self.task(message.actor_name)
        scheduled_at = message.options.get("scheduled_at")  # from periodiq's own scheduler
        if scheduled_at is not None:
            with session_scope(system=True, engine=self._parts.get_engine()) as session:
                run_id = enqueue_tick(session, task, minute_of(scheduled_at))
            return message if run_id is None else message.copy(message_id=run_id)
        arguments = {**dict(zip(inspect.signature(task.fn).parameters, message.args, strict=False)), **message.kwargs}
        with session_scope(engine=self._parts.get_engine()) as session:
            run_id, _ = record(session, Call(task, delay=delay / 1000 if delay else None), arguments)
        return message.copy(message_id=run_id)

    def declare_queue(self, queue_name: str) -> None:
        """Idempotent. No delay queue is ever announced, so the Worker starts no consumer for one."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)

    def get_declared_queues(self) -> set[str]:
        """The queues of all tasks."""
        return self.queues.copy()

    def close(self) -> None:
        """Sends what is left to be published and closes the connections."""
        with self._lock:
            publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.close()

    # The worker's side.

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30_000) -> Consumer:
        """What the Worker's thread for a queue iterates over."""
        return _QueueConsumer(self, queue_name, timeout / 1000)

    def boot(self, worker: dramatiq.Worker) -> None:
        """Starts recorder, consumers and housekeeping for a Worker that is about to start its threads."""
        engine = self._parts.get_engine()
        self._worker = worker
        self._state = "running"
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        worker.work_queue = _WorkQueue()  # type: ignore[assignment]
        self.recorder = Recorder(
            engine,
            self._parts.get_encoder(),
            self.worker_id,
            threads=worker.worker_threads,
            claim_ahead=self._parts.claim_ahead,
            start_run=self._start_run,
            adopt=self._adopt,
            consume=self._consume_or_pause,
        )
        self.consumers = self._parts.make_consumers(self.recorder.offer, self.recorder.room, worker.worker_threads)
        self._beat()  # the row exists before the first claim
        # Two threads: a broker that keeps the relay waiting must not stop the heart.
        self._housekeepers = [Housekeeper((self._beat, HEARTBEAT_SECONDS)), Housekeeper(*Relay(engine, self.publisher).chores())]
        self.recorder.start()
        for consumer in self.consumers:
            consumer.start()
        for housekeeper in self._housekeepers:
            housekeeper.start()
        log.info("worker_started", worker=self.worker_id, threads=worker.worker_threads)

    def quiet(self) -> None:
        """Nothing new starts; what is held unclaimed goes back to its broker."""
        self._state = "stopping"
        for consumer in self.consumers:
            consumer.pause()
        self.recorder.stop_claiming()

    def shut_down(self) -> None:
        """Writes the last outcomes, hands back what did not end, and says goodbye."""
        self.recorder.stop()
        for consumer in self.consumers:
            consumer.stop()
        for housekeeper in self._housekeepers:
            housekeeper.stop()
        try:
            with system_connection(self._parts.get_engine()) as connection:
                dispatch.forget_worker(connection, self.worker_id)
        except Exception as error:
            log.warning("worker_row_left", error=type(error).__name__)
        log.info("worker_stopped", worker=self.worker_id)

    def _consume_or_pause(self, wanted: bool) -> None:
        for consumer in self.consumers:
            (consumer.resume if wanted else consumer.pause)()

    def _start_run(self, message: RunMessage) -> None:
        assert self._worker is not None
        consumer = self._worker.consumers.get(message.queue_name)
        if consumer is not None and message.actor_name in self.actors:
            consumer.handle_message(message)
        elif message.claim is not None:  # claimed by a worker that does not have the task: somebody else may
            message.outcome = handed_back(message.claim, PARKED_SECONDS)
            self.recorder.finished(message)

    def _adopt(self, envelope: Envelope) -> Verdict | None:
        """Writes the row for a plain `.send()` of a service that shares the broker and the signing key, but not the database.

        None when it has; ACK for a message of a run that is recorded already, REJECT for one that cannot be recorded.
        """
        if envelope.attempt is not None:
            return Verdict.ACK
        try:
            with acting_as(Identity(envelope.tenant_id, envelope.user_id)), session_scope(engine=self._parts.get_engine()) as session:
                _, is_new = record(session, Call(self.task(envelope.task), run_id=envelope.run_id), envelope.args)
                session.info.pop("after_commit", None)  # its message is here already
        except UnavailableError:
            raise
        except (MailroomError, ActorNotFound, IntegrityError) as error:  # wrong arguments, no such task, no such tenant
            log.error("message_not_adopted", task_id=envelope.run_id, task_name=envelope.task, error=type(error).__name__)
            return Verdict.REJECT
        return None if is_new else Verdict.ACK

    def _wait_for_broker(self, run_ids: list[str]) -> None:
        with system_connection(self._parts.get_engine()) as connection:
            dispatch.wait_for_broker(connection, run_ids)

    def _beat(self) -> None:
        """Only while the recorder and every worker thread live: a worker that cannot work has no heart."""
        worker = self._worker
        assert worker is not None
        threads_live = all(thread.is_alive() for thread in worker.workers) or self._state != "running"
        recorder_lives = self.recorder.is_alive() or not worker.workers
        if not (threads_live and recorder_lives):
            log.critical("worker_is_broken", worker=self.worker_id, threads_live=threads_live, recorder_lives=recorder_lives)
            return
        with system_connection(self._parts.get_engine()) as connection:
            dispatch.heartbeat(
                connection,
                dispatch.Heartbeat(
                    self.worker_id,
                    socket.gethostname(),
                    os.getpid(),
                    worker.worker_threads,
                    sorted(worker.consumer_whitelist or self.queues),
                    self._state,
                ),
            )


class _QueueConsumer(Consumer):
    """Nothing comes this way; it is how the Worker hands runs back."""

    def __init__(self, broker: RunBroker, queue_name: str, timeout: float) -> None:
        self._broker = broker
        self._queue_name = queue_name
        self._timeout = timeout

    def __iter__(self) -> _QueueConsumer:
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


class _WorkQueue(queue.SimpleQueue[Any]):
    """Claimed runs on their way to a thread, in the recorder's order. The rest is what Worker.join and stop expect."""

    unfinished_tasks = 0

    def task_done(self) -> None: ...

    def join(self) -> None: ...
