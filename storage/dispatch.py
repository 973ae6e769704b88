"""The statements of the relay: what is due, what may have been lost, what is held, what expired. What there is to do at all: lookout.py.

All of them are safe with any number of relays at once: rows are taken with SKIP LOCKED (SQLite has one writer anyway), and a
run that two relays publish is claimed once. Every one is answered from a partial index (docs/queries.md has the plans).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, text, tuple_, update

from storage import postgres
from storage.accept import level_of
from storage.barriers import is_limited, is_paused
from storage.expressions import db_now, db_now_plus, seconds_after
from storage.models import TaskRun
from storage.models.runs import HELD, PUBLISHED
from storage.outcomes import HeldLane
from storage.states import WAITING, Ending, State, WaitingFor
from storage.webhook_events import note_revoked

PUBLISH_GRACE_SECONDS = 30.0
"""How long a published run may stay unclaimed before its message is looked for."""
BATCH = 1000
MAX_LANES = 500
LONGEST_SECONDS = 600.0
"""The hard limit of a run that was recorded without one."""


@dataclass(frozen=True, slots=True)
class Publishable:
    """What a broker message needs to know of a run."""

    run_id: str
    tenant_id: str
    user_id: str | None
    task: str
    queue: str
    priority: int
    request_id: str | None
    attempt: int


MESSAGE_COLUMNS = (
    TaskRun.id,
    TaskRun.tenant_id,
    TaskRun.user_id,
    TaskRun.task,
    TaskRun.queue,
    TaskRun.priority,
    TaskRun.request_id,
    TaskRun.attempt,
)
IS_WAITING = TaskRun.state.in_(sorted(WAITING))
NOT_ON_A_BROKER = or_(TaskRun.waiting_for.is_(None), TaskRun.waiting_for.in_([WaitingFor.ETA, WaitingFor.BROKER]))
ON_A_BROKER = TaskRun.waiting_for == WaitingFor.QUEUE


def has_overrun() -> ColumnElement[bool]:
    """STARTED, past its hard limit and not marked yet, or only asked to end: an actor without a checkpoint never heard of it."""
    limit = func.coalesce(TaskRun.hard_limit, LONGEST_SECONDS)
    return and_(
        text("state = 'STARTED'"),
        or_(TaskRun.ending.is_(None), TaskRun.ending == Ending.REVOKE),
        seconds_after(TaskRun.started_at, limit) <= db_now(),
    )


def held_lanes(connection: Connection, queues: Sequence[str]) -> list[HeldLane]:
    """Where held runs wait in these queues, each lane from just before its first; at most MAX_LANES."""
    if connection.dialect.name == "postgresql":
        return postgres.held_lanes(connection, queues, MAX_LANES)
    columns = (TaskRun.queue, TaskRun.tenant_id, TaskRun.priority)
    statement = select(*columns).where(text(HELD), TaskRun.queue.in_(queues)).group_by(*columns).limit(MAX_LANES)
    return [HeldLane(*row, after=postgres.BEFORE_ANY_ID) for row in connection.execute(statement)]


def take_due(connection: Connection, window: int, limit: int = BATCH) -> tuple[list[Publishable], int]:
    """Runs whose time has come or that no broker took. Those with room in their lane count as published from now on and are returned
    with their messages' priorities; the others are held. What is paused or limited waits for that from now on. Also returns how
    many there were in all."""
    due = connection.execute(
        select(*MESSAGE_COLUMNS, is_paused().label("is_paused"), is_limited().label("is_limited"))
        .where(TaskRun.publish_at <= db_now(), IS_WAITING, ~TaskRun.is_suspect, NOT_ON_A_BROKER)
        .order_by(TaskRun.publish_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    wait_behind(connection, WaitingFor.PAUSE, [row.id for row in due if row.is_paused])
    wait_behind(connection, WaitingFor.LIMIT, [row.id for row in due if row.is_limited and not row.is_paused])
    return let_through(connection, [row for row in due if not row.is_paused and not row.is_limited], window), len(due)


def wait_behind(connection: Connection, barrier: WaitingFor, run_ids: Sequence[str]) -> None:
    """These rows, locked by the caller, wait until a pause ends or a limit lets them on. They have no message and spend no attempt."""
    if run_ids:
        connection.execute(update(TaskRun).where(TaskRun.id.in_(run_ids)).values(publish_at=None, waiting_for=barrier))


def let_through(connection: Connection, due: Sequence[Any], window: int) -> list[Publishable]:
    """Marks rows that begin with MESSAGE_COLUMNS, locked by the caller, as published or held. Returns those to be published."""
    if not due:
        return []
    crowds = _crowds(connection, {(row.queue, row.tenant_id) for row in due})
    published, held = [], []
    for row in due:
        lane = (row.queue, row.tenant_id)
        if crowds[lane] < window:
            published.append(_at_level(row, crowds[lane]))
            crowds[lane] += 1
        else:
            held.append(row.id)
    for ids, publish_at in (([run.run_id for run in published], db_now_plus(PUBLISH_GRACE_SECONDS)), (held, None)):
        if ids:
            connection.execute(update(TaskRun).where(TaskRun.id.in_(ids)).values(publish_at=publish_at, waiting_for=WaitingFor.QUEUE))
    return published


def _crowds(connection: Connection, lanes: set[tuple[str, str]]) -> Counter[tuple[str, str]]:
    statement = (
        select(TaskRun.queue, TaskRun.tenant_id, func.count())
        .where(text(PUBLISHED), tuple_(TaskRun.queue, TaskRun.tenant_id).in_(sorted(lanes)))
        .group_by(TaskRun.queue, TaskRun.tenant_id)
    )
    return Counter({(queue, tenant_id): number for queue, tenant_id, number in connection.execute(statement)})


def _at_level(row: Any, crowd: int) -> Publishable:
    return Publishable(row.id, row.tenant_id, row.user_id, row.task, row.queue, level_of(row.priority, crowd), row.request_id, row.attempt)


def publishable(row: Any) -> Publishable:
    """From a row that begins with MESSAGE_COLUMNS."""
    return Publishable(*row[: len(MESSAGE_COLUMNS)])


def take_lost(connection: Connection, queue: str, limit: int) -> list[Publishable]:
    """The longest unclaimed published runs of a queue, to be published again."""
    lost = (
        select(TaskRun.id)
        .where(TaskRun.publish_at <= db_now(), IS_WAITING, ~TaskRun.is_suspect, ON_A_BROKER, TaskRun.queue == queue, ~is_paused())
        .order_by(TaskRun.publish_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("lost")  # as a plain subquery PostgreSQL may evaluate it once for each row, and then the limit limits nothing
    )
    statement = (
        update(TaskRun)
        .where(TaskRun.id.in_(select(lost.c.id)))
        .values(publish_at=db_now_plus(PUBLISH_GRACE_SECONDS))
        .returning(*MESSAGE_COLUMNS)
    )
    return [publishable(row) for row in connection.execute(statement)]


def overdue_queues(connection: Connection) -> dict[str, int]:
    """Queues with published runs that nobody claimed within the grace, and how many published runs wait in each."""
    overdue = select(TaskRun.queue).where(TaskRun.publish_at <= db_now(), ON_A_BROKER, IS_WAITING).distinct()
    names = list(connection.scalars(overdue))
    if not names:
        return {}
    statement = select(TaskRun.queue, func.count()).where(text(PUBLISHED), TaskRun.queue.in_(names)).group_by(TaskRun.queue)
    return {row[0]: row[1] for row in connection.execute(statement)}


def keep_waiting(connection: Connection, queue: str) -> None:
    """The brokers still hold this queue's messages: look again after another grace."""
    connection.execute(
        update(TaskRun)
        .where(TaskRun.publish_at <= db_now(), ON_A_BROKER, TaskRun.queue == queue)
        .values(publish_at=db_now_plus(PUBLISH_GRACE_SECONDS))
    )


def wait_for_broker(connection: Connection, run_ids: Sequence[str]) -> None:
    """No broker took these: the relay tries again at once."""
    connection.execute(
        update(TaskRun).where(TaskRun.id.in_(run_ids), IS_WAITING, ON_A_BROKER).values(publish_at=db_now(), waiting_for=WaitingFor.BROKER)
    )


def expire(connection: Connection) -> int:
    """Ends waiting runs that are past their `expires_at`. Returns how many."""
    statement = (
        update(TaskRun)
        .where(TaskRun.expires_at <= db_now(), text("state IN ('PENDING', 'RETRY')"))
        .values(state=State.REVOKED, reason="expired", finished_at=db_now(), publish_at=None, waiting_for=None, eta=None)
        .returning(TaskRun.id)
    )
    expired = list(connection.scalars(statement))
    note_revoked(connection, expired)
    return len(expired)
