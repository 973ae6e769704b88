"""The schedules that the actors declare, when each fired last, and starting, pausing, resuming them (for admins)."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter, Response

from api.auth import ActingNow
from api.bodies import JsonRoute
from api.filters import require_admin
from api.shapes import AcceptedRun, Shape
from scheduler.control import get_schedules, run_now, set_paused

router = APIRouter(route_class=JsonRoute, tags=["operations"])


class ScheduleView(Shape):
    """A periodic task. `nextTickAt` is null while it is paused; `lastIsSkipped`: the last run was there already, from an earlier tick.

    The run's id is told to admins only: the run is the system's.
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


class ScheduleState(Shape):
    """What a schedule was set to."""

    task: str
    is_paused: bool


@router.get("/api/schedules")
def list_schedules(acting: ActingNow) -> dict[str, list[ScheduleView]]:
    """All schedules, by name."""
    with acting.system_session() as session:
        views = [ScheduleView.model_validate(schedule) for schedule in get_schedules(session)]
    if not acting.identity.is_system:
        views = [view.model_copy(update={"last_task_id": None}) for view in views]
    return {"items": views}


@router.post("/api/schedules/{name}/run", status_code=202)
def run_schedule(name: str, acting: ActingNow, response: Response) -> AcceptedRun:
    """Start a schedule's task once, now, whether it is paused or not."""
    require_admin(acting)
    with acting.session() as session:
        answer = AcceptedRun.of(run_now(session, name))
    response.headers["Location"] = answer.href
    return answer


@router.post("/api/schedules/{name}/pause")
def pause_schedule(name: str, acting: ActingNow) -> ScheduleState:
    """Fire no more until it is resumed; what is missed meanwhile is not made up for."""
    return _set(acting, name, paused=True)


@router.post("/api/schedules/{name}/resume")
def resume_schedule(name: str, acting: ActingNow) -> ScheduleState:
    """Fire again from the next time on."""
    return _set(acting, name, paused=False)


def _set(acting: ActingNow, name: str, *, paused: bool) -> ScheduleState:
    require_admin(acting)
    with acting.session() as session:
        set_paused(session, name, paused=paused)
    return ScheduleState(task=name, is_paused=paused)
