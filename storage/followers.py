"""The statements about runs that wait for others: whose time has come, who can never start, what became of those before them.

A follower names what it waits for and nothing names the follower, so that nobody who adds one locks a run that is running. Whatever
ends a run, the relays find its followers by a walk over those that wait; a worker only tells them sooner. Rows are taken with
SKIP LOCKED, and a predecessor that failed is locked with its followers, so that its replay either comes first or takes them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session, aliased

from storage.expressions import db_now, db_now_plus
from storage.models import TaskRun
from storage.states import FINAL, LIVE, State, WaitingFor
from storage.types import Id, UtcDateTime
from storage.webhook_events import note_revoked

PREDECESSOR_FAILED = "predecessor_failed"
"""The reason of a REVOKED run that can never start, because the one before it ended in FAILURE or REVOKED."""
BATCH = 1000
WAITS = TaskRun.waiting_for == literal_column("'run'")  # written like the partial index' own condition
_LIVE = sorted(LIVE)
_FINAL = sorted(FINAL)


@dataclass(frozen=True, slots=True)
class Walk:
    """What some of the followers wait for: which of it has `ended` or is `gone`, and where the walk goes on (None: it is over)."""

    ended: list[str]
    gone: list[str]
    goes_on_after: str | None


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of followers: how many were released, which were revoked and of which groups those were members.

    `is_full`: there may be more of them.
    """

    released: int
    revoked: list[str]
    groups: list[str]
    is_full: bool = False


@dataclass(frozen=True, slots=True)
class EndedRun:
    """What became of a run that somebody waited for. `result` is None for all but a SUCCESS, and once results are cleared."""

    run_id: str
    task: str
    state: State
    result: Any
    error_type: str | None
    error: str | None
    reason: str | None


# What followers wait for, a page at a time. The statements are built once: that costs more than executing them.


def walk_predecessors(connection: Connection, after: str, limit: int = BATCH) -> Walk:
    """Looks at what the next so many followers wait for, in the order of its ids."""
    rows = connection.execute(_predecessors(), {"after": after, "limit": limit}).all()
    ended, gone = {row.id for row in rows if row.state in FINAL}, {row.id for row in rows if row.state is None}
    return Walk(sorted(ended), sorted(gone), max(row.id for row in rows) if len(rows) == limit else None)


def walk_groups(connection: Connection, after: str, limit: int = BATCH) -> Walk:
    """The same for groups; one without members has ended."""
    rows = connection.execute(_groups(), {"after": after, "limit": limit}).all()
    return Walk(sorted({row.id for row in rows if not row.is_live}), [], max(row.id for row in rows) if len(rows) == limit else None)


@cache
def _predecessors() -> Select[Any]:
    waited_for = _waited_for(TaskRun.after_run_id)
    is_it = and_(TaskRun.id == waited_for.c.id, TaskRun.tenant_id == waited_for.c.tenant_id)
    return select(waited_for.c.id, TaskRun.state).outerjoin_from(waited_for, TaskRun, is_it)


@cache
def _groups() -> Select[Any]:
    waited_for = _waited_for(TaskRun.after_group_id, TaskRun.after_run_id.is_(None))
    return select(waited_for.c.id, _has_live_members(waited_for.c.id, waited_for.c.tenant_id).label("is_live"))


def _waited_for(column: Any, *conditions: ColumnElement[bool]) -> Any:
    """Not distinct, which would mean to sort them all: if more wait for the last of a page, they are settled with it."""
    some = select(column.label("id"), TaskRun.tenant_id).where(WAITS, column > bindparam("after", type_=Id), *conditions)
    return some.order_by(TaskRun.after_run_id, TaskRun.after_group_id).limit(bindparam("limit")).subquery("waited_for")  # the index' order


# What becomes of followers.


def settle(connection: Connection, ended: Sequence[str]) -> Settled:
    """Releases the followers of runs that ended well and revokes those of the others, at most BATCH of them."""
    rows = connection.execute(_ready_followers(), {"ended": ended, "limit": BATCH}).all()
    lucky = [row.id for row in rows if row.state == State.SUCCESS]
    others = [row for row in rows if row.state != State.SUCCESS]
    if lucky:
        connection.execute(_release(), {"ids": lucky})
    if others:
        connection.execute(_revoke().where(_IS_ONE_OF), {"ids": [row.id for row in others]})
        note_revoked(connection, [row.id for row in others])
    return Settled(len(lucky), [row.id for row in others], [row.group_id for row in others if row.group_id], len(rows) == BATCH)


