"""Runs as they change, as server-sent events: `run` with what GET would answer, `queues` with the numbers, `end` when it is over."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from api.auth import Acting, ActingNow, find_acting
from api.bodies import JsonRoute
from api.events import Found, changes, event_of, streamed, with_heartbeat
from api.filters import tenant_id_of
from api.problems import Problem
from api.routes.queues import QueueView
from api.shapes import RunRow, RunView
from core.errors import MailroomError
from runs.control import MAX_PAGE, get_queue_stats, get_task_status, list_runs, parse_states
from storage.models import TaskRun
from storage.repositories.runs import RunFilter
from storage.states import State

router = APIRouter(route_class=JsonRoute, tags=["tasks"])
KEY_SECONDS = 5.0
NEWEST = 100
GOODBYE = event_of("goodbye", {})
QUEUES = "queues"


@router.get("/api/tasks/{task_id}/events", response_class=StreamingResponse)
def follow_task(task_id: str, request: Request, acting: ActingNow) -> StreamingResponse:
    """One run: how it stands, then each change, and `end` after its last. The stream ends with the run."""

    def look() -> Found:
        with acting.session() as session:
            return {"run": RunView.of(get_task_status(session, task_id)).model_dump(mode="json", by_alias=True)}

    look()  # an unknown run is a 404 and not a stream
    return streamed(with_heartbeat(_while_welcome(request, _run_events(request, (acting.identity, task_id), look))))


@router.get("/api/events", response_class=StreamingResponse)
def follow_all(
    request: Request,
    acting: ActingNow,
    *,
    state: Annotated[str | None, Query(max_length=200)] = None,
    queue: Annotated[str | None, Query(max_length=100)] = None,
    task: Annotated[str | None, Query(max_length=200)] = None,
    tenant: Annotated[str | None, Query(max_length=100)] = None,
) -> StreamingResponse:
    """The newest runs and those that are running, then each change of one of them; and the queues' numbers."""
    with acting.session() as session:
        narrowed = RunFilter(parse_states(state), queue or None, task or None, tenant_id_of(session, acting, tenant))
    return streamed(with_heartbeat(_while_welcome(request, _all_events(request, acting, narrowed))))


async def _run_events(request: Request, key: object, look: Callable[[], Found]) -> AsyncIterator[str]:
    async for changed in changes(request, key, lambda _before: look()):
        yield event_of("run", changed["run"]) if changed else ""
        if changed and changed["run"]["ready"]:
            yield event_of("end", {})
            return


async def _all_events(request: Request, acting: Acting, narrowed: RunFilter) -> AsyncIterator[str]:
    def ask(before: Found) -> Found:
        with acting.session() as session:
            found = {run.id: RunRow.of(run) for run in reversed(_watched(session, narrowed, before))}
            queues = [QueueView.of(stats) for stats in get_queue_stats(session)]
        numbers = [view.model_dump(mode="json", by_alias=True, exclude={"oldest_wait_seconds"}) for view in queues]
        return {run_id: row.model_dump(mode="json", by_alias=True) for run_id, row in found.items()} | {QUEUES: numbers}

    async for changed in changes(request, (acting.identity, str(narrowed)), ask):
        yield "".join(event_of("queues" if name == QUEUES else "run", value) for name, value in changed.items())


def _watched(session: Session, narrowed: RunFilter, before: Found) -> list[TaskRun]:
    """The newest, what runs, and what was seen before and had not ended: its end must not be missed."""
    runs = list_runs(session, narrowed, limit=NEWEST).runs
    if not narrowed.states:
        runs += list_runs(session, replace(narrowed, states=[State.STARTED]), limit=MAX_PAGE).runs
    there = {run.id for run in runs}
    left = [run_id for run_id, run in before.items() if run_id not in there and run_id != QUEUES and not run["ready"]]
    return runs + (list_runs(session, RunFilter(ids=left), limit=MAX_PAGE).runs if left else [])


async def _while_welcome(request: Request, events: AsyncIterator[str]) -> AsyncIterator[str]:
    """A key that was revoked ends its streams."""
    checked_at = time.monotonic()
    async for event in events:
        yield event
        if time.monotonic() - checked_at > KEY_SECONDS:
            checked_at = time.monotonic()
            try:
                await find_acting(request)
            except Problem:
                yield GOODBYE
                return
            except MailroomError:  # the database is away for a moment
                continue
