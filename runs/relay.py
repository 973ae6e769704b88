"""The relay publishes what was committed and never reached a broker, what has become due, and what no worker or broker holds
any more; and gives back the runs of dead workers. It runs in every worker and scheduler, any number of them at once."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import dramatiq
from sqlalchemy import Connection, Engine

from brokers.message import Envelope
from brokers.queues import policy_of
from core.logging import get_logger
from runs.admission import Admission
from runs.inbox import Inbox
from runs.process_key import is_gone
from runs.releases import Releases
from runs.retry import lost
from runs.task import Task
from storage import dispatch, lives
from storage.dispatch import Publishable
from storage.engine import relay_connection
from storage.lives import WORKER_LOST_SECONDS, LostRun
from storage.lookout import Lookout, ToDo
from storage.outcomes import Outcome
from storage.states import State

log = get_logger(__name__)
Chore = tuple[Callable[[], None], float]
"""What to do, and how many seconds after its end it is due again."""
ATTEND_SECONDS = 1.0
LOOK_AFTER_SECONDS = 2.0
LOST_SECONDS = 3.0
LOST_BATCH = 1000
NOT_BY_ITSELF = 86_400.0
TOGETHER_SECONDS = 0.05
"""A housekeeper that gets up for one chore does those that are due so soon, too."""
WOKEN_SECONDS = 0.02
"""However often somebody wakes a housekeeper, so much time passes between the end of the first chore and its next turn."""


class RelayPublisher(Protocol):
    """What the relay needs of a Publisher."""

    def publish_now(self, envelopes: Sequence[Envelope]) -> list[str]:
        """Returns the run ids no broker took."""

    def publish_dead_letter(self, envelope: Envelope, reason: str = "worker_lost") -> None:
        """A copy for the management UI."""

    def depth(self, queue_name: str) -> int | None:
        """Messages the brokers hold, None when unknown."""


@dataclass(frozen=True)
class RelayHooks:
    """What a relay tells the process it works in: in a worker's that there are held runs, that there are suspects; in any that a run's
    attempt ended with its worker, and that there are events for webhooks."""

    on_held: Callable[[], None] = lambda: None
    on_suspects: Callable[[], None] = lambda: None
    on_lost: Callable[[Publishable, Outcome], None] = lambda _run, _outcome: None
    on_deliveries: Callable[[], None] = lambda: None


class Relay:
    """Any number of them may work at once, and each of their steps is safe to lose half-way."""

    def __init__(self, engine: Engine, publisher: RelayPublisher, window: int, hooks: RelayHooks = RelayHooks()) -> None:
        self._engine = engine
        self._publisher = publisher
        self._window = window
        self._hooks = hooks
        self._steady_since: float | None = None
        self._seen_at = 0.0
        self._todo: ToDo | None = None
        self._lookout = Lookout(engine)
        self.releases = Releases(self._transaction)
        self.admission = Admission(engine, self._publish, window)
        self._to_bury: queue.SimpleQueue[tuple[Envelope, str]] = queue.SimpleQueue()
        self._sender: Housekeeper | None = None

    def turn(self) -> None:
        """Everything once."""
        self.look_after()
        self.attend()
        self.dispatch()
        self._publish_lost_if_any()

    def housekeepers(self) -> list[Housekeeper]:
        """The threads that do the relay's work, to be started and stopped: the first sends, and may be woken; the second watches.

        Two: a broker that keeps the sender waiting must not keep runs of dead workers waiting, too.
        """
        self._sender = Housekeeper((self.dispatch, NOT_BY_ITSELF), (self._publish_lost_if_any, LOST_SECONDS))
        return [self._sender, Housekeeper((self.attend, ATTEND_SECONDS), (self._look_after_patiently, LOOK_AFTER_SECONDS))]

    def admitter(self) -> Housekeeper:
        """For a process whose relay does no chores: lets limited runs on when it is woken, and only then."""
        return Housekeeper((self.admission.admit, NOT_BY_ITSELF))

    @property
    def has_dependants(self) -> bool:
        """Whether runs wait for the end of any other: then whoever ends one should wake the relay. Followers wait for certain ones, of
        whose end `releases` is told."""
        return self._todo is not None and self._todo.limited

    def bury(self, envelope: Envelope) -> None:
        """Puts a copy among the dead letters at the next turn, for a run that failed and had no message."""
        self._to_bury.put((envelope, "failed"))

    def close(self) -> None:
        """Closes what it keeps open."""
        self._lookout.close()

    def attend(self) -> None:
        """Looks what there is to do, and does what needs no broker."""
        try:
            todo = self._todo = self._lookout.look()
        except Exception:  # raised again: only that the database did not answer is remembered
            self._steady_since = None
            raise
        now = time.monotonic()
        if self._steady_since is None or now - self._seen_at > WORKER_LOST_SECONDS:
            self._steady_since = now
        self._seen_at = now
        if todo.overrun:
            self._mark_overrun()
        if todo.expired:
            self._expire()
        if todo.held:
            self._hooks.on_held()
        if todo.suspects and self.admission.suspects_wait():
            self._hooks.on_suspects()
        is_any_to_send = todo.due or todo.followers or todo.unswept or todo.paused or todo.limited or todo.deliveries
        if self._sender is not None and (is_any_to_send or not self._to_bury.empty()):
            self._sender.wake()

    def dispatch(self) -> None:
        """Lets on and publishes what the last look found."""
        while not self._to_bury.empty():
            self._publisher.publish_dead_letter(*self._to_bury.get())
        todo = self._todo
        if todo is None:
            return
        is_any_released = self.releases.turn(todo.followers)
        if todo.due or is_any_released:
            self.publish_due()
        self._mind_barriers(todo)
        if todo.deliveries:
            self._hooks.on_deliveries()

    def _mind_barriers(self, todo: ToDo) -> None:
        if todo.unswept:
            self.admission.sweep()
        if todo.paused and self.admission.release():
            self._hooks.on_held()
        if todo.limited or todo.due or todo.paused:
            self.admission.admit()

    def _look_after_patiently(self) -> None:
        """If the last look saw somebody gone. No rescue by missing heartbeats until the database was there for as long as a heart may
        pause: while it was away nobody's heart could beat, and living workers would be robbed of what they are running."""
        if self._steady_since is not None and self._todo is not None and _is_anybody_gone(self._todo):
            self.look_after(trust_hearts=time.monotonic() - self._steady_since >= WORKER_LOST_SECONDS)

    def look_after(self, *, trust_hearts: bool = True) -> None:
        """Gives back the runs of workers that are gone."""
        with self._transaction() as connection:
            gone = [worker_id for worker_id, key in lives.process_keys(connection).items() if is_gone(key)]
            rescued = lives.rescue_orphans(connection, gone, _what_becomes, trust_hearts=trust_hearts)
        for run, outcome in rescued:
            is_dead = outcome.state is State.FAILURE
            log.warning("run_rescued", task_id=run.run_id, task_name=run.task, queue=run.queue, state=outcome.state, reason=outcome.reason)
            if is_dead:
                self._to_bury.put((envelope_of(run), "worker_lost"))
            self._hooks.on_lost(run, outcome)

    def _mark_overrun(self) -> None:
        with self._transaction() as connection:
            marked = lives.mark_overrun(connection)
        for run_id in marked:
            log.error("hard_limit_passed", task_id=run_id)

    def _expire(self) -> None:
        with self._transaction() as connection:
            expired = dispatch.expire(connection)
        log.info("runs_expired", runs=expired)

    def publish_due(self) -> None:
        """Publishes what has become due and what no broker took, as far as the lanes have room."""
        while True:
            with self._transaction() as connection:
                due, found = dispatch.take_due(connection, self._window)
            if not self._publish(due) or found < dispatch.BATCH:
                return

    def _publish(self, runs: Sequence[Publishable]) -> bool:
        """False when no broker took some of them."""
        return not runs or not self._publisher.publish_now([envelope_of(run) for run in runs])

    def _publish_lost_if_any(self) -> None:
        if self._todo is not None and self._todo.lost:
            self._publish_lost()

    def _publish_lost(self) -> None:
        """Published runs that nobody claims: publish again at most as many as the brokers hold too few."""
        with self._transaction() as connection:
            overdue = dispatch.overdue_queues(connection)
        for name, expected in overdue.items():
            depth = self._publisher.depth(name)
            if depth is None:
                continue  # nobody can say what the brokers hold: calling it lost would double a whole backlog
            self._publish_missing(name, expected - depth)

    def _publish_missing(self, name: str, missing: int) -> None:
        while missing > 0:
            with self._transaction() as connection:
                lost = dispatch.take_lost(connection, name, min(LOST_BATCH, missing))
            if not lost:
                break
            log.warning("messages_published_again", queue=name, runs=len(lost))
            self._publisher.publish_now([envelope_of(run) for run in lost])
            missing -= len(lost)
        with self._transaction() as connection:
            dispatch.keep_waiting(connection, name)

    def _transaction(self) -> AbstractContextManager[Connection]:
        return relay_connection(self._engine)


