"""Chains and groups by the names of their tasks, as the API and the commands start, look at and revoke them.

Everything is checked before anything is recorded, and what is wrong is told with its place in the request. A group is known by its id; so
is a chain, whose steps are the members of a group that nothing need follow. Every function works in the caller's session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

import orjson
from sqlalchemy.orm import Session

from core.errors import ConflictError, InvalidInputError, NotFoundError, PermanentError
from core.ids import new_id
from runs.batch import Enqueued, KnownResources
from runs.control import MAX_PAGE, RunPage, call_of, cursor_after, parse_cursor, revoke
from runs.enqueue import owner_of, require_predecessor
from runs.followers import KeyHeldError, chain, group
from runs.registry import get_task
from runs.secrets import fingerprint
from runs.sweep import Revoked, revoke_live
from runs.task import Step, Task
from storage.engine import identity_of
from storage.models import TaskRun
from storage.repositories.groups import Groups, GroupSummary, Member
from storage.repositories.many_runs import ManyRuns
from storage.repositories.runs import RunFilter, TaskRuns
from storage.states import State

MOST_STEPS = 100
"""Of a chain; of one that is a group's member, too."""
NEIGHBOURS = 8
Each = TypeVar("Each")


@dataclass(frozen=True, slots=True)
class Part:
    """One call, as `enqueue_by_name` takes it, and its place in the request (`members.3.1`)."""

    place: str
    task: str
    arguments: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StartedChain:
    """A chain and its runs in their order. `id` is None when all of them were live already and have none."""

    id: str | None
    runs: list[Enqueued]


