"""The dramatiq broker: the stock Worker and command, our brokers and our record.

Every method the Worker calls is public dramatiq API. What it gets for a queue is a consumer that brings it nothing: claimed runs
reach its work queue from the recorder, through ConsumerThread.handle_message, a batch at a time.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import dramatiq
from dramatiq.broker import Consumer
from dramatiq.errors import ActorNotFound
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from brokers.consumer import BrokerConsumer, Delivery, OnDelivery, Rejection, Verdict
from brokers.message import Envelope, MessageEncoder
from brokers.publisher import MessageSink, Publisher
from core.errors import MailroomError, UnavailableError
from core.logging import get_logger
from core.tenancy import Identity, acting_as
from runs.emission import EmittingBroker
from runs.enqueue import record
from runs.handover import QueueConsumer, WorkQueue
from runs.hooks import RecorderHooks
from runs.intake import Intake
from runs.life import Life, Lifespan, Retire, end_process
from runs.message import RunMessage
from runs.middleware import middleware
from runs.recorder import Recorder
from runs.registry import parameters_of, secrets_of
from runs.relay import Housekeeper, Relay, RelayHooks
from runs.retry import handed_back
from runs.secrets import erase_ended
from runs.signals import Announcer
from runs.task import Call, Task
from runs.ticks import fire_from_periodiq
from runs.webhooks.starting import start_deliveries
from storage import dispatch, lives
from storage.claims import claim_suspect
from storage.engine import relay_connection, session_scope, system_connection
from storage.outcomes import Claim, HeldLane
from storage.record import open_record
from storage.repositories.runs import TaskRuns

log = get_logger(__name__)
PARKED_SECONDS = 30.0
"""How long a run waits whose task this worker does not have: a rolling deploy may bring it."""


@dataclass(frozen=True)
class Parts:
    """What a RunBroker is made of. All are called late: importing the actors opens no connection and reads no key."""

    get_engine: Callable[[], Engine]
    get_encoder: Callable[[], MessageEncoder]
    open_sink: Callable[[], MessageSink]
    make_consumers: Callable[[OnDelivery, Callable[[], int]], list[BrokerConsumer]]
    claim_ahead: int = 0
    window: int = 200
    lifespan: Lifespan = field(default_factory=Lifespan)


class RunBroker(EmittingBroker):
    """Records what is enqueued and runs what is claimed."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(middleware=middleware())
        self.queues: set[str] = set()
        self.recorder: Recorder
        self.consumers: list[BrokerConsumer] = []
        self.worker_id = ""
        self._parts = parts
        self._publisher: Publisher | None = None
        self._intake: Intake | None = None
        self._lock = threading.Lock()
        self._worker: dramatiq.Worker | None = None
        self._housekeepers: list[Housekeeper] = []
        self.life: Life
        self._relay: Relay | None = None
        self._admitter: Housekeeper | None = None  # of a process that has no relay
        self._is_shut_down = False  # a worker's loop has ended; what it could not end is still to be handed back
        self.signals = Announcer(parts.get_engine, lambda name: getattr(self.actors.get(name), "hooks", None))
        self.on_retire: Retire = end_process
        self.on_leaving: Callable[[], None] = lambda: None  # runs are about to be handed back: the process must end soon, whatever happens

    def task(self, name: str) -> Task[Any, Any]:
        """A declared task. Raises dramatiq's ActorNotFound."""
        found = self.get_actor(name)
        assert isinstance(found, Task)
        return found

    @property
    def window(self) -> int:
        """How many messages of a tenant and queue may be on a broker at a time."""
        return self._parts.window

    # The producer's side.

    @property
    def publisher(self) -> Publisher:
        """The process' publisher, made on first use: never before a fork."""
        with self._lock:
            if self._publisher is None:
                self._publisher = Publisher(self._parts.get_encoder(), self._parts.open_sink, self._wait_for_broker)
            return self._publisher

    @property
    def intake(self) -> Intake:
        """Where runs are accepted in a transaction of their own."""
        with self._lock:
            if self._intake is None:
                self._intake = Intake(self, self._parts.get_engine())
            return self._intake

    def enqueue(self, message: dramatiq.Message[Any], *, delay: int | None = None) -> dramatiq.Message[Any]:
        """A plain `actor.send()`: recorded like any other run, in a transaction of its own. `delay` in milliseconds."""
        task = self.task(message.actor_name)
        scheduled_at = message.options.get("scheduled_at")  # from periodiq's own scheduler
        if scheduled_at is not None:
            with session_scope(system=True, engine=self._parts.get_engine()) as session:
                run_id = fire_from_periodiq(session, task, scheduled_at)
            return message if run_id is None else message.copy(message_id=run_id)
        arguments = {**dict(zip(parameters_of(task), message.args, strict=False)), **message.kwargs}
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

    def admit(self) -> None:
        """Limited runs were recorded: lets on those that there is room for, soon and on another thread."""
        publisher = self.publisher
        with self._lock:
            housekeeper = self._housekeepers[0] if self._housekeepers else self._admitter
            if housekeeper is None:
                housekeeper = self._admitter = Relay(self._parts.get_engine(), publisher, self.window).admitter()
                housekeeper.start()
        housekeeper.wake()

    def relay_hooks(self, engine: Engine) -> RelayHooks:
        """What a relay of any process tells it."""
        return RelayHooks(on_lost=self.signals.ended, on_deliveries=lambda: start_deliveries(self, engine))

    def close(self) -> None:
        """Sends what is left to be published, closes the connections and, in a worker process that is about to end, says goodbye."""
        with self._lock:
            intake, self._intake = self._intake, None
            publisher, self._publisher = self._publisher, None
            admitter, self._admitter = self._admitter, None
        if intake is not None:
            intake.close()
        if admitter is not None:
            admitter.stop()
        if publisher is not None:
            publisher.close()
        if self._is_shut_down:
            self._is_shut_down = False
            self._leave()

    # The worker's side.

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30_000) -> Consumer:
        """What the Worker's thread for a queue iterates over."""
        return QueueConsumer(self, queue_name, timeout / 1000)

    def boot(self, worker: dramatiq.Worker) -> None:
        """Starts recorder, consumers and housekeeping for a Worker that is about to start its threads."""
        engine = self._parts.get_engine()
        self._worker = worker
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        worker.work_queue = WorkQueue()  # type: ignore[assignment]
        queues = sorted(worker.consumer_whitelist or self.queues)
        hooks = replace(self.relay_hooks(engine), on_held=self._tell_of_held, on_suspects=self._offer_to_be_alone)
        self._relay = Relay(engine, self.publisher, self._parts.window, hooks)
        self.recorder = Recorder(
            open_record(engine),
            self._parts.get_encoder(),
            self.worker_id,
            self._hooks(queues, self._relay),
            threads=worker.worker_threads,
            claim_ahead=self._parts.claim_ahead,
        )
        self.consumers = self._parts.make_consumers(self.recorder.offer, self.recorder.room)
        self.life = Life(engine, self.recorder, worker, queues, self._parts.lifespan, self._retire)
        self.life.beat()  # the row exists before the first claim
        self._housekeepers = [*self._relay.housekeepers(), Housekeeper(*self.life.chores())]  # nothing may keep the heart waiting
        self.recorder.start()
        for consumer in self.consumers:
            consumer.start()
        for housekeeper in self._housekeepers:
            housekeeper.start()
        log.info("worker_started", worker=self.worker_id, threads=worker.worker_threads)

    def quiet(self) -> None:
        """Nothing new starts; what is held unclaimed goes back to its broker."""
        self.life.state = "stopping"
        for consumer in self.consumers:
            consumer.pause()
        self.recorder.stop_claiming()

    def shut_down(self) -> None:
        """Writes the last outcomes. What has not ended is still this worker's: `close`, after which the process ends, hands it back."""
        self.recorder.stop()
        self.signals.close()
        for consumer in self.consumers:
            consumer.stop()
        for housekeeper in self._housekeepers:
            housekeeper.stop()
        if self._relay is not None:
            self._relay.close()
        self._is_shut_down = True

    def _leave(self) -> None:
        try:
            if not self.recorder.is_empty:
                self.on_leaving()
            self.recorder.hand_back()
            if self.recorder.has_abandoned:  # its run is somebody else's only when this process is gone
                log.warning("worker_leaves_a_run", worker=self.worker_id)
                return
            with system_connection(self._parts.get_engine()) as connection:
                lives.forget_worker(connection, self.worker_id)
        except Exception as error:
            log.warning("worker_row_left", error=type(error).__name__)
        log.info("worker_stopped", worker=self.worker_id)

    def _hooks(self, queues: list[str], relay: Relay) -> RecorderHooks:
        engine = self._parts.get_engine()

        def find_held() -> list[HeldLane]:
            with relay_connection(engine) as connection:
                return dispatch.held_lanes(connection, queues)

        def claim_alone() -> Claim | None:
            with relay_connection(engine) as connection:
                return claim_suspect(connection, self.worker_id, queues)

        return RecorderHooks(
            start_run=self._start_run,
            adopt=self._adopt,
            consume=self._consume_or_pause,
            find_held=find_held,
            bury=relay.bury,
            claim_alone=claim_alone,
            on_ended=self._runs_ended,
        )

    def _runs_ended(self, ended: list[RunMessage]) -> None:
        self.life.run_ended(ended)
        self._erase_secrets([each.run_id for each in ended if each.claim is not None and self._has_secrets(each.claim.task)])
        for message in ended:
            if message.is_recorded and message.claim is not None and message.outcome is not None:
                self.signals.ended(message.claim, message.outcome, message.claim.attempt)
        if self._relay is None:
            return
        claims, running = ([each.claim for each in some if each.claim is not None] for some in (ended, self.recorder.runs()))
        if self._relay.releases.ended(claims, running) or self._relay.has_dependants:
            self._housekeepers[0].wake()

    def _has_secrets(self, task: str) -> bool:
        return task in self.actors and bool(secrets_of(self.task(task)))

    def _erase_secrets(self, run_ids: list[str]) -> None:
        """At once, where the process is there to do it; the sweep over the outbox finds what is left."""
        if not run_ids:
            return
        try:
            with session_scope(system=True, engine=self._parts.get_engine()) as session:
                erase_ended(session, run_ids)
        except Exception as error:  # the runs have ended, whatever this comes to
            log.warning("secrets_left", runs=len(run_ids), error=type(error).__name__)

    def _retire(self, grace: float | None) -> None:
        self.on_retire(grace)

    def _tell_of_held(self) -> None:
        self.recorder.held_runs_wait()

    def _offer_to_be_alone(self) -> None:
        if not self.recorder.is_alone:
            with relay_connection(self._parts.get_engine()) as connection:
                is_our_turn = lives.may_be_alone(connection, self.worker_id)
            if is_our_turn:
                self.recorder.suspects_wait()

    def _consume_or_pause(self, wanted: bool) -> None:
        for consumer in self.consumers:
            (consumer.resume if wanted else consumer.pause)()

    def _start_run(self, message: RunMessage) -> None:
        assert self._worker is not None
        if message.queue_name in self._worker.consumers and message.actor_name in self.actors:
            self._worker.work_queue.put(message)  # type: ignore[arg-type]
        elif message.claim is not None:  # claimed by a worker that does not have the task: somebody else may
            message.outcome = handed_back(message.claim, PARKED_SECONDS)
            self.recorder.finished(message)

    def _adopt(self, delivery: Delivery, envelope: Envelope) -> Verdict | Rejection | None:
        """Looks again at a message that there was nothing to claim for. None when there is now.

        A dead letter that somebody moved back to its queue replays its run, if that run is the dead letter of that attempt. A plain
        `.send()` of a service that shares the broker and the signing key, but not the database, gets its row here. Anything
        else is stale; what cannot be recorded is rejected.
        """
        if envelope.attempt is not None:
            return None if delivery.was_dead and self._replay(envelope) else Verdict.ACK
        try:
            with acting_as(Identity(envelope.tenant_id, envelope.user_id)), session_scope(engine=self._parts.get_engine()) as session:
                _, is_new = record(session, Call(self.task(envelope.task), run_id=envelope.run_id), envelope.args)
                session.info.pop("after_commit", None)  # its message is here already
        except UnavailableError:
            raise
        except (MailroomError, ActorNotFound, IntegrityError) as error:  # wrong arguments, no such task, no such tenant
            log.error("message_not_adopted", task_id=envelope.run_id, task_name=envelope.task, error=type(error).__name__)
            if self._has_secrets(envelope.task):
                return Verdict.ACK  # a dead letter would show them for as long as it lies there
            return Rejection("unknown_task" if isinstance(error, ActorNotFound) else "not_recordable")
        if self._has_secrets(envelope.task):
            log.warning("secret_on_the_broker", task_id=envelope.run_id, task_name=envelope.task)
        return None if is_new else Verdict.ACK

    def _replay(self, envelope: Envelope) -> bool:
        with session_scope(system=True, engine=self._parts.get_engine()) as session:
            return TaskRuns(session).replay_moved(envelope.run_id, envelope.tenant_id, envelope.attempt or 0)

    def _wait_for_broker(self, run_ids: list[str]) -> None:
        with system_connection(self._parts.get_engine()) as connection:
            dispatch.wait_for_broker(connection, run_ids)
