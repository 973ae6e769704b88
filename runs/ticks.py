"""A tick is one run: a schedule's minute is recorded together with the run it starts, by whichever scheduler comes first."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session

from core.ids import new_id
from runs.enqueue import record
from runs.task import Call, Task
from storage.repositories.schedules import Schedules


def enqueue_tick(session: Session, task: Task[Any, Any], minute: datetime) -> str | None:
    """Starts the run of a schedule's minute; None when another scheduler has."""
    run_id = new_id()
    if not Schedules(session).tick(task.actor_name, minute, run_id):
        return None
    return record(session, Call(task, run_id=run_id), {})[0]


def minute_of(moment: str) -> datetime:
    """The minute of a time as periodiq writes it (ISO 8601 with an offset)."""
    parsed = datetime.fromisoformat(moment)
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).astimezone(UTC).replace(second=0, microsecond=0)
