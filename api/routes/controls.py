"""Pauses of queues, tasks and tenants, and limits of tenants and mail hosts; for admins. And the tasks there are, for everybody."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from pydantic.alias_generators import to_camel
from sqlalchemy.orm import Session

from api.auth import Acting, ActingNow
from api.bodies import JsonRoute
from api.filters import require_admin
from api.shapes import Shape
from brokers.queues import POLICIES
from core.errors import NotFoundError
from runs.registry import get_task, task_names
from runs.task import Task
from storage.repositories.controls import Controls
from storage.repositories.tenants import Tenants

router = APIRouter(route_class=JsonRoute, tags=["operations"])
Bound = Annotated[StrictInt | None, Field(ge=1, le=1_000_000)]


class TaskType(Shape):
    """A kind of work. Its arguments are in the OpenAPI document as `{task}_arguments`."""

    task: str
    queue: str
    description: str
    max_attempts: int
    soft_limit: float
    hard_limit: float
    is_periodic: bool


class PauseView(Shape):
    """Nothing of it starts. `kind` is queue, task or tenant; a tenant's `name` is its id, `tenant` its name."""

    kind: str
    name: str
    tenant: str | None = None
    created_at: datetime


class PauseState(Shape):
    """What was paused or resumed."""

    kind: str
    name: str
    is_paused: bool


class LimitRequest(BaseModel):
    """How many runs may be under way at a time, how many may start a minute; at least one of the two."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)

    concurrency: Bound = None
    per_minute: Bound = None


class LimitView(Shape):
    """A limit. A tenant's `name` is its id, `tenant` its name."""

    kind: str
    name: str
    tenant: str | None = None
    concurrency: int | None
    per_minute: int | None


@router.get("/api/task-types")
def list_task_types(acting: ActingNow) -> dict[str, list[TaskType]]:  # noqa: ARG001  (any good key)
    """The tasks that can be started, by name."""
    return {"items": [_type(name) for name in task_names()]}


@router.get("/api/pauses")
def list_pauses(acting: ActingNow) -> dict[str, list[PauseView]]:
    """Everything that is paused."""
    require_admin(acting)
    with acting.session() as session:
        names = Tenants(session).names()
        found = [
            PauseView(kind=pause.kind, name=pause.name, tenant=names.get(pause.name), created_at=pause.created_at)
            for pause in Controls(session).pauses()
        ]
    return {"items": found}


@router.post("/api/queues/{queue}/pause")
def pause_queue(queue: str, acting: ActingNow) -> PauseState:
    """Start nothing more of a queue; what runs goes on."""
    return _pause(acting, "queue", queue, paused=True)


@router.post("/api/queues/{queue}/resume")
def resume_queue(queue: str, acting: ActingNow) -> PauseState:
    """Start a queue's runs again."""
    return _pause(acting, "queue", queue, paused=False)


@router.post("/api/task-types/{task}/pause")
def pause_task(task: str, acting: ActingNow) -> PauseState:
    """Start nothing more of a task; what runs goes on."""
    return _pause(acting, "task", task, paused=True)


@router.post("/api/task-types/{task}/resume")
def resume_task(task: str, acting: ActingNow) -> PauseState:
    """Start a task's runs again."""
    return _pause(acting, "task", task, paused=False)


@router.post("/api/tenants/{tenant}/pause")
def pause_tenant(tenant: str, acting: ActingNow) -> PauseState:
    """Start nothing more of a tenant (by name or id); what runs goes on."""
    return _pause(acting, "tenant", tenant, paused=True)


@router.post("/api/tenants/{tenant}/resume")
def resume_tenant(tenant: str, acting: ActingNow) -> PauseState:
    """Start a tenant's runs again."""
    return _pause(acting, "tenant", tenant, paused=False)


@router.get("/api/limits")
def list_limits(acting: ActingNow) -> dict[str, list[LimitView]]:
    """Every limit."""
    require_admin(acting)
    with acting.session() as session:
        names = Tenants(session).names()
        found = [
            LimitView(kind=each.kind, name=each.name, tenant=names.get(each.name), concurrency=each.concurrency, per_minute=each.per_minute)
            for each in Controls(session).limits()
        ]
    return {"items": found}


@router.put("/api/limits/{kind}/{name}")
def set_limit(kind: Literal["tenant", "host"], name: str, body: LimitRequest, acting: ActingNow) -> LimitView:
    """Set or replace the limit of a tenant (by name or id) or of a mail host."""
    require_admin(acting)
    with acting.session() as session:
        found = _id_of(session, kind, name)
        Controls(session).set_limit(kind, found, concurrency=body.concurrency, per_minute=body.per_minute)
    return LimitView(kind=kind, name=found, concurrency=body.concurrency, per_minute=body.per_minute)


@router.delete("/api/limits/{kind}/{name}", status_code=204)
def remove_limit(kind: Literal["tenant", "host"], name: str, acting: ActingNow) -> Response:
    """Let a tenant's or a mail host's runs go unbounded again."""
    require_admin(acting)
    with acting.session() as session:
        Controls(session).remove_limit(kind, _id_of(session, kind, name))
    return Response(status_code=204)


def _pause(acting: Acting, kind: str, name: str, *, paused: bool) -> PauseState:
    """Raises NotFoundError for what there is not: a pause with a slip in its name would look as if it held."""
    require_admin(acting)
    with acting.session() as session:
        found = _id_of(session, kind, name)
        controls = Controls(session)
        (controls.pause if paused else controls.resume)(kind, found)
    return PauseState(kind=kind, name=found, is_paused=paused)


def _id_of(session: Session, kind: str, name: str) -> str:
    if kind == "tenant":
        return Tenants(session).find(name).id
    known = {"queue": [str(queue) for queue in POLICIES], "task": task_names()}.get(kind)
    if known is not None and name not in known:
        raise NotFoundError(f"There is no {kind} named {name[:80]!r}. There are: {', '.join(known)}.")
    return name


def _type(name: str) -> TaskType:
    task = get_task(name)
    assert isinstance(task, Task)
    soft, hard = task.limits()
    facts = {"max_attempts": task.max_attempts, "soft_limit": soft, "hard_limit": hard, "is_periodic": "periodic" in task.options}
    return TaskType(task=name, queue=task.queue_name, description=(task.fn.__doc__ or "").strip(), **facts)
