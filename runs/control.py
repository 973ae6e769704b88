"""What people do to runs: look, list, count, enqueue by name, revoke, replay. JSON routes, dashboard pages and commands parse,
call one function here, and render. Every function works in the caller's session and so in its tenant."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy.orm import Session

from brokers.queues import POLICIES, Priority, Queue
from core.clock import now
from core.errors import InvalidInputError
from core.ids import is_id
from runs.enqueue import record
from runs.registry import get_task
from runs.task import Call, Task
from storage.models import TaskAttempt, TaskRun, WorkerProcess
from storage.repositories.runs import RunFilter, TaskRuns
from storage.repositories.tenants import Tenants
from storage.repositories.workers import Workers
from storage.states import FINAL, LIVE, State

PRIORITIES = {"low": Priority.LOW, "normal": Priority.NORMAL, "high": Priority.HIGH}
MAX_PAGE = 200


@dataclass(frozen=True, slots=True)
class RunDetails:
    """One run with its attempts."""

    run: TaskRun
    attempts: list[TaskAttempt]
    tenant_name: str


@dataclass(frozen=True, slots=True)
class RunPage:
    """A page of runs, the newest first, and the cursor of the next (None at the end)."""

    runs: list[TaskRun]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class QueueStats:
    """A queue as people look at it. `oldest_seconds` is the wait of its longest waiting due run."""

    name: str
    priority: int
    counts: dict[str, int]
    oldest_seconds: float | None

    @property
    def waiting(self) -> int:
        """PENDING and RETRY."""
        return self.counts.get(State.PENDING, 0) + self.counts.get(State.RETRY, 0)


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A living worker process and how many of its threads are busy with runs the identity may see."""

    worker: WorkerProcess
    busy_threads: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """An accepted request: the run, and whether it is a new one (False: an earlier request or a live duplicate holds its key)."""

    run: TaskRun
    is_new: bool


def enqueue_by_name(
    session: Session,
    task_name: str,
    arguments: dict[str, Any],
    options: dict[str, Any] | None = None,
    *,
    idempotency_key: str | None = None,
) -> Accepted:
    """Records a run of a task by its name, as the API and the commands do.

    `options`: countdown (s), eta (datetime), expires (s or datetime), priority (low, normal, high), unique_key, tenant, user.
    Raises UnknownTaskError, InvalidInputError, NotFoundError or TenantError; nothing is recorded then.
    """
    task = get_task(task_name)
    assert isinstance(task, Task)
    call = _call_of(task, arguments, options or {}, idempotency_key)
    run_id, is_new = record(session, call, arguments)
    return Accepted(TaskRuns(session).one(run_id), is_new)


def get_task_status(session: Session, run_id: str) -> RunDetails:
    """Raises NotFoundError: an unknown id is never PENDING, and a foreign one is unknown."""
    runs = TaskRuns(session)
    run = runs.one(run_id)
    return RunDetails(run, runs.attempts(run_id), Tenants(session).names().get(run.tenant_id, ""))


def list_runs(session: Session, narrowed: RunFilter, *, cursor: str | None = None, limit: int = 50) -> RunPage:
    """Raises InvalidInputError for a cursor that is none of ours."""
    size = max(1, min(limit, MAX_PAGE))
    runs = TaskRuns(session).page(narrowed, before=parse_cursor(cursor), limit=size + 1)
    more = len(runs) > size
    return RunPage(runs[:size], cursor_after(runs[size - 1].created_at, runs[size - 1].id) if more else None)


def get_active_tasks(session: Session, limit: int = MAX_PAGE) -> list[TaskRun]:
    """Runs that a worker has claimed."""
    return TaskRuns(session).page(RunFilter(states=[State.STARTED]), limit=limit)


