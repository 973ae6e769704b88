"""The statements of pauses: what waits is turned to wait for the end of a pause, and is given back when none is in its way any more.

The claim alone keeps what is paused from starting (storage/claims.py). Turning it is what makes it say so, takes it out of the
lanes that others are claimed from, and lets its messages go stale. All of it is done in batches that any relay may go on with.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, delete, null, select, text, tuple_, update

from storage.barriers import is_limited, is_paused, is_unswept
from storage.dispatch import BATCH, IS_WAITING, NOT_ON_A_BROKER, wait_behind
from storage.expressions import db_now
from storage.models import Pause, TaskRun
from storage.models.runs import HELD, LIMITED, LIMITED_BY_HOST, PAUSED, PUBLISHED
from storage.states import WaitingFor
from storage.walks import pages, queues_in_use

MAX_LANES = 100
Lane = tuple[str, str, str]
"""Queue, task and tenant."""


def standing(connection: Connection) -> set[tuple[str, str]]:
    """Kind and name of every pause."""
    return {(row.kind, row.name) for row in connection.execute(select(Pause.kind, Pause.name))}


def sweep(connection: Connection) -> bool:
    """Turns a batch of what waits behind a pause and does not say so. False when there is no pause left to be swept."""
    unswept = select(Pause.kind, Pause.name).where(is_unswept(Pause)).order_by(Pause.swept_at).limit(1)
    pause = connection.execute(unswept.with_for_update(skip_locked=True)).one_or_none()
    if pause is not None and not turn_waiting(connection, pause.kind, pause.name):
        connection.execute(update(Pause).where(Pause.kind == pause.kind, Pause.name == pause.name).values(swept_at=db_now()))
    return pause is not None


def turn_waiting(connection: Connection, kind: str, name: str, limit: int = BATCH) -> int:
    """Turns up to `limit` due runs of each kind that a pause is in the way of. Returns how many; one whose time has not come stays."""
    due = and_(TaskRun.publish_at <= db_now(), IS_WAITING, NOT_ON_A_BROKER)
    turned = 0
    for place in (text(PUBLISHED), text(HELD), text(LIMITED), text(LIMITED_BY_HOST), due):
        waiting = select(TaskRun.id).where(place, *_scope(connection, kind, name, by_queue=place is not due)).limit(limit)
        run_ids = connection.scalars(waiting.with_for_update(skip_locked=True)).all()
        wait_behind(connection, WaitingFor.PAUSE, run_ids)
        turned += len(run_ids)
    return turned


def _scope(connection: Connection, kind: str, name: str, *, by_queue: bool) -> list[ColumnElement[bool]]:
    if kind == "queue":
        return [TaskRun.queue == name]
    if kind == "task":
        return [TaskRun.task == name]
    queues = [TaskRun.queue.in_(queues_in_use(connection))] if by_queue else []
    return [*queues, TaskRun.tenant_id == name]


def suspects_wait(connection: Connection) -> bool:
    """Whether there are runs to be run alone. Turns the paused among them first: no process is to empty itself for those."""
    due = select(TaskRun.id).where(text("is_suspect"), IS_WAITING, TaskRun.publish_at <= db_now())
    paused = connection.scalars(due.where(is_paused()).limit(BATCH).with_for_update(skip_locked=True)).all()
    wait_behind(connection, WaitingFor.PAUSE, paused)
    return connection.execute(due.limit(1)).first() is not None


def end(connection: Connection, kind: str, name: str) -> None:
    """The pause is over; what waited behind it is for `release`."""
    connection.execute(delete(Pause).where(Pause.kind == kind, Pause.name == name))


def release(connection: Connection) -> int:
    """Gives back a batch of the runs that wait for a pause and are behind none. Returns how many.

    A run whose time has not come waits for that, one under a limit to be admitted, a suspect to run alone; the others are held, to
    be claimed in turn with those of other tenants.
    """
    lanes = _free_lanes(connection)
    if not lanes:
        return 0
    is_free = tuple_(TaskRun.queue, TaskRun.task, TaskRun.tenant_id).in_(lanes)
    waiting = select(TaskRun.id).where(text(PAUSED), is_free).limit(BATCH).with_for_update(skip_locked=True)
    run_ids = connection.scalars(waiting).all()
    if run_ids:
        connection.execute(update(TaskRun).where(TaskRun.id.in_(run_ids)).values(**_given_back()))
    return len(run_ids)


def _given_back() -> dict[str, Any]:
    is_later = and_(TaskRun.eta.is_not(None), TaskRun.eta > db_now())
    waits = ((is_later, WaitingFor.ETA), (TaskRun.is_suspect, WaitingFor.BROKER), (is_limited(), WaitingFor.LIMIT))
    return {
        "waiting_for": case(*waits, else_=WaitingFor.QUEUE),
        "publish_at": case((is_later, TaskRun.eta), (TaskRun.is_suspect, db_now()), else_=null()),
    }


def _free_lanes(connection: Connection) -> list[Lane]:
    in_force = standing(connection)
    for page in pages(connection, ["queue", "task", "tenant_id"], PAUSED):
        free = [
            (queue, task, tenant_id)
            for queue, task, tenant_id in page
            if in_force.isdisjoint([("queue", queue), ("task", task), ("tenant", tenant_id)])
        ]
        if free:
            return free[:MAX_LANES]
    return []