@dataclass(frozen=True, slots=True)
class StartedGroup:
    """A group, the runs of each member, and the run that follows them."""

    id: str
    members: list[list[Enqueued]]
    callback: Enqueued


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What stands around a run: the runs before and behind it in its chain, its group, and the group that it follows.

    `has_more`: more follow it than are told.
    """

    before: list[TaskRun]
    behind: list[TaskRun]
    has_more: bool
    group: GroupSummary | None
    follows: GroupSummary | None


class AskedMeanwhileError(ConflictError):
    """The same request, with the same Idempotency-Key, was carried out while this one was: asked once more it is answered."""

    def __init__(self) -> None:
        super().__init__("A request with this Idempotency-Key is being worked on; send it again.")


# Starting.


def start_chain(session: Session, parts: Sequence[Part], *, after: str | None = None, idempotency_key: str | None = None) -> StartedChain:
    """Records a chain. With a key a repeated request gives the same one.

    Raises what `enqueue_by_name` raises, with the place of what is wrong, and AskedMeanwhileError; nothing is recorded then.
    """
    if not parts:
        raise InvalidInputError("steps: a chain has one step at least.")
    require_few_steps([parts])
    steps = _checked(session, parts, after)
    asked = _Asked.of(idempotency_key, ["chain", *_request(parts, steps)], after)
    if (last := asked.earlier(session, steps[-1])) is not None:
        return _chain_ending_with(session, last, len(parts))
    steps[-1] = asked.noted_on(steps[-1])
    chain_id = new_id()
    with _told_of(session, parts, steps, asked):
        run_ids = chain(session, *steps, after=after, group_id=chain_id)
    found = {member.run_id: member for member in Groups(session).of_ids(run_ids)}
    runs = [_enqueued(found[run_id]) for run_id in run_ids]
    return StartedChain(TaskRuns(session).one(run_ids[-1]).group_id, runs)


def start_group(
    session: Session,
    members: Sequence[Sequence[Part]],
    *,
    then: Part,
    after: str | None = None,
    idempotency_key: str | None = None,
) -> StartedGroup:
    """Records a group; each member is a chain, of one step or several. Raises what `start_chain` raises."""
    require_few_steps(members)
    if after is not None and not members:
        raise InvalidInputError("after: a group without members has nothing that could follow a run.")
    parts = [*(part for member in members for part in member), then]
    steps = _checked(session, parts, after)
    shape = [len(member) for member in members]
    asked = _Asked.of(idempotency_key, ["group", shape, *_request(parts, steps)], after)
    if (earlier := asked.earlier(session, steps[-1])) is not None:
        return _group_before(session, earlier, shape)
    steps[-1] = asked.noted_on(steps[-1])
    chains = _shaped(steps[:-1], shape)
    with _told_of(session, parts, steps, asked):
        made = group(session, chains, then=steps[-1], after=after)
    runs = [Enqueued(run_id, step.call.task.queue_name, State.PENDING) for run_id, step in zip(made.run_ids, steps, strict=False)]
    return StartedGroup(made.id, _shaped(runs, shape), Enqueued(made.callback_id, steps[-1].call.task.queue_name, State.PENDING))


def require_few_steps(members: Sequence[Sequence[Part]]) -> None:
    """Raises InvalidInputError for a chain that is too long, or empty."""
    for place, member in enumerate(members):
        if not member:
            raise InvalidInputError(f"members.{place}: a chain has one step at least.")
        if len(member) > MOST_STEPS:
            raise InvalidInputError(f"{member[MOST_STEPS].place}: a chain has at most {MOST_STEPS} steps; this one has {len(member):,}.")


@contextmanager
def at(place: str) -> Iterator[None]:
    """What is wrong inside is told with its place."""
    try:
        yield
    except PermanentError as error:
        raise type(error)(f"{place}: {error}") from None


def _checked(session: Session, parts: Sequence[Part], after: str | None) -> list[Step]:
    resources, identity = KnownResources(session), identity_of(session)
    steps = []
    for part in parts:
        with at(part.place):
            task = get_task(part.task)
            assert isinstance(task, Task)
            call = call_of(task, part.arguments, part.options, None)
            owner_of(identity, call)
            resources.check(task, part.arguments)
        steps.append(Step(call, part.arguments))
    with at("after"):
        require_predecessor(session, replace(steps[0].call, after=after))
    return steps


@dataclass(frozen=True, slots=True)
class _Asked:
    """The key of a request, if it has one, and the digest by which another request with the same key is told from it."""

    key: str | None
    digest: str | None

    @classmethod
    def of(cls, key: str | None, request: list[Any], after: str | None) -> _Asked:
        if key is None:
            return cls(None, None)
        return cls(key, hashlib.sha256(orjson.dumps([request, after], option=orjson.OPT_SORT_KEYS)).hexdigest())

    def earlier(self, session: Session, bearer: Step) -> TaskRun | None:
        """The run that bears the key for an earlier request: a chain's last, a group's callback."""
        tenant_id, _ = owner_of(identity_of(session), bearer.call)
        run_id = TaskRuns(session).by_idempotency_key(tenant_id, self.key, self.digest)
        return None if run_id is None else TaskRuns(session).one(run_id)

    def noted_on(self, bearer: Step) -> Step:
        return replace(bearer, call=replace(bearer.call, idempotency_key=self.key, request_hash=self.digest))


def _request(parts: Sequence[Part], steps: Sequence[Step]) -> list[Any]:
    return [
        [part.task, fingerprint(step.call.task, part.arguments), {name: str(value) for name, value in part.options.items()}]
        for part, step in zip(parts, steps, strict=True)
    ]


@contextmanager
def _told_of(session: Session, parts: Sequence[Part], steps: Sequence[Step], asked: _Asked) -> Iterator[None]:
    """Whose key is held is told with its place, unless it is held by the same request."""
    try:
        yield
    except KeyHeldError as error:
        if asked.key is not None and error.step is steps[-1] and asked.earlier(session, error.step) is not None:
            raise AskedMeanwhileError from None
        place = next(part.place for part, step in zip(parts, steps, strict=True) if step is error.step)
        raise ConflictError(f"{place}: {error}") from None


def _chain_ending_with(session: Session, last: TaskRun, length: int) -> StartedChain:
    earlier = Groups(session).before(last, length - 1) if length > 1 else []
    return StartedChain(last.group_id, [Enqueued(run.id, run.queue, State(run.state)) for run in [*earlier, last]])


def _group_before(session: Session, callback: TaskRun, shape: Sequence[int]) -> StartedGroup:
    assert callback.after_group_id is not None
    members = Groups(session).members(callback.after_group_id)
    if len(members) != sum(shape):
        raise ConflictError("The group of this Idempotency-Key is partly forgotten by now; use a new key.")
    runs = _shaped([_enqueued(member) for member in members], shape)
    return StartedGroup(callback.after_group_id, runs, Enqueued(callback.id, callback.queue, State(callback.state)))


def _shaped(flat: Sequence[Each], shape: Sequence[int]) -> list[list[Each]]:
    rest = iter(flat)
    return [list(islice(rest, length)) for length in shape]


def _enqueued(member: Member) -> Enqueued:
    return Enqueued(member.run_id, member.queue, member.state)


# Looking.


def get_group(session: Session, group_id: str) -> GroupSummary:
    """Raises NotFoundError: a foreign one is unknown."""
    return Groups(session).summary(group_id)


def list_members(session: Session, group_id: str, states: Sequence[State] = (), *, cursor: str | None = None, limit: int = 50) -> RunPage:
    """A group's members in the order given. Raises NotFoundError, InvalidInputError for a cursor that is none of ours."""
    groups, size = Groups(session), max(1, min(limit, MAX_PAGE))
    groups.summary(group_id)
    before = parse_cursor(cursor)
    runs = groups.page(group_id, states, after=before[1] if before is not None else None, limit=size + 1)
    more = len(runs) > size
    return RunPage(runs[:size], cursor_after(runs[size - 1].created_at, runs[size - 1].id) if more else None)


