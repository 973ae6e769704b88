"""The statements that accept runs, built once for each dialect: building one anew for every run cost more than executing it.

A run that is due is published at once if its lane has room: at most so many messages of a tenant and queue are on a broker at a
time. Behind them a run is held: it has no message and is claimed straight from the record (ADR 0007), so that no tenant's backlog
stands before another's run in a first-in-first-out queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Select,
    String,
    bindparam,
    case,
    cast,
    exists,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite

from storage import postgres
from storage.expressions import db_now, db_now_plus
from storage.models import Limit, Pause, TaskRun
from storage.models.runs import HELD, PUBLISHED
from storage.outcomes import NewRow
from storage.states import State, WaitingFor
from storage.types import Id, UtcDateTime

TABLE = TaskRun.__table__
PLAIN = (
    "id",
    "tenant_id",
    "user_id",
    "task",
    "queue",
    "priority",
    "args",
    "max_attempts",
    "soft_limit",
    "hard_limit",
    "unique_key",
    "idempotency_key",
    "request_hash",
    "request_id",
    "mail_host",
    "after_run_id",
    "after_group_id",
    "group_id",
)
"""Columns that are given as they are; beside them come `window`, `at` or `delay`, `grace`, `ends_at` or `ends_in` (seconds)."""
CROWD = 16
"""So many messages of a tenant in a queue go at their own priority, those behind them at the next lower one: others overtake them."""


def level_of(priority: int, crowd: int) -> int:
    """The priority of a run's message with so many of its tenant's before it."""
    return priority if crowd < CROWD else max(0, priority - 1)


@dataclass(frozen=True, slots=True)
class Lane:
    """How a tenant's next runs in a queue are to wait: `waiting_for` and, if that is the queue, for how many there is `room`."""

    waiting_for: WaitingFor
    room: int
    crowd: int


@cache
def accept_statement(dialect: str) -> Any:
    """INSERT ... ON CONFLICT DO NOTHING RETURNING what it waits for, whether to publish it now, and the crowd before it. All times are
    the database's."""
    build = postgresql.insert if dialect == "postgresql" else sqlite.insert
    due = func.coalesce(bindparam("at", type_=UtcDateTime()), db_now_plus(bindparam("delay")), type_=UtcDateTime())
    follows = or_(bindparam("after_run_id", type_=Id).is_not(None), bindparam("after_group_id", type_=Id).is_not(None))
    waits = or_(bindparam("at", type_=UtcDateTime()).is_not(None), bindparam("delay").is_not(None))
    has_room = _crowd(bindparam("window")) < bindparam("window")
    return (
        build(TABLE)  # type: ignore[arg-type]
        .values(
            **{name: bindparam(name) for name in PLAIN},
            state=State.PENDING,
            attempt=0,
            fence=0,
            eta=case((follows, bindparam("at", type_=UtcDateTime())), else_=due),
            delay=case((follows, cast(bindparam("delay"), Double))),
            waiting_for=case(
                (follows, literal(WaitingFor.RUN)),
                (_is_paused(), literal(WaitingFor.PAUSE)),
                (waits, literal(WaitingFor.ETA)),
                (_is_limited(), literal(WaitingFor.LIMIT)),
                else_=literal(WaitingFor.QUEUE),
            ),
            publish_at=case(
                (or_(follows, _is_paused()), null()),
                (waits, due),
                (or_(_is_limited(), _has_held(), ~has_room), null()),
                else_=db_now_plus(bindparam("grace")),
            ),
            expires_at=func.coalesce(bindparam("ends_at", type_=UtcDateTime()), db_now_plus(bindparam("ends_in")), type_=UtcDateTime()),
            created_at=db_now(),
        )
        .on_conflict_do_nothing()
        .returning(TABLE.c.waiting_for, text(f"({PUBLISHED})"), _crowd(CROWD))
    )


def look_at_lane(connection: Connection, lane: dict[str, Any], window: int) -> Lane:
    """Where runs of a task (`queue`, `task`, `tenant_id`, `mail_host`) would wait now."""
    row = connection.execute(_lane_statement(), {**lane, "tenant_name": lane["tenant_id"], "window": window}).one()
    waiting_for = WaitingFor.PAUSE if row.paused else WaitingFor.LIMIT if row.limited else WaitingFor.QUEUE
    return Lane(waiting_for, 0 if row.held or waiting_for is not WaitingFor.QUEUE else max(0, window - row.crowd), row.crowd)


def accept_many(connection: Connection, common: dict[str, Any], rows: Sequence[NewRow], lane: Lane, grace: float) -> None:
    """Records many due runs of one task and tenant; the other columns are common to all."""
    if connection.dialect.name == "postgresql":
        postgres.accept_many(connection, common, rows, str(lane.waiting_for), lane.room, grace)
        return
    for published in (True, False):
        part = rows[: lane.room] if published else rows[lane.room :]
        times = {"publish_at": db_now_plus(grace) if published else null(), "created_at": db_now()}
        values = {**common, "state": State.PENDING, "attempt": 0, "fence": 0, "waiting_for": lane.waiting_for}
        if part:
            own = [{"id": row.run_id, "args": row.args, "request_id": row.request_id} for row in part]
            after = [{"after_run_id": row.after_run_id} if row.after_run_id is not None else {} for row in part]
            connection.execute(insert(TaskRun).values(**times), [values | each | what for each, what in zip(own, after, strict=True)])


@cache
def _lane_statement() -> Select[Any]:
    return select(
        _is_paused().label("paused"), _is_limited().label("limited"), _has_held().label("held"), _crowd(bindparam("window")).label("crowd")
    )


def _of_this_lane(condition: str) -> Any:
    run = TABLE.alias("lane")
    # As text: the partial index is used only for a condition that is written like its own.
    return select(literal(1)).where(text(condition), run.c.queue == bindparam("queue"), run.c.tenant_id == bindparam("tenant_id", type_=Id))


def _crowd(limit: Any) -> Any:
    return select(func.count()).select_from(_of_this_lane(PUBLISHED).limit(limit).subquery()).scalar_subquery()


def _has_held() -> ColumnElement[bool]:
    return exists(_of_this_lane(HELD))


def _is_paused() -> ColumnElement[bool]:
    named = [("queue", bindparam("queue")), ("task", bindparam("task")), ("tenant", bindparam("tenant_name", type_=String))]
    return exists(select(literal(1)).where(or_(*[(Pause.kind == kind) & (Pause.name == name) for kind, name in named])))


def _is_limited() -> ColumnElement[bool]:
    named = [("tenant", bindparam("tenant_name", type_=String)), ("host", bindparam("mail_host"))]
    return exists(select(literal(1)).where(or_(*[(Limit.kind == kind) & (Limit.name == name) for kind, name in named])))
