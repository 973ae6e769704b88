"""The schedules that the actors declare, and when each fired last."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter

from api.auth import ActingNow
from api.bodies import JsonRoute
from api.shapes import Shape
from storage.repositories.schedules import Schedules

router = APIRouter(route_class=JsonRoute, tags=["operations"])


class ScheduleView(Shape):
    """A periodic task. The run's id is told to admins only: the run is the system's."""

    task: str
    cron: str
    is_paused: bool
    checked_until: datetime
    last_tick_at: datetime | None
    last_task_id: str | None


@router.get("/api/schedules")
def list_schedules(acting: ActingNow) -> dict[str, list[ScheduleView]]:
    """All schedules, by name."""
    with acting.system_session() as session:
        schedules = Schedules(session)
        ticks = schedules.last_ticks()
        found = [
            ScheduleView(
                task=schedule.task,
                cron=schedule.cron,
                is_paused=schedule.is_paused,
                checked_until=schedule.checked_until,
                last_tick_at=ticks[schedule.task].minute if schedule.task in ticks else None,
                last_task_id=ticks[schedule.task].run_id if schedule.task in ticks and acting.identity.is_system else None,
            )
            for schedule in schedules.all()
        ]
    return {"items": found}
