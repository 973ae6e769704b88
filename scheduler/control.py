"""What people do to schedules: look, start one now, pause, resume. They are the system's; every function takes its session."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from core.errors import NotFoundError
from runs.enqueue import record
from runs.registry import get_task, task_names
from runs.task import Call, Task
from storage.models import TaskRun
from storage.repositories.runs import TaskRuns
from storage.repositories.schedules import Schedules


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """A schedule and its last firing."""

    task: str
    cron: str
    is_paused: bool
    checked_until: datetime
    last_tick_at: datetime | None
    last_task_id: str | None


def get_schedules(session: Session) -> list[ScheduleInfo]:
    """All of them, by name."""
    schedules = Schedules(session)
    ticks = schedules.last_ticks()
    found = []
    for schedule in schedules.all():
        tick = ticks.get(schedule.task)
        at, run_id = (tick.minute, tick.run_id) if tick is not None else (None, None)
        found.append(ScheduleInfo(schedule.task, schedule.cron, schedule.is_paused, schedule.checked_until, at, run_id))
    return found


def run_now(session: Session, name: str) -> TaskRun:
    """Starts a schedule's task once, beside its ticks, paused or not. Raises NotFoundError."""
    task = get_task(name) if name in task_names() else None
    if not isinstance(task, Task) or "periodic" not in task.options:
        raise NotFoundError(f"There is no schedule named {name[:80]}.")
    return TaskRuns(session).one(record(session, Call(task), {})[0])


def set_paused(session: Session, name: str, *, paused: bool) -> None:
    """A paused schedule fires nothing; what it missed is not made up for. Raises NotFoundError."""
    Schedules(session).set_paused(name, paused=paused)
