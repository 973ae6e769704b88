"""What is cleared and deleted once it is old: results, ended runs with their attempts, sessions, ticks, workers. For the system.

Every statement takes at most BATCH rows, found by an index and locked with SKIP LOCKED, in a transaction of its own: nobody waits for a
clean-up, and one that is stopped half-way has done half. What somebody still needs is passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, literal, select, text, tuple_, update

from storage import postgres
from storage.expressions import db_now, db_now_plus
from storage.models import DashboardSession, TaskAttempt, TaskRun, WorkerProcess
from storage.models.runs import HAS_RESULT, IS_HISTORY
from storage.repositories.base import Repository
from storage.states import LIVE
from storage.types import Id, UtcDateTime

BATCH = 1000
DEAD_WORKER_SECONDS = 86_400.0
BEFORE_ANY_TIME = datetime(1970, 1, 1, tzinfo=UTC)
BEFORE_ANY_ID = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True)
class Place:
    """Up to where the ended runs were looked at: those that are spared are not looked at again."""

    finished_at: datetime = BEFORE_ANY_TIME
    run_id: str = BEFORE_ANY_ID


@dataclass(frozen=True, slots=True)
class Step:
    """One batch: how many rows it changed, and where the next begins (None: this was the last)."""

    changed: int
    goes_on: Place | None


class History(Repository):
    """Every method does one batch."""

    def clear_results(self, older_than: float, place: Place) -> Step:
        """Forgets the results of runs that ended so many seconds ago; the runs stay. Spared are those that a follower may read."""
        rows = self._ended(HAS_RESULT, older_than, place)
        ids = self._free(rows)
        if ids:
            self._changed(update(TaskRun).where(TaskRun.id.in_(ids)).values(result=None))
        return self._step(rows, len(ids))

    def forget_runs(self, older_than: float, place: Place) -> Step:
        """Deletes runs that ended so many seconds ago, with their attempts. Spared are dead letters, and what a follower waits for."""
        rows = self._ended(IS_HISTORY, older_than, place)
        ids = self._free(rows)
        if ids:
            self._changed(delete(TaskAttempt).where(TaskAttempt.run_id.in_(ids)))
            self._changed(delete(TaskRun).where(TaskRun.id.in_(ids)))
        return self._step(rows, len(ids))

    def forget_sessions(self) -> int:
        """Deletes logins to the dashboard that have expired."""
        expired = select(DashboardSession.digest).where(DashboardSession.expires_at <= db_now()).order_by(DashboardSession.expires_at)
        digests = list(self.session.scalars(expired.limit(BATCH).with_for_update(skip_locked=True)))
        return self._changed(delete(DashboardSession).where(DashboardSession.digest.in_(digests))) if digests else 0

    def forget_workers(self) -> int:
        """Deletes the rows of processes of which nothing was heard for a day; any living relay does so after seconds."""
        return self._changed(delete(WorkerProcess).where(WorkerProcess.heartbeat_at < db_now_plus(-DEAD_WORKER_SECONDS)))

    def time_before(self, seconds: float) -> datetime:
        """That moment on the database's clock."""
        return self.session.execute(select(db_now_plus(-seconds))).scalar_one()

    def _ended(self, where: str, older_than: float, place: Place) -> Sequence[Any]:
        """The longest ended of them, locked. The order is the index' own, so that it is entered right behind the last batch."""
        if self.session.get_bind().dialect.name == "postgresql":
            postgres.plan_with_indexes(self.session.connection())
        key = tuple_(TaskRun.finished_at, TaskRun.id)
        old = select(TaskRun.id, TaskRun.finished_at, TaskRun.group_id).where(
            text(where),
            TaskRun.finished_at < db_now_plus(-older_than),
            key > tuple_(literal(place.finished_at, UtcDateTime), literal(place.run_id, Id)),
        )
        return self.session.execute(old.order_by(TaskRun.finished_at, TaskRun.id).limit(BATCH).with_for_update(skip_locked=True)).all()

    def _free(self, rows: Sequence[Any]) -> list[str]:
        """Those that no live run follows, neither them nor the group that they are members of.

        Asked from the few that follow: as a condition on the many, PostgreSQL reads every run to answer it.
        """
        ids, groups = [row.id for row in rows], sorted({row.group_id for row in rows if row.group_id is not None})
        is_live = TaskRun.state.in_(sorted(LIVE))
        awaited = set(self.session.scalars(select(TaskRun.after_run_id).where(TaskRun.after_run_id.in_(ids), is_live))) if ids else set()
        waiting = select(TaskRun.after_group_id).where(TaskRun.after_group_id.in_(groups), is_live)
        open_groups = set(self.session.scalars(waiting)) if groups else set()
        return [row.id for row in rows if row.id not in awaited and row.group_id not in open_groups]

    def _step(self, rows: Sequence[Any], changed: int) -> Step:
        return Step(changed, Place(rows[-1].finished_at, rows[-1].id) if len(rows) == BATCH else None)

    def _changed(self, statement: Any) -> int:
        done = self.session.execute(statement.execution_options(synchronize_session=False))
        return int(done.rowcount)  # type: ignore[attr-defined]
