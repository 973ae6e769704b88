"""The relay publishes what was committed and never reached a broker, what has become due, and what no worker or broker holds
any more; and gives back the runs of dead workers. It runs in every worker and scheduler, any number of them at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from sqlalchemy import Connection, Engine

from brokers.message import Envelope
from core.logging import get_logger
from storage import dispatch
from storage.dispatch import Publishable
from storage.engine import system_connection

log = get_logger(__name__)
RELAY_SECONDS = 1.0
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

    def turn(self) -> None:
        """Everything once."""
        self._rescue()
        with self._transaction() as connection:
            expired = dispatch.expire(connection)
        if expired:
            log.info("runs_expired", runs=expired)
        self._publish_due()
        self._publish_lost()

    def _rescue(self) -> None:
        with self._transaction() as connection:
            rescued = dispatch.rescue_orphans(connection)
        for run, is_dead in rescued:
            log.warning("run_rescued", task_id=run.run_id, task_name=run.task, queue=run.queue, dead_lettered=is_dead)
            if is_dead:
                self._publisher.publish_dead_letter(envelope_of(run))

    def _publish_due(self) -> None:
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
    """Does `chores` every second (each on its own: one that fails does not keep the others from happening)."""

    def __init__(self, *chores: Callable[[], None], every: float = RELAY_SECONDS) -> None:
        super().__init__(name="housekeeper", daemon=True)
        self._chores = chores
        self._every = every
        self._stopping = threading.Event()

    def run(self) -> None:
        """Until stopped."""
        while not self._stopping.wait(self._every):
            for chore in self._chores:
                try:
                    chore()
                except Exception as error:
                    log.warning("housekeeping_failed", chore=chore.__qualname__, error=type(error).__name__)

    def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()
        if self.is_alive():
            self.join(5)
