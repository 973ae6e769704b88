"""Schedules and their ticks; for the system."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import delete as sql_delete
from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite

from core.errors import NotFoundError
from storage.expressions import db_now, db_now_plus
from storage.models import Schedule, ScheduleTick
from storage.repositories.base import Repository

TICK_HISTORY_SECONDS = 7 * 86_400


class Schedules(Repository):
    """What the actors declared, and what fired."""

    def database_time(self) -> datetime:
        """The one clock of all schedulers."""
        moment: datetime = self.session.scalar(select(db_now()))  # type: ignore[assignment]
        return moment

    def declare(self, crons: Mapping[str, str], since: datetime) -> None:
        """Adds new schedules (from `since` on), changes changed ones, removes those no actor declares any more."""
        known = {schedule.task: schedule for schedule in self.all()}
        for task, cron in crons.items():
            if task not in known:
                self._insert_if_absent(task, cron, since)
            elif known[task].cron != cron:
                known[task].cron = cron
        for task in known.keys() - crons.keys():
            self.session.execute(sql_delete(Schedule).where(Schedule.task == task))

    def all(self) -> list[Schedule]:
        """Every schedule, by name."""
        return list(self.session.scalars(select(Schedule).order_by(Schedule.task)))

    def take(self, task: str) -> Schedule | None:
        """Locks a schedule for this transaction; None while another scheduler has it."""
        statement = select(Schedule).where(Schedule.task == task).with_for_update(skip_locked=True)
        return self.session.scalar(statement.execution_options(populate_existing=True))

    def tick(self, task: str, minute: datetime, run_id: str) -> bool:
        """Records a firing. False when this minute has fired already."""
        statement = self._upsert(ScheduleTick).values(task=task, minute=minute, run_id=run_id, created_at=db_now())
        return self.session.execute(statement.on_conflict_do_nothing().returning(ScheduleTick.task)).scalar() is not None

    def last_ticks(self) -> dict[str, ScheduleTick]:
        """Task to its newest firing."""
        newest: dict[str, ScheduleTick] = {}
        for tick in self.session.scalars(select(ScheduleTick).order_by(ScheduleTick.minute)):
            newest[tick.task] = tick
        return newest

    def set_paused(self, task: str, *, paused: bool) -> None:
        """Raises NotFoundError for a task without a schedule."""
        changed = self.session.execute(update(Schedule).where(Schedule.task == task).values(is_paused=paused).returning(Schedule.task))
        if changed.scalar() is None:
            raise NotFoundError(f"There is no schedule named {task}.")

    def forget_old_ticks(self) -> None:
        """Ticks are kept for a week; a firing is never looked for further back."""
        self.session.execute(sql_delete(ScheduleTick).where(ScheduleTick.created_at < db_now_plus(-TICK_HISTORY_SECONDS)))

    def _insert_if_absent(self, task: str, cron: str, since: datetime) -> None:
        statement = self._upsert(Schedule).values(task=task, cron=cron, is_paused=False, checked_until=since)
        self.session.execute(statement.on_conflict_do_nothing())

    def _upsert(self, model: type[Schedule] | type[ScheduleTick]) -> postgresql.Insert | sqlite.Insert:
        return (postgresql.insert if self.session.get_bind().dialect.name == "postgresql" else sqlite.insert)(model)
