"""The JSON shapes of runs. Envelope keys are camelCase; a task's arguments and result keep their snake_case."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from runs.control import RunDetails, is_ready, revoke_requested
from storage.models import TaskAttempt, TaskRun
from storage.states import State


class Shape(BaseModel):
    """A response. Times are ISO 8601 in UTC with a Z."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, from_attributes=True, frozen=True)


class RunError(Shape):
    """Why a run failed, waits for its retry, or was revoked."""

    type: str | None
    message: str | None
    reason: str | None


class Attempt(Shape):
    """One execution of a run."""

    attempt: int
    state: str
    worker: str | None
    started_at: datetime | None
    finished_at: datetime | None
    duration_ms: int | None
    error: RunError | None

    @classmethod
    def of(cls, row: TaskAttempt) -> Attempt:
        """As recorded."""
        error = RunError(type=row.error_type, message=row.error, reason=None) if row.error_type else None
        return cls(
            attempt=row.attempt,
            state=row.state,
            worker=row.worker_id,
            started_at=row.started_at,
            finished_at=row.finished_at,
            duration_ms=row.duration_ms,
            error=error,
        )


class RunSummary(Shape):
    """A run as it stands in a list. `revokeRequested`: it still runs and will be REVOKED; `ending` says how (revoke, terminate)."""

    task_id: str
    task: str
    queue: str
    state: str
    status: str
    waiting_for: str | None
    revoke_requested: bool
    ending: str | None
    ready: bool
    successful: bool
    result: Any
    info: Any
    error: RunError | None
    progress: Any
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    request_id: str | None


class RunRow(RunSummary):
    """A row of the list of runs."""

    tenant_id: str
    attempt: int
    max_attempts: int
    eta: datetime | None
    dead_lettered_at: datetime | None

    @classmethod
    def of(cls, run: TaskRun) -> RunRow:
        """As recorded."""
        more = {name: getattr(run, name) for name in ("tenant_id", "attempt", "max_attempts", "eta", "dead_lettered_at")}
        return cls(**_summary(run), **more)


class RunView(RunSummary):
    """One run with its attempts."""

    attempts: list[Attempt]

    @classmethod
    def of(cls, details: RunDetails) -> RunView:
        """As recorded."""
        return cls(**_summary(details.run), attempts=[Attempt.of(row) for row in details.attempts])


class RunPageView(Shape):
    """A page of runs, newest first."""

    items: list[RunRow]
    next_cursor: str | None


class AcceptedRun(Shape):
    """The answer to a request that was accepted."""

    task_id: str
    status: str
    state: str
    queue: str
    href: str

    @classmethod
    def of(cls, run: TaskRun) -> AcceptedRun:
        """As recorded."""
        return cls.at(run.id, run.queue, run.state)

    @classmethod
    def at(cls, run_id: str, queue: str, state: str) -> AcceptedRun:
        """PENDING for a new run; an earlier request's run says how far it has come."""
        return cls(task_id=run_id, status=state.lower(), state=state, queue=queue, href=href_of(run_id))


def href_of(run_id: str) -> str:
    """Where a run can be looked at."""
    return f"/api/tasks/{run_id}"


def _summary(run: TaskRun) -> dict[str, Any]:
    error = RunError(type=run.error_type, message=run.error, reason=run.reason) if run.error_type or run.reason else None
    return {
        "task_id": run.id,
        "task": run.task,
        "queue": run.queue,
        "state": run.state,
        "status": run.state.lower(),
        "waiting_for": run.waiting_for,
        "revoke_requested": revoke_requested(run) is not None,
        "ending": run.ending if run.state == State.STARTED else None,
        "ready": is_ready(run),
        "successful": run.state == State.SUCCESS,
        "result": run.result,
        "info": _info(run),
        "error": error,
        "progress": run.progress,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "request_id": run.request_id,
    }


def _info(run: TaskRun) -> Any:
    """What callers of the old stack read: the result, the error's text, or the progress so far."""
    if run.state == State.SUCCESS:
        return run.result
    return run.error if run.error is not None else run.progress
