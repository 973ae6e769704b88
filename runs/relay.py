"""The relay publishes what was committed and never reached a broker, what has become due, and what no worker or broker holds
any more; and gives back the runs of dead workers. It runs in every worker and scheduler, any number of them at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from sqlalchemy import Connection, Engine

from brokers.message import Envelope
from core.logging import get_logger
from storage import dispatch
from storage.dispatch import WORKER_LOST_SECONDS, Publishable
from storage.engine import system_connection

log = get_logger(__name__)
DUE_SECONDS = 1.0
LOOK_AFTER_SECONDS = 3.0
LOST_BATCH = 1000


class RelayPublisher(Protocol):
    """What the relay needs of a Publisher."""

    def publish_now(self, envelopes: Sequence[Envelope]) -> list[str]:
        """Returns the run ids no broker took."""

    def publish_dead_letter(self, envelope: Envelope) -> None:
        """A copy for the management UI."""

    def depth(self, queue_name: str) -> int | None:
        """Messages the brokers hold, None when unknown."""


class Relay:
    """One turn is a few short transactions; each is safe to lose half-way."""

    def __init__(self, engine: Engine, publisher: RelayPublisher) -> None:
        self._engine = engine
        self._publisher = publisher
        self._steady_since: float | None = None
        self._seen_at = 0.0

    def turn(self) -> None:
        """Everything once."""
        self.look_after()
        self.publish_due()

    def chores(self) -> list[tuple[Callable[[], None], float]]:
        """What a Housekeeper does for the relay: what is due within a second, the rest is in no hurry."""
        return [(self.publish_due, DUE_SECONDS), (self._look_after_patiently, LOOK_AFTER_SECONDS)]

    def _look_after_patiently(self) -> None:
        """No rescue until the database was there for as long as a heart may pause: while it was away nobody's heart could beat,
        and living workers would be robbed of what they are running."""
        try:
            with self._transaction() as connection:
                dispatch.ping(connection)
        except Exception:
            self._steady_since = None
            raise
        now = time.monotonic()
        if self._steady_since is None or now - self._seen_at > WORKER_LOST_SECONDS:
            self._steady_since = now
        self._seen_at = now
        self.look_after(rescue=now - self._steady_since >= WORKER_LOST_SECONDS)

    def look_after(self, *, rescue: bool = True) -> None:
        """Rescues, expires, and publishes again what was lost."""
        if rescue:
            self._rescue()
        with self._transaction() as connection:
            expired = dispatch.expire(connection)
        if expired:
            log.info("runs_expired", runs=expired)
        self._publish_lost()

    def _rescue(self) -> None:
        with self._transaction() as connection:
            rescued = dispatch.rescue_orphans(connection)
        for run, is_dead in rescued:
            log.warning("run_rescued", task_id=run.run_id, task_name=run.task, queue=run.queue, dead_lettered=is_dead)
            if is_dead:
                self._publisher.publish_dead_letter(envelope_of(run))

    def publish_due(self) -> None:
        """Publishes what has become due and what no broker took."""
        while True:
            with self._transaction() as connection:
                due = dispatch.take_due(connection)
            untaken = self._publisher.publish_now([envelope_of(run) for run in due]) if due else []
            if untaken or len(due) < dispatch.BATCH:
                return

    def _publish_lost(self) -> None:
        """Published runs that nobody claims: publish again at most as many as the brokers hold too few."""
        with self._transaction() as connection:
            overdue = dispatch.overdue_queues(connection)
        for queue, expected in overdue.items():
            depth = self._publisher.depth(queue)
            if depth is None:
                continue  # nobody can say what the brokers hold: calling it lost would double a whole backlog
            self._publish_missing(queue, expected - depth)

    def _publish_missing(self, queue: str, missing: int) -> None:
        while missing > 0:
            with self._transaction() as connection:
                lost = dispatch.take_lost(connection, queue, min(LOST_BATCH, missing))
            if not lost:
                break
            log.warning("messages_published_again", queue=queue, runs=len(lost))
            self._publisher.publish_now([envelope_of(run) for run in lost])
            missing -= len(lost)
        with self._transaction() as connection:
            dispatch.keep_waiting(connection, queue)

    def _transaction(self) -> AbstractContextManager[Connection]:
        return system_connection(self._engine)


def envelope_of(run: Publishable) -> Envelope:
    """The message of a recorded run."""
    return Envelope(run.run_id, run.task, run.queue, run.tenant_id, run.user_id, run.request_id, run.attempt, run.priority)


class Housekeeper(threading.Thread):
    """Does chores, each (function, seconds between) on its own: one that fails does not keep the others from happening."""

    def __init__(self, *chores: tuple[Callable[[], None], float]) -> None:
        super().__init__(name="housekeeper", daemon=True)
        now = time.monotonic()
        self._due = [(now + every, chore, every) for chore, every in chores]
        self._stopping = threading.Event()

    def run(self) -> None:
        """Until stopped."""
        while not self._stopping.wait(max(0.0, min(when for when, _, _ in self._due) - time.monotonic())):
            now = time.monotonic()
            self._due = [self._done(chore, every) if when <= now else (when, chore, every) for when, chore, every in self._due]

    def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()
        if self.is_alive():
            self.join(5)

    @staticmethod
    def _done(chore: Callable[[], None], every: float) -> tuple[float, Callable[[], None], float]:
        try:
            chore()
        except Exception as error:
            log.warning("housekeeping_failed", chore=chore.__qualname__, error=type(error).__name__)
        return time.monotonic() + every, chore, every
