"""Chains and groups: runs that start when others have ended.

A step of a chain starts once the one before it has succeeded; if that one ends otherwise, the rest of the chain is REVOKED with the
reason `predecessor_failed`, and a replay of it lets the rest wait again. A group's callback starts once, when every member has
ended, however. All rows are inserted in the caller's transaction, so the ids are known at once and it is all or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import structlog
from sqlalchemy.orm import Session

from core.errors import ConflictError, InvalidInputError, NotFoundError, TenantError
from core.ids import new_id
from core.tenancy import current_identity
from runs.current import current_run
from runs.enqueue import owner_of, record, record_many, require_predecessor
from runs.task import Call, Step
from storage import followers
from storage.engine import identity_of, session_scope
from storage.followers import EndedRun

Member = Step | Sequence[Step]
"""Of a group: one run, or a chain whose every step must end."""


class KeyHeldError(ConflictError):
    """A live run holds the key of a step that must be a new one."""

    def __init__(self, step: Step) -> None:
        call = step.call
        super().__init__(f"Another run of {call.task.actor_name} holds the key {call.unique_key or call.idempotency_key!r}.")
        self.step = step


@dataclass(frozen=True, slots=True)
class Group:
    """A group's id, the runs of its members in the order given (of a chain all steps), and the run that follows them."""

    id: str
    run_ids: list[str]
    callback_id: str


def chain(session: Session, *steps: Step, after: str | None = None, group_id: str | None = None) -> list[str]:
    """Records a run for each step and returns their ids. Each starts once the one before it has succeeded, the first at once or
    after the run that is named.

    The first step may be a live run that holds its unique key. With `group_id` those that are new are members of that group, which is
    how a chain gets an id. Raises ConflictError if a later one's key is held by a run that
    does not follow the step before it, and what `enqueue` raises.
    """
    _check(session, steps, after)
    with _one_request():
        return _record_chain(session, steps, after, group_id)


def group(session: Session, members: Iterable[Member], *, then: Step, after: str | None = None) -> Group:
    """Records a run for each member and one that follows them all. The members start at once, or after the run that is named.

    Thousands of members take a few statements as long as they share a task and its options and have no key or time of their own.
    Raises ConflictError if a live run holds the unique key of a member or of the callback, and what `enqueue` raises.
    """
    chains = [[member] if isinstance(member, Step) else list(member) for member in members]
    _check(session, [*(step for steps in chains for step in steps), then], after)
    group_id = new_id()
    with _one_request():
        run_ids = _record_members(session, chains, group_id, after)
        callback_id = _record_new(session, then, replace(then.call, after_group=group_id))
    return Group(group_id, run_ids, callback_id)


def previous_result() -> Any:
    """For a running step of a chain: what the step before it returned.

    Raises NotFoundError in a run that follows none. None when the result has been cleared since.
    """
    with session_scope() as session:
        previous, _ = _followed(session)
        ended = followers.ended_run(session, previous, current_identity().tenant_id) if previous is not None else None
    if ended is None:
        raise NotFoundError("This run follows no other.")
    return ended.result


def group_results() -> list[EndedRun]:
    """For a running callback: what became of the members, in their order. Raises NotFoundError in a run that follows no group."""
    with session_scope() as session:
        _, group_id = _followed(session)
        if group_id is None:
            raise NotFoundError("This run follows no group.")
        return followers.ended_members(session, group_id, current_identity().tenant_id)


def _followed(session: Session) -> tuple[str | None, str | None]:
    run = current_run()
    return (None, None) if run is None else followers.what_it_follows(session, run.run_id, identity_of(session).tenant_id)


def _check(session: Session, steps: Sequence[Step], after: str | None) -> None:
    """They say nothing of what chain and group decide, and belong to one tenant, as does the run that they follow."""
    calls = {step.call for step in steps}
    if any(call.after or call.after_group or call.group for call in calls):
        raise InvalidInputError("What a step follows is said by its place in the chain or the group, and by `after`.")
    if len({owner_of(identity_of(session), call)[0] for call in calls}) > 1:
        raise TenantError("A chain or a group belongs to one tenant.")
    if steps:
        require_predecessor(session, replace(steps[0].call, after=after))


def _record_members(session: Session, chains: list[list[Step]], group_id: str, after: str | None) -> list[str]:
    ids = iter(sorted(new_id() for steps in chains for _ in steps))  # their order is the members', for whoever reads the results
    alike: dict[tuple[Call[Any, Any], bool], list[tuple[str, Step, str | None]]] = {}
    run_ids = []
    for steps in chains:
        previous = after
        for step in steps:
            run_id = next(ids)
            if step.call.is_for_one:
                _record_new(session, step, replace(step.call, group=group_id, after=previous, run_id=run_id))
            else:
                alike.setdefault((step.call, previous is not None), []).append((run_id, step, previous))
            run_ids.append(run_id)
            previous = run_id
    for (call, _), several in alike.items():
        followed = [previous for _, _, previous in several if previous is not None]  # all of them, or none
        member = replace(call, group=group_id, after=next(iter(followed), None))
        record_many(session, member, [step.arguments for _, step, _ in several], [run_id for run_id, _, _ in several], followed)
    return run_ids


def _record_chain(session: Session, steps: Sequence[Step], after: str | None, group_id: str | None) -> list[str]:
    run_ids: list[str] = []
    for step, new in zip(steps, sorted(new_id() for _ in steps), strict=True):
        previous = run_ids[-1] if run_ids else after
        run_id, is_new = record(session, replace(step.call, after=previous, group=group_id, run_id=new), step.arguments)
        if not is_new and previous is not None and not _follows(session, run_id, previous, step.call):
            raise KeyHeldError(step)
        run_ids.append(run_id)
    return run_ids


def _follows(session: Session, run_id: str, previous: str, call: Call[Any, Any]) -> bool:
    return followers.what_it_follows(session, run_id, owner_of(identity_of(session), call)[0])[0] == previous


def _record_new(session: Session, step: Step, call: Call[Any, Any]) -> str:
    """`call` is the step's, at its place."""
    run_id, is_new = record(session, call, step.arguments)
    if not is_new:
        raise KeyHeldError(step)
    return run_id


@contextmanager
def _one_request() -> Iterator[None]:
    """Runs that are recorded together are told from others by their request id."""
    bound = structlog.contextvars.get_contextvars().get("request_id")
    with structlog.contextvars.bound_contextvars(request_id=bound or new_id()):
        yield
