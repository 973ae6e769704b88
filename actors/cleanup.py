"""What Mailroom itself lets go: results and history that are old, sessions that have expired, sources that were kept for long enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypedDict, TypeVar

from periodiq import cron
from sqlalchemy.orm import Session

from brokers.queues import Queue
from core.logging import get_logger
from core.settings import get_settings
from runs.progress import progress
from runs.task import task
from storage.engine import session_scope
from storage.repositories.health import ServiceHealths
from storage.repositories.history import BATCH, History, Place, Step
from storage.repositories.messages import EmailMessages
from storage.repositories.schedules import Schedules

log = get_logger(__name__)
T = TypeVar("T")
DAY_SECONDS = 86_400.0
BUDGET_SECONDS = 200.0
"""Well below the soft limit; what is left then is for the next time."""
REST = 0.5
"""After a batch, so much of the time that it took: others come first."""
LONGEST_REST_SECONDS = 0.5


class StaleResult(TypedDict):
    """How many results were cleared and rows deleted; `has_more`: there was no time for everything."""

    status: str
    cleared_count: int
    deleted_count: int
    sources_deleted: int
    checks_deleted: int
    has_more: bool


class SessionsResult(TypedDict):
    """How many expired sessions were deleted."""

    status: str
    deleted_count: int
    has_more: bool


@task(queue=Queue.PERIODIC, periodic=cron("20 * * * *"))
def cleanup_stale_results() -> StaleResult:
    """Clear old results, and delete old history, sources, checks and ticks."""
    settings = get_settings()
    history = settings.history_days * DAY_SECONDS
    sweep = _Sweep()
    cleared = sweep.walk(lambda session, place: History(session).clear_results(min(float(settings.result_ttl), history), place), "results")
    deleted = sweep.walk(lambda session, place: History(session).forget_runs(history, place), "runs")
    sources = sweep.repeat(partial(_forget_sources, settings.raw_retention * DAY_SECONDS), "sources")
    checks = sweep.repeat(lambda session: ServiceHealths(session).forget(settings.health_history_days, BATCH), "checks")
    with session_scope(system=True) as session:
        Schedules(session).forget_old_ticks()
        History(session).forget_workers()
    log.info("stale_results_cleaned", cleared=cleared, deleted=deleted, sources=sources, checks=checks, has_more=sweep.has_more)
    return StaleResult(
        status="success",
        cleared_count=cleared,
        deleted_count=deleted,
        sources_deleted=sources,
        checks_deleted=checks,
        has_more=sweep.has_more,
    )


@task(queue=Queue.PERIODIC, periodic=cron("40 3 * * *"))
def cleanup_old_sessions() -> SessionsResult:
    """Delete logins to the dashboard that have expired."""
    sweep = _Sweep()
    deleted = sweep.repeat(lambda session: History(session).forget_sessions(), "sessions")
    return SessionsResult(status="success", deleted_count=deleted, has_more=sweep.has_more)


@dataclass
class _Sweep:
    """Batches, each in a transaction of its own, with a rest after it, until nothing is left or the time is over."""

    has_more: bool = False

    def __post_init__(self) -> None:
        self._until = time.monotonic() + BUDGET_SECONDS

    def walk(self, step: Callable[[Session, Place], Step], what: str) -> int:
        """Batches that go on from place to place, for half of the time that is left. Returns how many rows were changed."""
        until = time.monotonic() + (self._until - time.monotonic()) / 2
        place: Place | None = Place()
        total = 0
        while place is not None and time.monotonic() <= until:
            here = place
            done = self._rested(lambda session: step(session, here))  # noqa: B023  (called at once)
            total, place = total + done.changed, done.goes_on
            progress(total, total + 1, what)
        self.has_more |= place is not None
        return total

    def repeat(self, step: Callable[[Session], int], what: str) -> int:
        """Batches until one is not full. Returns how many rows were changed."""
        total, last = 0, BATCH
        while last >= BATCH and time.monotonic() <= self._until:
            last = self._rested(step)
            total += last
            progress(total, total + 1, what)
        self.has_more |= last >= BATCH
        return total

    @staticmethod
    def _rested(step: Callable[[Session], T]) -> T:
        began = time.monotonic()
        with session_scope(system=True) as session:
            done = step(session)
        time.sleep(min(LONGEST_REST_SECONDS, REST * (time.monotonic() - began)))
        return done


def _forget_sources(older_than: float, session: Session) -> int:
    return EmailMessages(session).forget_sources(History(session).time_before(older_than), BATCH)