def _is_anybody_gone(todo: ToDo) -> bool:
    return todo.orphans or any(is_gone(key) for key in (todo.process_keys or "").splitlines())


def _what_becomes(run: LostRun) -> Outcome:
    """By the policy of its task, and by its queue's where this process does not know the task."""
    known = dramatiq.get_broker().actors.get(run.message.task)
    return lost(run, known.base_backoff if isinstance(known, Task) else policy_of(run.message.queue).base_backoff)


def envelope_of(run: Publishable) -> Envelope:
    """The message of a recorded run."""
    return Envelope(run.run_id, run.task, run.queue, run.tenant_id, run.user_id, run.request_id, run.attempt, run.priority)


class Housekeeper(threading.Thread):
    """Does chores, each on its own: one that fails does not keep the others from happening."""

    def __init__(self, *chores: Chore) -> None:
        super().__init__(name="housekeeper", daemon=True)
        now = time.monotonic()
        self._due = [(now + every, chore, every) for chore, every in chores]
        self._calls: Inbox[bool] = Inbox()

    def run(self) -> None:
        """Until stopped."""
        while True:
            try:
                goes_on = self._calls.get(timeout=max(0.0, min(when for when, _, _ in self._due) - time.monotonic()))
                while not self._calls.empty():
                    goes_on &= self._calls.get()
                if not goes_on:
                    return
                when, chore, every = self._due[0]
                self._due[0] = (min(when, when - every + WOKEN_SECONDS), chore, every)
                now = time.monotonic()
            except queue.Empty:
                now = time.monotonic() + TOGETHER_SECONDS
            self._due = [self._done(chore, every) if when <= now else (when, chore, every) for when, chore, every in self._due]

    def wake(self) -> None:
        """The first chore is due now, or as soon as its last turn is long enough ago."""
        self._calls.put(True)

    def stop(self) -> None:
        """Ends the thread."""
        self._calls.put(False)
        if self.is_alive():
            self.join(5)

    @staticmethod
    def _done(chore: Callable[[], None], every: float) -> tuple[float, Callable[[], None], float]:
        try:
            chore()
        except Exception as error:
            log.warning("housekeeping_failed", chore=chore.__qualname__, error=type(error).__name__)
        return time.monotonic() + every, chore, every
