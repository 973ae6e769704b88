"""The statements of the recorder: claims and outcomes, many to a transaction.

A run starts because its claim succeeded. A claim is one conditional UPDATE that counts the attempt and raises the fence; an
outcome is written only for the fence it was claimed with, and only once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, and_, case, insert, null, or_, tuple_, update

from storage import postgres
from storage.expressions import db_now, db_now_plus
from storage.models import TaskAttempt, TaskRun
from storage.outcomes import Claim, Outcome
from storage.states import FINAL, State, WaitingFor, sources_of

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
)


def claim(connection: Connection, worker_id: str, wanted: Mapping[str, str], in_doubt: Collection[str] = ()) -> dict[str, Claim]:
    """Claims what can be claimed of `wanted` (run id to the tenant its message names), and returns it by run id.

    `in_doubt` are claims whose commit got no answer: they may already be this worker's, and asking again neither loses them
    nor counts them twice.
    """
    if not wanted:
        return {}
    claimable = and_(
        TaskRun.state.in_(sources_of(State.STARTED)),
        or_(TaskRun.eta.is_(None), TaskRun.eta <= db_now()),
        or_(TaskRun.expires_at.is_(None), TaskRun.expires_at > db_now()),
    )
    already_ours = and_(TaskRun.state == State.STARTED, TaskRun.worker_id == worker_id, TaskRun.id.in_(list(in_doubt)))
    fresh = case((TaskRun.state == State.STARTED, 0), else_=1)
    statement = (
        update(TaskRun)
        .where(tuple_(TaskRun.id, TaskRun.tenant_id).in_(sorted(wanted.items())), or_(claimable, already_ours) if in_doubt else claimable)
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
    return {row.id: Claim(*row) for row in connection.execute(statement)}


def write_outcomes(connection: Connection, outcomes: Sequence[Outcome]) -> set[str]:
    """Writes outcomes and their attempts' history. Returns the ids that were written; the others' fence was old."""
    if not outcomes:
        return set()
    if connection.dialect.name == "postgresql":
        return postgres.write_outcomes(connection, outcomes)
    return {outcome.run_id for outcome in outcomes if _write_outcome(connection, outcome)}


def _write_outcome(connection: Connection, outcome: Outcome) -> bool:
    is_final = outcome.state in FINAL
    later = None if outcome.run_again_in is None else db_now_plus(outcome.run_again_in)
    row = connection.execute(
        update(TaskRun)
        .where(TaskRun.id == outcome.run_id, TaskRun.fence == outcome.fence, TaskRun.state == State.STARTED)
        .values(
            state=outcome.state,
            result=outcome.result,
            error_type=outcome.error_type,
            error=outcome.error,
            reason=outcome.reason,
            eta=later,
            publish_at=later,
            waiting_for=outcome.waiting_for or (WaitingFor.ETA if later is not None else None),
            attempt=TaskRun.attempt - (0 if outcome.spends_attempt else 1),
            finished_at=db_now() if is_final else None,
            dead_lettered_at=db_now() if outcome.state is State.FAILURE else None,
            duration_ms=outcome.duration_ms,
        )
        .returning(TaskRun.tenant_id, TaskRun.attempt, TaskRun.worker_id, TaskRun.started_at)
    ).one_or_none()
    if row is None:
        return False
    connection.execute(insert(TaskAttempt).values(**_attempt_row(outcome, row)))
    return True


def _attempt_row(outcome: Outcome, run: Any) -> dict[str, Any]:
    return {
        "run_id": outcome.run_id,
        "fence": outcome.fence,
        "tenant_id": run.tenant_id,
        "attempt": run.attempt + (0 if outcome.spends_attempt else 1),
        "worker_id": run.worker_id,
        "state": outcome.state,
        "error_type": outcome.error_type,
        "error": outcome.error,
        "traceback": null() if outcome.traceback is None else outcome.traceback,
        "started_at": run.started_at,
        "finished_at": db_now(),
        "duration_ms": outcome.duration_ms,
    }
