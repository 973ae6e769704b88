"""What people do to runs: look, list, count, enqueue by name, revoke, replay. JSON routes, dashboard pages and commands parse,
call one function here, and render. Every function works in the caller's session and so in its tenant."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy.orm import Session

from brokers.queues import Priority, Queue, policy_of
from core.clock import now
from core.errors import InvalidInputError
from core.ids import is_id
from runs.enqueue import record
from runs.registry import get_task, task_names
from runs.secrets import erase_ended, fingerprint, require_kept
from runs.task import Call, Task
from storage.models import TaskAttempt, TaskRun, WorkerProcess
from storage.repositories.run_counts import Counts
from storage.repositories.runs import RunFilter, TaskRuns
from storage.repositories.workers import Workers
from storage.states import FINAL, LIVE, Ending, State

PRIORITIES = {"low": Priority.LOW, "normal": Priority.NORMAL, "high": Priority.HIGH}
MAX_PAGE = 200


@dataclass(frozen=True, slots=True)
class RunDetails:
    """One run with its attempts."""

    run: TaskRun
    attempts: list[TaskAttempt]


@dataclass(frozen=True, slots=True)
class RunPage:
    """A page of runs, the newest first, and the cursor of the next (None at the end)."""

    runs: list[TaskRun]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class QueueStats:
    """A queue as people look at it. `oldest_seconds` is the wait of its longest waiting due run.

    `counts` has PENDING, RETRY, STARTED and (as FAILURE) dead letters, of which those in `capped` are "so many at least"; `recent`
    has all states of those of the newest `looked_at` runs that are this queue's.
    """

    name: str
    priority: int
    counts: Mapping[str, int]
    oldest_seconds: float | None
    capped: frozenset[str] = frozenset()
    recent: Mapping[str, int] = field(default_factory=dict)
    looked_at: int = 0

    @property
    def waiting(self) -> int:
        """PENDING and RETRY."""
        return self.counts.get(State.PENDING, 0) + self.counts.get(State.RETRY, 0)

    @property
    def has_more(self) -> bool:
        """Whether more wait than were counted."""
        return State.PENDING in self.capped


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A living worker process and how many of its threads are busy with runs the identity may see."""

    worker: WorkerProcess
    busy_threads: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """An accepted request: the run, and whether it is a new one (False: an earlier request or a live duplicate holds its key)."""

    run_id: str
    queue: str
    state: State
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
    call = call_of(task, arguments, options or {}, idempotency_key)
    run_id, is_new = record(session, call, arguments)
    state = State.PENDING if is_new else State(TaskRuns(session).one(run_id).state)
    return Accepted(run_id, task.queue_name, state, is_new)


def get_task_status(session: Session, run_id: str) -> RunDetails:
    """Raises NotFoundError: an unknown id is never PENDING, and a foreign one is unknown."""
    runs = TaskRuns(session)
    run = runs.one(run_id)
    return RunDetails(run, runs.attempts(run_id))


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
    known = [str(queue) for queue in Queue]
    counts = Counts(session).by_queue(known)
    moment = now()
    return [
        QueueStats(
            name,
            policy_of(name).priority,
            counts.live.get(name, {}),
            _age(counts.oldest.get(name), moment),
            frozenset(state for queue, state in counts.capped if queue == name),
            counts.recent.get(name, {}),
            counts.looked_at,
        )
        for name in [*known, *sorted({*counts.live, *counts.recent} - set(known))]
    ]


def get_workers(session: Session) -> list[WorkerInfo]:
    """The living worker processes."""
    workers = Workers(session)
    busy = workers.busy_threads()
    return [WorkerInfo(worker, busy.get(worker.id, 0)) for worker in workers.alive()]


def revoke(session: Session, run_id: str, *, terminate: bool = False) -> TaskRun:
    """Ends a waiting run; a running one is asked to end (see `revoke_requested`), with `terminate` by force. Twice is fine.

    Raises NotFoundError, or ConflictError for a run that has ended otherwise.
    """
    run = TaskRuns(session).revoke(run_id, terminate=terminate)
    erase_ended(session, [run_id])
    return run


def revoke_requested(run: TaskRun) -> Ending | None:
    """How a running run was asked to end by somebody: it will be REVOKED. None: nobody asked, or it is over."""
    asked = run.state == State.STARTED and run.ending in {Ending.REVOKE, Ending.TERMINATE}
    return Ending(run.ending) if asked and run.ending is not None else None


def replay(session: Session, run_id: str) -> TaskRun:
    """Gives a dead letter or a revoked run a full set of attempts. Raises NotFoundError or ConflictError."""
    runs = TaskRuns(session)
    run = runs.one(run_id)
    if run.task in task_names() and run.state in {State.FAILURE, State.REVOKED}:
        require_kept(session, get_task(run.task), run)
    return runs.replay(run_id)


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


def call_of(task: Task[Any, Any], arguments: dict[str, Any], options: dict[str, Any], idempotency_key: str | None) -> Call[Any, Any]:
    expires = options.get("expires")
    priority = options.get("priority") or "normal"
    if priority not in PRIORITIES:
        raise InvalidInputError("The priority is one of low, normal, high.")
    request = orjson.dumps(
        [task.actor_name, fingerprint(task, arguments), {k: str(v) for k, v in options.items()}], option=orjson.OPT_SORT_KEYS
    )
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
