"""Runs: enqueue by name, look, list, revoke, replay."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any, Literal

import anyio
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StrictFloat, StrictInt, field_validator
from pydantic.alias_generators import to_camel
from starlette.concurrency import run_in_threadpool

from api.auth import Acting, ActingNow
from api.bodies import JsonRoute
from api.filters import tenant_id_of
from api.shapes import AcceptedRun, RunPageView, RunRow, RunView
from core.errors import InvalidInputError
from runs.control import Accepted, enqueue_by_name, get_task_status, is_ready, list_runs, parse_states, replay, revoke
from storage.repositories.runs import RunFilter
from storage.states import WaitingFor

router = APIRouter(route_class=JsonRoute, tags=["tasks"])
POLL_SECONDS = 0.2
LONGEST_DELAY = 366 * 86_400

Seconds = Annotated[StrictInt | StrictFloat, Field(ge=0, le=LONGEST_DELAY, allow_inf_nan=False)]
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]
Arguments = dict[str, Any]


class TaskOptions(BaseModel):
    """How one run differs from its task's policy. `countdown` and a number for `expires` are seconds from now."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)

    countdown: Seconds | None = None
    eta: AwareDatetime | None = None
    expires: Seconds | AwareDatetime | None = None
    priority: Literal["low", "normal", "high"] = "normal"
    unique_key: str | None = Field(None, min_length=1, max_length=200)

    @field_validator("eta", "expires")
    @classmethod
    def _in_our_time(cls, value: object) -> object:
        if isinstance(value, datetime) and not 2000 <= value.year <= 2200:
            raise ValueError("the year must lie between 2000 and 2200")
        return value


class RevokeRequest(BaseModel):
    """`terminate`: by force, and not at the next checkpoint."""

    model_config = ConfigDict(extra="forbid")

    terminate: bool = False


class TaskRequest(BaseModel):
    """A call of a task. `tenantId` and `userId` may be repeated here and must match the key's."""

    model_config = ConfigDict(extra="forbid")

    task: str = Field(min_length=1, max_length=200)
    args: Arguments = {}
    options: TaskOptions = TaskOptions()
    tenant_id: str | None = None
    user_id: str | None = None


@router.post("/api/tasks", status_code=202)
async def enqueue_task(body: TaskRequest, acting: ActingNow, response: Response, idempotency_key: IdempotencyKey = None) -> AcceptedRun:
    """Record a run of any task; a worker takes it as soon as it is due."""
    arguments = {"tenant_id": body.tenant_id, "user_id": body.user_id, **body.args}
    return await accept(acting, response, body.task, arguments, body.options.model_dump(exclude_none=True), idempotency_key)


async def accept(
    acting: Acting,
    response: Response,
    task: str,
    arguments: Arguments,
    options: dict[str, Any] | None = None,
    idempotency_key: str | None = None,
) -> AcceptedRun:
    """What every route that enqueues does. Tenant and user beside the arguments must be the key's, and are then left out.

    The routes are coroutines and only this takes a thread: FastAPI would take a second one to look at the answer of a function.
    """
    tenant, user, remaining = split_owner(arguments)

    def enqueue() -> Accepted:
        with acting.narrowed_to(tenant, user).session() as session:
            return enqueue_by_name(session, task, remaining, options, idempotency_key=unquoted(idempotency_key))

    accepted = await run_in_threadpool(enqueue)
    answer = AcceptedRun.at(accepted.run_id, accepted.queue, accepted.state)
    response.headers["Location"] = answer.href
    return answer


def split_owner(arguments: Arguments) -> tuple[str | None, str | None, Arguments]:
    """Tenant and user as they stand beside the arguments, and the arguments without them. Raises InvalidInputError."""
    named = {name: arguments.get(name) for name in ("tenant_id", "user_id")}
    if any(value is not None and not isinstance(value, str) for value in named.values()):
        raise InvalidInputError("tenant_id and user_id are ids in text form.")
    return named["tenant_id"], named["user_id"], {name: value for name, value in arguments.items() if name not in named}


