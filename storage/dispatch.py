"""The statements of the relay: what is due, what may have been lost, what expired, and the runs of dead workers.

All of them are safe with any number of relays at once: rows are taken with SKIP LOCKED (SQLite has one writer anyway), and a
run that two relays publish is claimed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, insert, or_, select, update
from sqlalchemy import delete as sql_delete

from storage.claims import write_outcomes
from storage.expressions import db_now, db_now_plus
from storage.models import TaskRun, WorkerProcess
from storage.outcomes import Outcome
from storage.states import WAITING, State, WaitingFor

PUBLISH_GRACE_SECONDS = 30.0
"""How long a published run may stay unclaimed before its message is looked for."""
WORKER_LOST_SECONDS = 15.0
BATCH = 1000


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


PUBLISHED = (
    TaskRun.id,
    TaskRun.tenant_id,
    TaskRun.user_id,
    TaskRun.task,
    TaskRun.queue,
    TaskRun.priority,
    TaskRun.request_id,
    TaskRun.attempt,
)
NOT_ON_A_BROKER = or_(TaskRun.waiting_for.is_(None), TaskRun.waiting_for.in_([WaitingFor.ETA, WaitingFor.BROKER, WaitingFor.LIMIT]))
ON_A_BROKER = TaskRun.waiting_for == WaitingFor.QUEUE


def ping(connection: Connection) -> None:
    """Whether the database answers: raises what the driver raises when it does not."""
    connection.execute(select(db_now()))


def take_due(connection: Connection, limit: int = BATCH) -> list[Publishable]:
    """Runs whose time has come or that no broker took; from now on they count as published."""
    return _take(connection, NOT_ON_A_BROKER, limit)


def take_lost(connection: Connection, queue: str, limit: int) -> list[Publishable]:
    """The longest unclaimed published runs of a queue, to be published again."""
    return _take(connection, and_(ON_A_BROKER, TaskRun.queue == queue), limit)


def _take(connection: Connection, condition: ColumnElement[bool], limit: int) -> list[Publishable]:
    due = (
        select(TaskRun.id)
        .where(TaskRun.publish_at <= db_now(), TaskRun.state.in_(sorted(WAITING)), condition)
        .order_by(TaskRun.publish_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")  # as a plain subquery PostgreSQL may evaluate it once for each row, and then the limit limits nothing
    )
    statement = (
        update(TaskRun)
        .where(TaskRun.id.in_(select(due.c.id)))
        .values(publish_at=db_now_plus(PUBLISH_GRACE_SECONDS), waiting_for=WaitingFor.QUEUE)
        .returning(*PUBLISHED)
    )
    return [_publishable(row) for row in connection.execute(statement)]


def _publishable(row: Any) -> Publishable:
    return Publishable(*row)


def overdue_queues(connection: Connection) -> dict[str, int]:
    """Queues with published runs that nobody claimed within the grace, and how many published runs wait in each."""
    overdue = select(TaskRun.queue).where(TaskRun.publish_at <= db_now(), ON_A_BROKER, TaskRun.state.in_(sorted(WAITING))).distinct()
    names = list(connection.scalars(overdue))
    if not names:
        return {}
    statement = (
        select(TaskRun.queue, func.count())
        .where(TaskRun.queue.in_(names), TaskRun.publish_at.is_not(None), ON_A_BROKER)
        .group_by(TaskRun.queue)
    )
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
        update(TaskRun)
        .where(TaskRun.id.in_(run_ids), TaskRun.state.in_(sorted(WAITING)))
        .values(publish_at=db_now(), waiting_for=WaitingFor.BROKER)
    )


def expire(connection: Connection) -> int:
    """Ends waiting runs that are past their `expires_at`. Returns how many."""
    statement = (
        update(TaskRun)
        .where(TaskRun.expires_at <= db_now(), TaskRun.state.in_(sorted(WAITING)))
        .values(state=State.REVOKED, reason="expired", finished_at=db_now(), publish_at=None, waiting_for=None, eta=None)
    )
    return connection.execute(statement).rowcount


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker says of itself every few seconds."""

    worker_id: str
    host: str
    pid: int
    threads: int
    queues: list[str]
    state: str


def heartbeat(connection: Connection, beat: Heartbeat) -> None:
    """Says that a worker lives; the row is made when it is new or was given up."""
    mine = update(WorkerProcess).where(WorkerProcess.id == beat.worker_id)
    if connection.execute(mine.values(heartbeat_at=db_now(), state=beat.state)).rowcount == 0:
        facts = {"host": beat.host, "pid": beat.pid, "threads": beat.threads, "queues": beat.queues, "state": beat.state}
        connection.execute(insert(WorkerProcess).values(id=beat.worker_id, **facts))


def forget_worker(connection: Connection, worker_id: str) -> None:
    """The worker has stopped in good order and holds nothing."""
    connection.execute(sql_delete(WorkerProcess).where(WorkerProcess.id == worker_id))


def rescue_orphans(connection: Connection) -> list[tuple[Publishable, bool]]:
    """Takes back the runs of workers whose heart stopped. Returns each with whether it ended as a dead letter."""
    connection.execute(sql_delete(WorkerProcess).where(WorkerProcess.heartbeat_at < db_now_plus(-WORKER_LOST_SECONDS)))
    orphans = connection.execute(
        select(*PUBLISHED, TaskRun.fence, TaskRun.max_attempts)
        .where(TaskRun.state == State.STARTED, TaskRun.worker_id.not_in(select(WorkerProcess.id)))
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    ).all()
    outcomes = {row.id: _lost_outcome(row.id, row.fence, has_attempts_left=row.attempt < row.max_attempts) for row in orphans}
    written = write_outcomes(connection, list(outcomes.values()))
    return [(_publishable(row[: len(PUBLISHED)]), outcomes[row.id].state is State.FAILURE) for row in orphans if row.id in written]


def _lost_outcome(run_id: str, fence: int, *, has_attempts_left: bool) -> Outcome:
    text = "The worker process was lost while it ran this."
    if has_attempts_left:
        return Outcome(run_id, fence, State.RETRY, error_type="WorkerLost", error=text, run_again_in=0, waiting_for=WaitingFor.BROKER)
    return Outcome(run_id, fence, State.FAILURE, error_type="WorkerLost", error=text, reason="crashed")