def revoke_orphans(connection: Connection, gone: Sequence[str]) -> Settled:
    """Revokes the followers of runs that exist no more."""
    is_orphan = and_(
        WAITS, TaskRun.after_run_id.in_(gone), ~exists(select(literal(1)).where(*_is_before(aliased(TaskRun))).correlate(TaskRun))
    )
    rows = connection.execute(_revoke().where(is_orphan).returning(TaskRun.id, TaskRun.group_id)).all()
    note_revoked(connection, [row.id for row in rows])
    return Settled(0, [row.id for row in rows], [row.group_id for row in rows if row.group_id])


def release_callbacks(connection: Connection, groups: Sequence[str]) -> int:
    """Releases what waits for these groups, if all their members have ended. Returns how many."""
    ids = list(connection.scalars(_ready_callbacks(), {"groups": groups}))
    if ids:
        connection.execute(_release(), {"ids": ids})
    return len(ids)


_IS_ONE_OF = TaskRun.id.in_(bindparam("ids", expanding=True))  # of rows that this transaction has locked


@cache
def _ready_followers() -> Any:
    predecessor = aliased(TaskRun)
    return (
        select(TaskRun.id, TaskRun.group_id, predecessor.state)
        .join(predecessor, and_(*_is_before(predecessor)))
        .where(WAITS, TaskRun.after_run_id.in_(bindparam("ended", expanding=True)), predecessor.state.in_(_FINAL))
        .limit(bindparam("limit"))
        .with_for_update(skip_locked=True, of=[TaskRun, predecessor])
    )


@cache
def _ready_callbacks() -> Select[Any]:
    return (
        select(TaskRun.id)
        .where(WAITS, TaskRun.after_run_id.is_(None), TaskRun.after_group_id.in_(bindparam("groups", expanding=True)))
        .where(~_has_live_members(TaskRun.after_group_id, TaskRun.tenant_id))
        .with_for_update(skip_locked=True)
    )


@cache
def _release() -> Any:
    due = func.coalesce(TaskRun.eta, db_now_plus(TaskRun.__table__.c.delay), type_=UtcDateTime())
    return (
        update(TaskRun)
        .where(_IS_ONE_OF)
        .values(
            waiting_for=case((due > db_now(), literal(WaitingFor.ETA)), else_=literal(WaitingFor.BROKER)),
            publish_at=func.coalesce(due, db_now(), type_=UtcDateTime()),
            eta=due,
        )
    )


@cache
def _revoke() -> Any:
    """The `eta` stays: a replay of the predecessor brings the follower back."""
    ended = {"state": State.REVOKED, "reason": PREDECESSOR_FAILED, "finished_at": db_now(), "publish_at": None, "waiting_for": None}
    return update(TaskRun).values(**ended)


def _is_before(predecessor: Any) -> list[ColumnElement[bool]]:
    return [predecessor.id == TaskRun.after_run_id, predecessor.tenant_id == TaskRun.tenant_id]


# Replay.


def as_replayed_follower() -> dict[str, Any]:
    """The columns of a follower that starts over: it waits again if what it follows is live."""
    predecessor = aliased(TaskRun)
    waits = or_(
        exists(select(literal(1)).where(*_is_before(predecessor), predecessor.state.in_(_LIVE)).correlate(TaskRun)),
        and_(TaskRun.after_group_id.is_not(None), _has_live_members(TaskRun.after_group_id, TaskRun.tenant_id)),
    )
    waiting_for = case((waits, literal(WaitingFor.RUN)), else_=literal(WaitingFor.BROKER))
    return {"waiting_for": waiting_for, "publish_at": case((waits, null()), else_=db_now()), "eta": None}


def failed_predecessor(connection: Connection, run_id: str) -> State | None:
    """The state of the run that this one follows, if it is one that lets nothing follow."""
    predecessor = aliased(TaskRun)
    state = connection.scalar(
        select(predecessor.state)
        .join(TaskRun, and_(*_is_before(predecessor)))
        .where(TaskRun.id == run_id, predecessor.state.in_([State.FAILURE, State.REVOKED]))
    )
    return None if state is None else State(state)