def get_chain(session: Session, chain_id: str) -> list[TaskRun]:
    """Its steps in their order. Raises NotFoundError, for a group that is no chain, too."""
    groups = Groups(session)
    length = groups.summary(chain_id).members
    following = {run.after_run_id: run for run in groups.page(chain_id, (), limit=MOST_STEPS + 1)}
    first = [run for run in following.values() if run.after_run_id not in {each.id for each in following.values()}]
    steps = first[:1]
    while steps and steps[-1].id in following:
        steps.append(following[steps[-1].id])
    if len(steps) != length or not steps:
        raise NotFoundError("There is no chain with this id.")
    return steps


def get_neighbours(session: Session, run: TaskRun) -> Neighbours:
    """At most NEIGHBOURS before and behind the run."""
    groups = Groups(session)
    before = groups.before(run, NEIGHBOURS) if run.after_run_id is not None else []
    behind = groups.behind(run, NEIGHBOURS + 1)
    more = len(behind) > NEIGHBOURS
    return Neighbours(before, behind[:NEIGHBOURS], more, find_group(session, run.group_id), find_group(session, run.after_group_id))


def find_group(session: Session, group_id: str | None) -> GroupSummary | None:
    """None where there is none, or none any more."""
    if group_id is None:
        return None
    with suppress(NotFoundError):
        return Groups(session).summary(group_id)
    return None


# Revoking.


def revoke_group(session: Session, group_id: str, *, terminate: bool = False, keeps_callback: bool = False) -> Revoked:
    """Ends the members that wait, marks those that run, and before them the callback, unless that is to tell what became of them.

    What has ended stays as it is. In batches, each for good. Raises NotFoundError.
    """
    groups = Groups(session)
    groups.summary(group_id)
    until = ManyRuns(session).database_time()
    callbacks = [] if keeps_callback else [_ended_as(session, run_id, terminate=terminate) for run_id in groups.live_callbacks(group_id)]
    session.commit()
    done = revoke_live(session, RunFilter(group_id=group_id), until, terminate=terminate)
    revoked = sum(state == State.REVOKED for state in callbacks)
    return Revoked(done.revoked + revoked, done.marked + sum(state == State.STARTED for state in callbacks))


def _ended_as(session: Session, run_id: str, *, terminate: bool) -> str | None:
    with suppress(ConflictError):  # it has ended meanwhile
        return revoke(session, run_id, terminate=terminate).state
    return None
