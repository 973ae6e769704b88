"""The JSON shapes of chains and groups, and how their requests are read: every error with its place in the body."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.orm import Session

from api.auth import Acting
from api.bodies import JsonRoute
from api.problems import Problem
from api.routes.tasks import TaskRequest, split_owner
from api.shapes import AcceptedRun, RunRow, Shape
from core.errors import InvalidInputError
from runs.batch import Enqueued
from runs.groups import AskedMeanwhileError, Part, StartedChain, StartedGroup, at
from storage.models import TaskRun
from storage.repositories.groups import GroupSummary
from storage.states import FINAL, State

MOST_RUNS = 10_000
"""Of a group, all steps of its members counted."""
MOST_ERRORS = 20
TASK = {"$ref": "#/components/schemas/TaskRequest"}
OWNER = {name: {"anyOf": [{"type": "string"}, {"type": "null"}]} for name in ("after", "tenant_id", "user_id")}
STEPS = {"type": "array", "minItems": 1, "maxItems": 100, "items": TASK}
MEMBERS = {"type": "array", "maxItems": MOST_RUNS, "items": {"anyOf": [TASK, STEPS]}}
Started = TypeVar("Started")
Place = tuple[str | int, ...]


class _Envelope(BaseModel):
    """What stands around the tasks. They are looked at one by one, so that an error names its place and nothing else."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(None, max_length=100)
    tenant_id: str | None = None
    user_id: str | None = None


class _Chain(_Envelope):
    steps: list[Any] = Field(min_length=1)


class _Group(_Envelope):
    members: list[Any]
    then: Any


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: its members (a chain is one), what follows them, and for whom it is said to be."""

    members: list[list[Part]]
    then: Part | None
    after: str | None
    tenant: str | None
    user: str | None


class GroupRoute(JsonRoute):
    """An authenticated route whose body, if it has one, is sound JSON and is kept as it came."""

    async def check(self, request: Request) -> None:
        """Raises what JsonRoute raises."""
        await super().check(request)
        request.state.body = await request.json() if await request.body() else None


def body_of(**properties: Any) -> dict[str, Any]:
    """How a request is described in the OpenAPI document."""
    schema = {"type": "object", "additionalProperties": False, "required": list(properties), "properties": {**properties, **OWNER}}
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}


def chain_of(request: Request) -> Asked:
    """Raises RequestValidationError and InvalidInputError, naming the place."""
    reading = _Reading()
    body = reading.envelope(_Chain, request.state.body)
    steps = [reading.part(each, ("steps", place)) for place, each in enumerate(body.steps)]
    return reading.done(body, [steps], None)


def group_of(request: Request) -> Asked:
    """Raises RequestValidationError, InvalidInputError, and Problem 413 for too many runs."""
    reading = _Reading()
    body = reading.envelope(_Group, request.state.body)
    count = sum(len(each) if isinstance(each, list) else 1 for each in body.members)
    if count > MOST_RUNS:
        raise Problem(413, "too_many_items", f"A group has at most {MOST_RUNS:,} runs; this one has {count:,}.")
    members = [list(reading.member(each, place)) for place, each in enumerate(body.members)]
    return reading.done(body, members, reading.part(body.then, ("then",)))


class _Reading:
    """Collects errors and owners while a body is looked at."""

    def __init__(self) -> None:
        self._errors: list[Any] = []
        self._owners: list[tuple[str, str | None, str | None]] = []

    def envelope(self, model: type[Any], body: Any) -> Any:
        try:
            return model.model_validate(body)
        except ValidationError as error:
            raise RequestValidationError(_placed(error, ())) from None

    def member(self, given: Any, place: int) -> Iterator[Part]:
        if not isinstance(given, list):
            yield self.part(given, ("members", place))
            return
        for step, each in enumerate(given):
            yield self.part(each, ("members", place, step))

    def part(self, given: Any, place: Place) -> Part:
        where = ".".join(map(str, place))
        try:
            asked = TaskRequest.model_validate(given)
        except ValidationError as error:
            if len(self._errors) < MOST_ERRORS:
                self._errors += _placed(error, place)
            return Part(where, "", {})
        with at(where):
            tenant, user, arguments = split_owner({"tenant_id": asked.tenant_id, "user_id": asked.user_id, **asked.args})
        self._owners.append((where, tenant, user))
        return Part(where, asked.task, arguments, asked.options.model_dump(exclude_none=True))

    def done(self, body: Any, members: list[list[Part]], then: Part | None) -> Asked:
        if self._errors:
            raise RequestValidationError(self._errors)
        tenant, user = body.tenant_id, body.user_id
        for where, its_tenant, its_user in self._owners:
            tenant, user = tenant or its_tenant, user or its_user
            if its_tenant not in {None, tenant} or its_user not in {None, user}:
                raise InvalidInputError(f"{where}: a chain or a group belongs to one tenant and one user.")
        return Asked(members, then, body.after, tenant, user)


def _placed(error: ValidationError, place: Place) -> list[Any]:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    words = {"model_type": "a task is an object with task, args and options"}
    return [{**each, "loc": ("body", *place, *each["loc"]), "msg": words.get(each["type"], each["msg"])} for each in found]


def started(acting: Acting, asked: Asked, start: Callable[[Session], Started]) -> Started:
    """Carries out a request, once more if the same one was carried out meanwhile."""
    acting = acting.narrowed_to(asked.tenant, asked.user)
    try:
        with acting.session() as session:
            return start(session)
    except AskedMeanwhileError:
        with acting.session() as session:
            return start(session)


class AcceptedChain(Shape):
    """`items` are its runs in their order. `chainId` is null when all of them were live already, under their unique keys."""

    chain_id: str | None
    href: str | None
    items: list[AcceptedRun]

    @classmethod
    def of(cls, made: StartedChain) -> AcceptedChain:
        """As recorded."""
        href = f"/api/chains/{made.id}" if made.id is not None else None
        return cls(chain_id=made.id, href=href, items=list(map(_accepted, made.runs)))


class AcceptedGroup(Shape):
    """`items` has an entry for each member in its place: a run, or the list of a chain's runs."""

    group_id: str
    href: str
    callback: AcceptedRun
    items: list[AcceptedRun | list[AcceptedRun]]

    @classmethod
    def of(cls, made: StartedGroup, are_chains: Sequence[bool]) -> AcceptedGroup:
        """As recorded."""
        items = [list(map(_accepted, runs)) for runs in made.members]
        shaped = [runs if is_chain else runs[0] for runs, is_chain in zip(items, are_chains, strict=True)]
        return cls(group_id=made.id, href=f"/api/groups/{made.id}", callback=_accepted(made.callback), items=shaped)


