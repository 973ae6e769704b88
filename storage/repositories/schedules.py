"""Schedules and their ticks; for the system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import and_, func, or_, select, update
from sqlalchemy import delete as sql_delete
from sqlalchemy.dialects import postgresql, sqlite

from core.errors import NotFoundError
from core.tenancy import SYSTEM_TENANT
from storage.expressions import db_now, db_now_plus
from storage.models import Schedule, ScheduleTick, TaskRun
from storage.repositories.base import Repository
from storage.states import LIVE

TICK_HISTORY_SECONDS = 7 * 86_400
UNDECLARED_SECONDS = 86_400
"""A schedule that nobody has declared for so long is forgotten: of an older release, or of a task that is no more."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What a task says of its schedule."""

    cron: str
    timezone: str = "UTC"
    catch_up: str = "once"
    overlap: str = "allow"
    jitter: float = 0.0


@dataclass(frozen=True, slots=True)
class LastTick:
    """The newest firing of a schedule and the state of its run, None when that is gone."""

    minute: datetime
    run_id: str
    is_skipped: bool
    run_state: str | None


class Schedules(Repository):
    """What the actors declared, and what fired."""

    def database_time(self) -> datetime:
        """The one clock of all schedulers."""
        moment: datetime = self.session.scalar(select(db_now()))  # type: ignore[assignment]
        return moment

    def declare(self, declared: Mapping[str, Declared], since: datetime, *, change: bool = True) -> None:
        """Adds new schedules and, if it is to `change` them, changed ones: they fire from `since` on, no past is made up for.

        Those that are not declared stay for a day: another release may run beside this one.
        """
        known = {schedule.task: schedule for schedule in self.all()}
        for task, new in declared.items():
            values = {"declared_at": db_now()} | (asdict(new) if change or task not in known else {})
            if task not in known:
                self._insert_if_absent(task, values, since)
                continue
            if change and (known[task].cron, known[task].timezone) != (new.cron, new.timezone):
                values["checked_until"] = since
            self.session.execute(update(Schedule).where(Schedule.task == task).values(**values))
        forgotten = or_(Schedule.declared_at.is_(None), Schedule.declared_at < db_now_plus(-UNDECLARED_SECONDS))
        self.session.execute(sql_delete(Schedule).where(Schedule.task.not_in(list(declared)), forgotten))
        self.session.expire_all()

    def all(self) -> list[Schedule]:
        """Every schedule, by name."""
        return list(self.session.scalars(select(Schedule).order_by(Schedule.task)))

    def take(self, task: str, *, wait: bool = False) -> Schedule | None:
        """Locks a schedule for this transaction; None for none, and, unless it is waited for, while another scheduler has it."""
        statement = select(Schedule).where(Schedule.task == task).with_for_update(skip_locked=not wait)
        return self.session.scalar(statement.execution_options(populate_existing=True))

    def tick(self, task: str, minute: datetime, run_id: str) -> bool:
        """Records a firing. False when this minute has fired already."""
        statement = self._upsert(ScheduleTick).values(task=task, minute=minute, run_id=run_id, is_skipped=False, created_at=db_now())
        return self.session.execute(statement.on_conflict_do_nothing().returning(ScheduleTick.task)).scalar() is not None

    def skip_tick(self, task: str, minute: datetime, run_id: str) -> None:
        """A firing that made no run: this one stands for it."""
        mine = and_(ScheduleTick.task == task, ScheduleTick.minute == minute)
        self.session.execute(update(ScheduleTick).where(mine).values(run_id=run_id, is_skipped=True))

    def live_run(self, task: str, key: str) -> str | None:
        """The run of a schedule that waits or runs, where only one may."""
        mine = and_(TaskRun.tenant_id == SYSTEM_TENANT, TaskRun.task == task, TaskRun.unique_key == key)
        return self.session.scalar(select(TaskRun.id).where(mine, TaskRun.state.in_(sorted(LIVE))))

    def last_ticks(self) -> dict[str, LastTick]:
        """Task to its newest firing."""
        newest = select(ScheduleTick.task, func.max(ScheduleTick.minute).label("minute")).group_by(ScheduleTick.task).subquery()
        rows = self.session.execute(
            select(ScheduleTick.task, ScheduleTick.minute, ScheduleTick.run_id, ScheduleTick.is_skipped, TaskRun.state)
            .join(newest, and_(newest.c.task == ScheduleTick.task, newest.c.minute == ScheduleTick.minute))
            .outerjoin(TaskRun, TaskRun.id == ScheduleTick.run_id)
        )
        return {row.task: LastTick(row.minute, row.run_id, row.is_skipped, row.state) for row in rows}

    def set_paused(self, task: str, *, paused: bool) -> None:
        """What passed while it was paused was not missed. Raises NotFoundError for a task without a schedule."""
        if not paused:
            passed = and_(Schedule.task == task, Schedule.is_paused, Schedule.checked_until < db_now())
            self.session.execute(update(Schedule).where(passed).values(checked_until=db_now()))
        changed = self.session.execute(update(Schedule).where(Schedule.task == task).values(is_paused=paused).returning(Schedule.task))
        if changed.scalar() is None:
            raise NotFoundError(f"There is no schedule named {task}.")

    def forget_old_ticks(self) -> None:
        """Ticks are kept for a week; a firing is never looked for further back."""
        self.session.execute(sql_delete(ScheduleTick).where(ScheduleTick.created_at < db_now_plus(-TICK_HISTORY_SECONDS)))

    def _insert_if_absent(self, task: str, values: dict[str, object], since: datetime) -> None:
        statement = self._upsert(Schedule).values(task=task, is_paused=False, checked_until=since, **values)
        self.session.execute(statement.on_conflict_do_nothing())

    def _upsert(self, model: type[Schedule] | type[ScheduleTick]) -> postgresql.Insert | sqlite.Insert:
        return (postgresql.insert if self.session.get_bind().dialect.name == "postgresql" else sqlite.insert)(model)