def get_queue_stats(session: Session) -> list[QueueStats]:
    """All queues in the order of their priority, with the numbers of runs the identity may see."""
    repository = TaskRuns(session)
    counts, oldest = repository.counts_by_queue(), repository.oldest_waiting()
    moment = now()
    stats = [
        QueueStats(str(queue), POLICIES[queue].priority, counts.pop(str(queue), {}), _age(oldest.get(str(queue)), moment))
        for queue in Queue
    ]
    return stats + [QueueStats(name, 5, numbers, _age(oldest.get(name), moment)) for name, numbers in sorted(counts.items())]


def count_by_state(session: Session) -> dict[str, int]:
    """State to number of runs, every state present."""
    totals = dict.fromkeys((str(state) for state in State), 0)
    for numbers in TaskRuns(session).counts_by_queue().values():
        for state, number in numbers.items():
            totals[state] = totals.get(state, 0) + number
    return totals


def get_workers(session: Session) -> list[WorkerInfo]:
    """The living worker processes."""
    workers = Workers(session)
    busy = workers.busy_threads()
    return [WorkerInfo(worker, busy.get(worker.id, 0)) for worker in workers.alive()]


def revoke(session: Session, run_id: str) -> TaskRun:
    """Ends a waiting run. Raises NotFoundError, or ConflictError for one that runs or has ended."""
    return TaskRuns(session).revoke(run_id)


def replay(session: Session, run_id: str) -> TaskRun:
    """Gives a dead letter or a revoked run a full set of attempts. Raises NotFoundError or ConflictError."""
    return TaskRuns(session).replay(run_id)


def is_ready(run: TaskRun) -> bool:
    """Whether the run has ended."""
    return State(run.state) in FINAL


def is_live(run: TaskRun) -> bool:
    """Whether the run waits or runs."""
    return State(run.state) in LIVE


def parse_states(text: str | Sequence[str] | None) -> list[State]:
    """States by name in any case, separated by commas. Raises InvalidInputError."""
    names = text.split(",") if isinstance(text, str) else list(text or ())
    try:
        return [State(name.strip().upper()) for name in names if name.strip()]
    except ValueError:
        raise InvalidInputError(f"A state is one of {', '.join(State)}.") from None


def _call_of(task: Task[Any, Any], arguments: dict[str, Any], options: dict[str, Any], idempotency_key: str | None) -> Call[Any, Any]:
    expires = options.get("expires")
    priority = options.get("priority") or "normal"
    if priority not in PRIORITIES:
        raise InvalidInputError("The priority is one of low, normal, high.")
    request = orjson.dumps([task.actor_name, arguments, {k: str(v) for k, v in options.items()}], option=orjson.OPT_SORT_KEYS)
    return Call(
        task,
        tenant=options.get("tenant"),
        user=options.get("user"),
        delay=options.get("countdown"),
        eta=options.get("eta"),
        expires_at=expires if isinstance(expires, datetime) else None,
        expires_in=expires if isinstance(expires, int | float) else None,
        priority=PRIORITIES[priority],
        unique_key=options.get("unique_key"),
        idempotency_key=idempotency_key,
        request_hash=hashlib.sha256(request).hexdigest() if idempotency_key else None,
    )


def cursor_after(moment: datetime, row_id: str) -> str:
    """The cursor of the page that follows a row, opaque to callers."""
    return base64.urlsafe_b64encode(f"{moment.isoformat()}|{row_id}".encode()).decode().rstrip("=")


def parse_cursor(cursor: str | None) -> tuple[datetime, str] | None:
    """The row that a cursor follows. Raises InvalidInputError for one that is none of ours."""
    if not cursor:
        return None
    try:
        moment, _, row_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition("|")
        parsed = datetime.fromisoformat(moment)
        is_ours = is_id(row_id) and parsed.tzinfo is not None and 1970 < parsed.year < 9999
    except ValueError:
        is_ours = False
    if not is_ours:
        raise InvalidInputError("The cursor is not one that a list returned; leave it out to start from the newest.")
    return parsed, row_id


def _age(since: datetime | None, moment: datetime) -> float | None:
    return max(0.0, (moment - since).total_seconds()) if since is not None else None
