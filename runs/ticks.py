"""A tick is one run: a schedule's minute is recorded together with the run it starts, by whichever scheduler comes first."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from typing import Any

from sqlalchemy.orm import Session

from core.ids import new_id
from runs.enqueue import record
from runs.schedule import Overlap
from runs.task import Call, Task
from storage.repositories.schedules import Schedules


class Untold(Enum):
    """Why a minute started nothing."""

    FIRED = "another scheduler has started it"
    SKIPPED = "a run of the schedule was there"
    WAITS = "a run of the schedule has to end first"


def fire(session: Session, task: Task[Any, Any], minute: datetime) -> str | Untold:
    """Starts the run of a schedule's minute and returns its id. The schedule's row, if there is one, is locked by the caller."""
    schedule = task.schedule
    assert schedule is not None
    schedules, run_id = Schedules(session), new_id()
    if schedule.overlap is Overlap.QUEUE and schedules.live_run(task.actor_name, schedule.key or ""):
        return Untold.WAITS
    if not schedules.tick(task.actor_name, minute, run_id):
        return Untold.FIRED
    delay = schedule.delay_of(task.actor_name, minute)
    call: Call[Any, Any] = Call(task, run_id=run_id, unique_key=schedule.key, eta=minute + delay if delay else None)
    recorded, is_new = record(session, call, {})
    if not is_new:
        schedules.skip_tick(task.actor_name, minute, recorded)
        return Untold.SKIPPED
    return run_id


def fire_from_periodiq(session: Session, task: Task[Any, Any], scheduled_at: str) -> str | None:
    """The same for a message of periodiq's own scheduler, which knows neither zones nor pauses: only what fires now by ours is a tick.

    None when it started nothing. A tick that has to wait is left to Mailroom's scheduler.
    """
    minute = minute_of(scheduled_at)
    row = Schedules(session).take(task.actor_name, wait=True)
    if task.schedule is None or not task.schedule.timetable.matches(minute) or (row is not None and row.is_paused):
        return None
    fired = fire(session, task, minute)
    return fired if isinstance(fired, str) else None


def minute_of(moment: str) -> datetime:
    """The minute of a time as periodiq writes it (ISO 8601 with an offset)."""
    parsed = datetime.fromisoformat(moment)
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).astimezone(UTC).replace(second=0, microsecond=0)