def take_back(connection: Connection, run_id: str) -> None:
    """Lets those wait again that were revoked because of this run, directly or through each other.

    One whose unique key a live run holds by now stays REVOKED, and so does what follows it. Repeated until there is none: a relay
    may have been on its way down the same chain.
    """
    while connection.execute(_take_back(), {"run_id": run_id}).all():
        pass


@cache
def _take_back() -> Any:
    later = select(TaskRun.id).where(TaskRun.after_run_id == bindparam("run_id", type_=Id), _may_wait(TaskRun)).cte("later", recursive=True)
    next_one = aliased(TaskRun)
    later = later.union(select(next_one.id).join(later, next_one.after_run_id == later.c.id).where(_may_wait(next_one)))
    fresh = dict.fromkeys(("reason", "error", "error_type", "finished_at", "expires_at", "duration_ms"))
    return (
        update(TaskRun)
        .where(TaskRun.id.in_(select(later.c.id)), TaskRun.reason == PREDECESSOR_FAILED)
        .values(state=State.PENDING, waiting_for=WaitingFor.RUN, publish_at=None, attempt=0, **fresh)
        .returning(TaskRun.id)  # SQLite's driver does not count the rows of a statement that begins with WITH
    )


def _may_wait(run: Any) -> ColumnElement[bool]:
    """It waits, or may do so again."""
    holder = aliased(TaskRun)
    # As the partial unique index has it, which answers this.
    is_held = exists(
        select(literal(1))
        .where(holder.tenant_id == run.tenant_id, holder.task == run.task, holder.unique_key == run.unique_key)
        .where(
            holder.unique_key.is_not(None), holder.state.in_([literal_column(f"'{state}'") for state in ("PENDING", "STARTED", "RETRY")])
        )
        .correlate(run)
    )
    return or_(run.waiting_for == WaitingFor.RUN, and_(run.state == State.REVOKED, run.reason == PREDECESSOR_FAILED, ~is_held))


# Who follows whom.


def followed(connection: Connection, run_ids: Sequence[str]) -> set[str]:
    """Those of the runs that others wait for."""
    return set(connection.scalars(_followed(), {"run_ids": run_ids}))


@cache
def _followed() -> Select[Any]:
    return select(TaskRun.after_run_id).where(WAITS, TaskRun.after_run_id.in_(bindparam("run_ids", expanding=True))).distinct()


def has_members(session: Session, group_id: str, tenant_id: str) -> bool:
    """Whether the tenant has such a group."""
    found = select(literal(1)).where(TaskRun.group_id == group_id, TaskRun.tenant_id == tenant_id).limit(1)
    return session.scalar(found) is not None


def what_it_follows(session: Session, run_id: str, tenant_id: str) -> tuple[str | None, str | None]:
    """The run and the group that a run follows. (None, None) for an unknown one."""
    statement = select(TaskRun.after_run_id, TaskRun.after_group_id).where(TaskRun.id == run_id, TaskRun.tenant_id == tenant_id)
    row = session.execute(statement).one_or_none()
    return (None, None) if row is None else (row.after_run_id, row.after_group_id)


def ended_run(session: Session, run_id: str, tenant_id: str) -> EndedRun | None:
    """What became of a run of the tenant, whichever user's."""
    rows = session.execute(_ended_runs().where(TaskRun.id == run_id, TaskRun.tenant_id == tenant_id))
    return next((_ended(row) for row in rows), None)


def ended_members(session: Session, group_id: str, tenant_id: str) -> list[EndedRun]:
    """What became of a group's members, in the order in which they were given."""
    rows = session.execute(_ended_runs().where(TaskRun.group_id == group_id, TaskRun.tenant_id == tenant_id).order_by(TaskRun.id))
    return [_ended(row) for row in rows]


@cache
def _ended_runs() -> Select[Any]:
    return select(TaskRun.id, TaskRun.task, TaskRun.state, TaskRun.result, TaskRun.error_type, TaskRun.error, TaskRun.reason)


def _ended(row: Any) -> EndedRun:
    return EndedRun(row.id, row.task, State(row.state), row.result, row.error_type, row.error, row.reason)


def _has_live_members(group_id: Any, tenant_id: Any) -> ColumnElement[bool]:
    member = aliased(TaskRun)
    is_live = and_(member.group_id == group_id, member.tenant_id == tenant_id, member.state.in_(_LIVE))
    return exists(select(literal(1)).where(is_live).correlate_except(member))