@router.get("/api/tasks")
def list_tasks(
    acting: ActingNow,
    *,
    state: Annotated[str | None, Query(max_length=200)] = None,
    queue: Annotated[str | None, Query(max_length=100)] = None,
    task: Annotated[str | None, Query(max_length=200)] = None,
    tenant: Annotated[str | None, Query(max_length=100)] = None,
    q: Annotated[str | None, Query(max_length=200)] = None,
    waiting_for: Annotated[str | None, Query(max_length=100, alias="waitingFor")] = None,
    group: Annotated[str | None, Query(max_length=100)] = None,
    cursor: Annotated[str | None, Query(max_length=300)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> RunPageView:
    """Runs, the newest first. `state` takes several, separated by commas, as does `waitingFor`; `q` is an id's beginning
    or part of a task's name; `group` the id of a group or a chain."""
    with acting.session() as session:
        tenant_id = tenant_id_of(session, acting, tenant)
        states, waits = parse_states(state), _parse_waits(waiting_for)
        narrowed = RunFilter(states, queue or None, task or None, tenant_id, q or None, waiting_for=waits, group_id=group or None)
        page = list_runs(session, narrowed, cursor=cursor, limit=limit)
    return RunPageView(items=[RunRow.of(run) for run in page.runs], next_cursor=page.next_cursor)


@router.get("/api/tasks/{task_id}")
async def get_task(task_id: str, request: Request, acting: ActingNow, wait: Annotated[float, Query(ge=0, le=30)] = 0) -> RunView:
    """One run. With `wait`, answers as soon as the run has ended, at the latest after so many seconds."""

    def look() -> RunView:
        with acting.session() as session:
            return RunView.of(get_task_status(session, task_id))

    deadline = time.monotonic() + wait
    seen = await run_in_threadpool(look)
    while not seen.ready and time.monotonic() < deadline and not await _is_over(request):
        await anyio.sleep(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))  # no connection is held meanwhile
        seen = await run_in_threadpool(look)
    return seen


@router.post("/api/tasks/{task_id}/revoke")
def revoke_task(task_id: str, acting: ActingNow, body: RevokeRequest | None = None) -> RunView:
    """End a run: one that waits at once, one that runs at its next checkpoint, with `terminate` by force within seconds.

    The answer to the latter is STARTED with `revokeRequested`; whatever its actor does, the run ends as REVOKED.
    """
    with acting.session() as session:
        revoke(session, task_id, terminate=body is not None and body.terminate)
        return RunView.of(get_task_status(session, task_id))


@router.post("/api/tasks/{task_id}/replay", status_code=202)
@router.post("/api/tasks/{task_id}/retry", status_code=202, include_in_schema=False)
def replay_task(task_id: str, acting: ActingNow, response: Response) -> AcceptedRun:
    """Give a dead letter or a revoked run a full set of attempts."""
    with acting.session() as session:
        run = replay(session, task_id)
    assert not is_ready(run)
    response.headers["Location"] = f"/api/tasks/{run.id}"
    return AcceptedRun.of(run)


async def _is_over(request: Request) -> bool:
    """Whether nobody waits for the answer any more, or the server is about to stop."""
    return request.app.state.stopping.is_set() or await request.is_disconnected()


def _parse_waits(text: str | None) -> list[WaitingFor]:
    try:
        return [WaitingFor(name.strip().lower()) for name in (text or "").split(",") if name.strip()]
    except ValueError:
        raise InvalidInputError(f"A run waits for one of {', '.join(WaitingFor)}.") from None


def unquoted(key: str | None) -> str | None:
    """The header's draft wants a quoted string; everybody sends it bare."""
    if key is not None and len(key) > 2 and key[0] == key[-1] == '"':
        return key[1:-1]
    return key
