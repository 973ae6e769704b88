"""The statements of the recorder: claims and outcomes, many to a transaction.

A run starts because its claim succeeded. A claim is one conditional UPDATE that counts the attempt and raises the fence; an
outcome is written only for the fence it was claimed with, and only once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    func,
    insert,
    null,
    or_,
    select,
    text,
    tuple_,
    update,
)

from storage import postgres
from storage.barriers import is_limited, is_paused
from storage.expressions import db_now, db_now_plus
from storage.followers import followed
from storage.models import TaskAttempt, TaskRun
from storage.models.runs import HELD
from storage.outcomes import LOST_IN_COMPANY, Claim, HeldLane, Outcome, OwnRun
from storage.states import FINAL, WAITING, Ending, State, WaitingFor, sources_of
from storage.webhook_events import note, task_event

CLAIMED = (
    TaskRun.id,
    TaskRun.tenant_id,
    TaskRun.user_id,
    TaskRun.task,
    TaskRun.queue,
    TaskRun.args,
    TaskRun.attempt,
    TaskRun.max_attempts,
    TaskRun.fence,
    TaskRun.request_id,
    TaskRun.soft_limit,
    TaskRun.hard_limit,
    TaskRun.priority,
    TaskRun.is_suspect,
    (TaskRun.is_suspect & (func.coalesce(TaskRun.reason, "") == LOST_IN_COMPANY)).label("was_lost_in_company"),
    TaskRun.group_id,
)
ENDED = (
    TaskRun.id,
    TaskRun.tenant_id,
    TaskRun.user_id,
    TaskRun.task,
    TaskRun.queue,
    TaskRun.worker_id,
    TaskRun.started_at,
    TaskRun.state,
    TaskRun.error_type,
    TaskRun.reason,
    TaskRun.duration_ms,
)


def claim(
    connection: Connection, worker_id: str, wanted: Mapping[str, str], in_doubt: Collection[str] = (), lanes: Sequence[HeldLane] = ()
) -> dict[str, Claim]:
    """Claims what can be claimed of `wanted` (run id to the tenant its message names) and of the lanes' held runs, by run id.

    `in_doubt` are claims whose commit got no answer: they may already be this worker's, and asking again neither loses them
    nor counts them twice.
    """
    wanted = {**wanted, **{run_id: lane.tenant_id for lane in lanes for run_id in _held(connection, lane)}}
    if not wanted:
        return {}
    is_wanted = tuple_(TaskRun.id, TaskRun.tenant_id).in_(sorted(wanted.items()))
    claimable = and_(
        TaskRun.state.in_(sources_of(State.STARTED)),
        or_(TaskRun.eta.is_(None), TaskRun.eta <= db_now()),
        or_(TaskRun.waiting_for == WaitingFor.QUEUE, and_(TaskRun.waiting_for.in_([WaitingFor.ETA, WaitingFor.BROKER]), ~is_limited())),
        ~TaskRun.is_suspect,
        may_start(),
    )
    already_ours = and_(TaskRun.state == State.STARTED, TaskRun.worker_id == worker_id, TaskRun.id.in_(list(in_doubt)))
    return _claim(connection, worker_id, and_(is_wanted, or_(claimable, already_ours) if in_doubt else claimable))


def claim_suspect(connection: Connection, worker_id: str, queues: Collection[str]) -> Claim | None:
    """Claims the run that has waited longest to run alone in a process; the caller holds no other."""
    chosen = (
        select(TaskRun.id)
        .where(text("is_suspect"), TaskRun.state.in_(sorted(WAITING)), TaskRun.queue.in_(sorted(queues)), may_start())
        .where(or_(TaskRun.eta.is_(None), TaskRun.eta <= db_now()))
        .order_by(TaskRun.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte("chosen")
    )
    claimed = _claim(connection, worker_id, TaskRun.id.in_(select(chosen.c.id)))
    return next(iter(claimed.values()), None)


def own_runs(connection: Connection, worker_id: str) -> list[OwnRun]:
    """The runs that a worker has claimed: id, tenant, task, queue."""
    statement = select(TaskRun.id, TaskRun.tenant_id, TaskRun.task, TaskRun.queue)
    rows = connection.execute(statement.where(TaskRun.worker_id == worker_id, text("state = 'STARTED'")))
    return [(row.id, row.tenant_id, row.task, row.queue) for row in rows]


def may_start() -> ColumnElement[bool]:
    """Neither past its time nor paused."""
    return and_(or_(TaskRun.expires_at.is_(None), TaskRun.expires_at > db_now()), ~is_paused())


def _held(connection: Connection, lane: HeldLane) -> list[str]:
    statement = (
        select(TaskRun.id)
        .where(text(HELD), TaskRun.queue == lane.queue, TaskRun.tenant_id == lane.tenant_id, TaskRun.priority == lane.priority)
        .where(TaskRun.id > lane.after, ~TaskRun.is_suspect, may_start())
        .order_by(TaskRun.id)
        .limit(lane.wanted)
    )
    return list(connection.scalars(statement))


def _claim(connection: Connection, worker_id: str, condition: ColumnElement[bool]) -> dict[str, Claim]:
    fresh = case((TaskRun.state == State.STARTED, 0), else_=1)
    statement = (
        update(TaskRun)
        .where(condition)
        .values(
            state=State.STARTED,
            worker_id=worker_id,
            started_at=db_now(),
            publish_at=None,
            waiting_for=None,
            eta=None,
            attempt=TaskRun.attempt + fresh,
            fence=TaskRun.fence + fresh,
        )
        .returning(*CLAIMED)
    )
    claims = [Claim(*row) for row in connection.execute(statement)]
    waited_for = followed(connection, [claim.run_id for claim in claims]) if claims else set()
    return {claim.run_id: replace(claim, is_followed=claim.run_id in waited_for) for claim in claims}


def write_outcomes(connection: Connection, outcomes: Sequence[Outcome]) -> set[str]:
    """Writes outcomes and their attempts' history. Returns the ids that were written; the others' fence was old."""
    if not outcomes:
        return set()
    if connection.dialect.name == "postgresql":
        return postgres.write_outcomes(connection, outcomes)
    ended = {outcome.run_id: run for outcome in outcomes if (run := _write_outcome(connection, outcome)) is not None}
    note(connection, [event for run in ended.values() if (event := task_event(run)) is not None])
    return set(ended)


def _write_outcome(connection: Connection, outcome: Outcome) -> Any | None:
    later = None if outcome.run_again_in is None else db_now_plus(outcome.run_again_in)
    waiting_for = None if later is None else outcome.waiting_for or WaitingFor.ETA
    is_revoked = and_(TaskRun.ending.is_not(None), TaskRun.ending.in_([Ending.REVOKE, Ending.TERMINATE]))

    def unless_revoked(value: Any, otherwise: Any = None) -> Any:
        return case((is_revoked, otherwise), else_=value)

    row = connection.execute(
        update(TaskRun)
        .where(TaskRun.id == outcome.run_id, TaskRun.fence == outcome.fence, TaskRun.state == State.STARTED)
        .values(
            state=unless_revoked(outcome.state, State.REVOKED),
            result=outcome.result,
            error_type=outcome.error_type,
            error=outcome.error,
            reason=unless_revoked(outcome.reason, "revoked"),
            eta=unless_revoked(later),
            publish_at=unless_revoked(later),
            waiting_for=unless_revoked(waiting_for),
            attempt=TaskRun.attempt - outcome.gives_back,
            finished_at=db_now() if outcome.state in FINAL else unless_revoked(None, db_now()),
            dead_lettered_at=unless_revoked(db_now()) if outcome.state is State.FAILURE else None,
            duration_ms=outcome.duration_ms,
            is_suspect=outcome.is_suspect,
            ending=None,
        )
        .returning(*ENDED, (TaskRun.attempt + outcome.gives_back).label("attempt"))
    ).one_or_none()
    if row is not None:
        connection.execute(insert(TaskAttempt).values(**_attempt_row(outcome, row)))
    return row


def attempt_state(connection: Connection, run_id: str, fence: int) -> State | None:
    """How an attempt was recorded."""
    state = connection.scalar(select(TaskAttempt.state).where(TaskAttempt.run_id == run_id, TaskAttempt.fence == fence))
    return State(state) if state is not None else None


def _attempt_row(outcome: Outcome, run: Any) -> dict[str, Any]:
    return {
        "run_id": outcome.run_id,
        "fence": outcome.fence,
        "tenant_id": run.tenant_id,
        "attempt": run.attempt,
        "worker_id": run.worker_id,
        "state": run.state,
        "error_type": outcome.error_type,
        "error": outcome.error,
        "traceback": null() if outcome.traceback is None else outcome.traceback,
        "started_at": run.started_at,
        "finished_at": db_now(),
        "duration_ms": outcome.duration_ms,
    }
