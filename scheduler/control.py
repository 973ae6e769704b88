"""What people do to schedules: look, start one now, pause, resume. They are the system's; every function takes its session."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from core.errors import NotFoundError
from runs.enqueue import record
from runs.registry import get_task, task_names
from runs.task import Call, Task
from runs.timetable import Timetable
from storage.models import Schedule, TaskRun
from storage.repositories.runs import TaskRuns
from storage.repositories.schedules import LastTick, Schedules


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """A schedule, when it fires next (None while it is paused), its last firing and how far the run of that has come.

    `last_is_skipped`: that run was there already, started by an earlier firing. A start may come up to `jitter` seconds after its time.
    """

    task: str
    cron: str
    timezone: str
    catch_up: str
    overlap: str
    jitter: float
    is_paused: bool
    checked_until: datetime
    next_tick_at: datetime | None
    last_tick_at: datetime | None
    last_task_id: str | None
    last_state: str | None
    last_is_skipped: bool


def get_schedules(session: Session) -> list[ScheduleInfo]:
    """All of them, by name."""
    schedules = Schedules(session)
    ticks, moment = schedules.last_ticks(), schedules.database_time()
    return [_info(schedule, ticks.get(schedule.task), moment) for schedule in schedules.all()]


def run_now(session: Session, name: str) -> TaskRun:
    """Starts a schedule's task once, beside its ticks, paused or not. Where its runs may not overlap and one is live, that one is
    returned. Raises NotFoundError."""
    task = get_task(name) if name in task_names() else None
    if not isinstance(task, Task) or task.schedule is None:
        raise NotFoundError(f"There is no schedule named {name[:80]}.")
    return TaskRuns(session).one(record(session, Call(task, unique_key=task.schedule.key), {})[0])


def set_paused(session: Session, name: str, *, paused: bool) -> None:
    """A paused schedule fires nothing; what it missed is not made up for. Raises NotFoundError."""
    Schedules(session).set_paused(name, paused=paused)


def _info(schedule: Schedule, last: LastTick | None, moment: datetime) -> ScheduleInfo:
    following = None if schedule.is_paused else Timetable(schedule.cron, schedule.timezone).next_after(max(moment, schedule.checked_until))
    return ScheduleInfo(
        task=schedule.task,
        cron=schedule.cron,
        timezone=schedule.timezone,
        catch_up=schedule.catch_up,
        overlap=schedule.overlap,
        jitter=schedule.jitter,
        is_paused=schedule.is_paused,
        checked_until=schedule.checked_until,
        next_tick_at=following,
        last_tick_at=last.minute if last else None,
        last_task_id=last.run_id if last else None,
        last_state=last.run_state if last else None,
        last_is_skipped=last.is_skipped if last else False,
    )
