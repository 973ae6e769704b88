"""Statements over many runs at once, each over at most BATCH rows, so that no statement keeps workers waiting for its locks.

Rows that somebody else has locked are passed over: whoever sweeps looks again. What was recorded after the sweep began stays as it is.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Select, Update, func, or_, select, text, update

from core.errors import ConflictError
from storage.expressions import db_now
from storage.models import TaskRun
from storage.models.runs import EXCEPTIONS
from storage.repositories.runs import RunFilter, TaskRuns, as_replayed, as_revoked, mark_of
from storage.states import WAITING, Ending, State
from storage.webhook_events import note_revoked

BATCH = 1000
BEFORE_ANY_ID = "00000000-0000-0000-0000-000000000000"


class ManyRuns(TaskRuns):
    """The runs the identity may see. Each sweep goes on after an id and returns the ids it changed, in order; fewer than BATCH: the end."""

    def database_time(self) -> datetime:
        """For `until`: runs that are recorded later are left alone."""
        moment: datetime = self.session.scalar(select(db_now()))  # type: ignore[assignment]
        return moment

    def count_exactly(self, narrowed: RunFilter, until: datetime) -> int:
        """How many there are, however long it takes."""
        found = self._until(narrowed, until).with_only_columns(TaskRun.id).subquery()
        return self.session.scalar(select(func.count()).select_from(found)) or 0

    def revoke_waiting(self, narrowed: RunFilter, until: datetime, after: str = BEFORE_ANY_ID) -> list[str]:
        """Ends waiting runs."""
        waiting = self._until(narrowed, until).where(TaskRun.state.in_(sorted(WAITING)))
        revoked = self._change(waiting, after, update(TaskRun).values(**as_revoked("revoked")))
        note_revoked(self.session.connection(), revoked)
        return revoked

    def mark_running(self, narrowed: RunFilter, until: datetime, after: str = BEFORE_ANY_ID, *, terminate: bool) -> list[str]:
        """Marks running runs that bear no such mark yet."""
        weaker = [Ending.HARD_LIMIT, *([Ending.REVOKE] if terminate else [])]
        running = self._until(narrowed, until).where(TaskRun.state == State.STARTED)
        unmarked = running.where(or_(TaskRun.ending.is_(None), TaskRun.ending.in_(weaker)))
        return self._change(unmarked, after, update(TaskRun).values(ending=mark_of(terminate=terminate)))

    def replay_dead(self, narrowed: RunFilter, until: datetime, after: str = BEFORE_ANY_ID) -> tuple[list[str], list[str]]:
        """Replays dead letters. Returns the ids looked at and those of them that were replayed: another run may hold a unique key."""
        ids = list(self.session.scalars(self._next(self._dead(narrowed, until), after)))
        special = self._tied(ids)
        plain = update(TaskRun).where(TaskRun.id.in_([run_id for run_id in ids if run_id not in special]))
        replayed = list(self.session.scalars(plain.values(**as_replayed()).returning(TaskRun.id)))
        return ids, replayed + [run_id for run_id in ids if run_id in special and self._is_replayed(run_id)]

    def purge_dead(self, narrowed: RunFilter, until: datetime, after: str = BEFORE_ANY_ID) -> list[str]:
        """Takes dead letters off the list. They stay in the history as FAILURE."""
        return self._change(self._dead(narrowed, until), after, update(TaskRun).values(dead_lettered_at=None))

    def _tied(self, ids: list[str]) -> set[str]:
        """Those that are not alone in the world: with a unique key, following others, or followed. They are replayed one by one."""
        ties = or_(TaskRun.unique_key.is_not(None), TaskRun.after_run_id.is_not(None), TaskRun.after_group_id.is_not(None))
        tied = self.session.scalars(select(TaskRun.id).where(TaskRun.id.in_(ids), ties))
        lost = select(TaskRun.after_run_id).where(text(EXCEPTIONS), TaskRun.state == State.REVOKED, TaskRun.after_run_id.in_(ids))
        return {*tied, *(run_id for run_id in self.session.scalars(lost) if run_id is not None)}

    def _is_replayed(self, run_id: str) -> bool:
        try:
            self.replay(run_id)
        except ConflictError:
            return False
        return True

    def _dead(self, narrowed: RunFilter, until: datetime) -> Select[TaskRun]:
        return self._until(narrowed, until).where(TaskRun.dead_lettered_at.is_not(None), TaskRun.state == State.FAILURE)

    def _until(self, narrowed: RunFilter, until: datetime) -> Select[TaskRun]:
        return self._narrowed(narrowed).where(TaskRun.created_at <= until)

    def _next(self, chosen: Select[TaskRun], after: str) -> Select[str]:
        some = chosen.with_only_columns(TaskRun.id).where(TaskRun.id > after)
        return some.order_by(TaskRun.id).limit(BATCH).with_for_update(skip_locked=True)

    def _change(self, chosen: Select[TaskRun], after: str, change: Update) -> list[str]:
        found = self._next(chosen, after).cte("chosen")  # as a plain subquery PostgreSQL may evaluate it once for each row
        changed = self.session.execute(change.where(TaskRun.id.in_(select(found.c.id))).returning(TaskRun.id))
        return sorted(changed.scalars())