class Steps(Shape):
    """How far the members of something are."""

    done: int
    total: int


class GroupView(Shape):
    """A group. `states`: how many members are in each. `ready`: all have ended; `successful`: all well."""

    group_id: str
    members: int
    states: dict[str, int]
    progress: Steps
    ready: bool
    successful: bool
    callback: RunRow | None
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, found: GroupSummary) -> GroupView:
        """As recorded."""
        return cls(**_facts(found))


class RevokedGroup(GroupView):
    """With what was done: how many runs were `revoked` at once, and how many run and are `marked`."""

    revoked: int
    marked: int

    @classmethod
    def after(cls, found: GroupSummary, revoked: int, marked: int) -> RevokedGroup:
        """As recorded."""
        return cls(**_facts(found), revoked=revoked, marked=marked)


class ChainView(Shape):
    """A chain. `ready`: all steps have ended; `successful`: all well."""

    chain_id: str
    items: list[RunRow]
    progress: Steps
    ready: bool
    successful: bool

    @classmethod
    def of(cls, chain_id: str, steps: Sequence[TaskRun]) -> ChainView:
        """As recorded."""
        ended = sum(State(run.state) in FINAL for run in steps)
        return cls(
            chain_id=chain_id,
            items=[RunRow.of(run) for run in steps],
            progress=Steps(done=ended, total=len(steps)),
            ready=ended == len(steps),
            successful=all(run.state == State.SUCCESS for run in steps),
        )


def _accepted(run: Enqueued) -> AcceptedRun:
    return AcceptedRun.at(run.run_id, run.queue, run.state)


def _facts(found: GroupSummary) -> dict[str, Any]:
    return {
        "group_id": found.id,
        "members": found.members,
        "states": {str(state): found.states.get(state, 0) for state in State},
        "progress": Steps(done=found.ended, total=found.members),
        "ready": found.ended == found.members,
        "successful": found.states.get(State.SUCCESS, 0) == found.members,
        "callback": RunRow.of(found.callback) if found.callback is not None else None,
        "created_at": found.created_at,
        "finished_at": found.finished_at,
    }
