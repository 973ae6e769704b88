"""The statements about workers: their hearts, the runs of those that died, and the runs that must end.

A run that must end is marked in the record (`ending`), by whoever decides it: a person, or any relay for one that is past its hard
limit. Its worker reads the marks of its runs; whatever becomes of the worker, the mark decides how the run ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, case, exists, func, insert, literal, or_, select, update
from sqlalchemy import delete as sql_delete

from storage.claims import write_outcomes
from storage.dispatch import BATCH, MESSAGE_COLUMNS, Publishable, has_overrun, publishable
from storage.expressions import db_now, db_now_plus
from storage.models import TaskRun, WorkerProcess
from storage.outcomes import Outcome
from storage.states import Ending, State

WORKER_LOST_SECONDS = 15.0
ALONE = "alone"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker says of itself every few seconds."""

    worker_id: str
    host: str
    pid: int
    threads: int
    queues: list[str]
    state: str
    process_key: str | None


@dataclass(frozen=True, slots=True)
class LostRun:
    """A run whose worker is gone. `company`: how many runs that worker held; `is_explained`: it had to go, because one of them
    would not end."""

    message: Publishable
    fence: int
    max_attempts: int
    ending: Ending | None
    company: int
    is_explained: bool


def heartbeat(connection: Connection, beat: Heartbeat) -> None:
    """Says that a worker lives; the row is made when it is new or was given up."""
    mine = update(WorkerProcess).where(WorkerProcess.id == beat.worker_id)
    if connection.execute(mine.values(heartbeat_at=db_now(), state=beat.state)).rowcount == 0:
        facts = {"host": beat.host, "pid": beat.pid, "threads": beat.threads, "queues": beat.queues, "state": beat.state}
        connection.execute(insert(WorkerProcess).values(id=beat.worker_id, process_key=beat.process_key, **facts))


def forget_worker(connection: Connection, worker_id: str) -> None:
    """The worker has stopped in good order and holds nothing."""
    connection.execute(sql_delete(WorkerProcess).where(WorkerProcess.id == worker_id))


def may_be_alone(connection: Connection, worker_id: str) -> bool:
    """Lets a worker keep to one run, a suspect; true for at most half of the workers at a time, and for one at least."""
    others = select(func.count()).where(WorkerProcess.state == ALONE, WorkerProcess.id != worker_id).scalar_subquery()
    alive = select(func.count()).select_from(WorkerProcess).scalar_subquery()
    mine = update(WorkerProcess).where(WorkerProcess.id == worker_id, or_(others == 0, others * 2 < alive))
    return connection.execute(mine.values(state=ALONE)).rowcount > 0


def has_orphans() -> ColumnElement[bool]:
    """A heart has stopped, or a run is held by no worker that there is: then `rescue_orphans` finds something."""
    is_any_silent = exists(select(literal(1)).select_from(WorkerProcess).where(_is_silent()))
    return or_(is_any_silent, exists(select(literal(1)).select_from(TaskRun).where(_is_orphan())))


def process_keys(connection: Connection) -> dict[str, str]:
    """Worker id to process key, of the workers that have one."""
    rows = connection.execute(select(WorkerProcess.id, WorkerProcess.process_key).where(WorkerProcess.process_key.is_not(None)))
    return {row.id: row.process_key for row in rows}


def rescue_orphans(
    connection: Connection, gone: Sequence[str], decide: Callable[[LostRun], Outcome], *, trust_hearts: bool = True
) -> list[tuple[Publishable, Outcome]]:
    """Takes back the runs of workers that are certainly `gone` or whose heart stopped. Returns each with what became of it.

    Without `trust_hearts` only of those that are certainly gone: while the database was away nobody's heart could beat.
    """
    is_lost = or_(WorkerProcess.id.in_(list(gone)), _is_silent()) if trust_hearts else WorkerProcess.id.in_(list(gone))
    connection.execute(sql_delete(WorkerProcess).where(is_lost))
    orphans = connection.execute(
        select(*MESSAGE_COLUMNS, TaskRun.fence, TaskRun.max_attempts, TaskRun.ending, TaskRun.worker_id)
        .where(_is_orphan())
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    ).all()
    lost = {}
    for row in orphans:
        company = [each for each in orphans if each.worker_id == row.worker_id]
        ending = Ending(row.ending) if row.ending else None
        is_explained = any(each.ending in {Ending.HARD_LIMIT, Ending.TERMINATE} for each in company)
        lost[row.id] = LostRun(publishable(row), row.fence, row.max_attempts, ending, len(company), is_explained)
    outcomes = {run_id: decide(run) for run_id, run in lost.items()}
    written = write_outcomes(connection, list(outcomes.values()))
    return [(lost[run_id].message, outcomes[run_id]) for run_id in written]


def _is_silent() -> ColumnElement[bool]:
    return WorkerProcess.heartbeat_at < db_now_plus(-WORKER_LOST_SECONDS)


def _is_orphan() -> ColumnElement[bool]:
    return and_(TaskRun.state == State.STARTED, or_(TaskRun.worker_id.is_(None), TaskRun.worker_id.not_in(select(WorkerProcess.id))))


def mark_overrun(connection: Connection) -> list[str]:
    """Marks the runs that are past their hard limit; one that was revoked stays so, now by force. Returns their ids."""
    ending = case((TaskRun.ending == Ending.REVOKE, Ending.TERMINATE), else_=Ending.HARD_LIMIT)
    statement = update(TaskRun).where(has_overrun()).values(ending=ending).returning(TaskRun.id)
    return list(connection.scalars(statement))


def endings(connection: Connection, worker_id: str) -> dict[str, Ending]:
    """Run id to how it must end, of the runs that a worker holds."""
    marked = and_(TaskRun.worker_id == worker_id, TaskRun.state == State.STARTED, TaskRun.ending.is_not(None))
    return {row.id: Ending(row.ending) for row in connection.execute(select(TaskRun.id, TaskRun.ending).where(marked))}
