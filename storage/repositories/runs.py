"""Task runs as callers and people see them: recorded, looked up, listed, counted, revoked, replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, String, case, cast, false, func, or_, select, update
from sqlalchemy import text as sql_text
from sqlalchemy.exc import IntegrityError

from core.errors import ConflictError, InvalidInputError
from core.ids import is_id, new_id
from storage import followers
from storage.accept import PLAIN, Lane, accept_many, accept_statement, look_at_lane
from storage.expressions import db_now
from storage.models import TaskAttempt, TaskRun
from storage.models.runs import EXCEPTIONS
from storage.outcomes import NewRow
from storage.repositories.base import Repository
from storage.states import FINAL, LIVE, WAITING, Ending, State, WaitingFor, sources_of
from storage.webhook_events import note_revoked

COUNT_LIMIT = 10_000
"""Counts above this are not exact: nobody waits for `count(*)` over millions of rows."""
MOST_LOOKS = 5


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to be recorded. `delay` (seconds) or `eta` says when it is due, neither: now."""

    tenant_id: str
    user_id: str | None
    task: str
    queue: str
    args: dict[str, Any]
    max_attempts: int
    priority: int = 1
    delay: float | None = None
    eta: datetime | None = None
    expires_in: float | None = None
    expires_at: datetime | None = None
    unique_key: str | None = None
    idempotency_key: str | None = None
    request_hash: str | None = None
    request_id: str | None = None
    soft_limit: float | None = None
    hard_limit: float | None = None
    mail_host: str | None = None
    after_run_id: str | None = None
    after_group_id: str | None = None
    group_id: str | None = None
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded run, or the one that holds its key (`is_new` False). `is_published`: its message is to be sent now. `is_limited`: it
    waits to be admitted.

    `crowd` counts the messages of its tenant that are before it in its queue, up to CROWD.
    """

    run_id: str
    is_new: bool
    is_published: bool = False
    crowd: int = 0
    is_limited: bool = False
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class RunFilter:
    """What a list is narrowed to. `text` matches an id's beginning or the task's name."""

    states: Sequence[State] = ()
    queue: str | None = None
    task: str | None = None
    tenant_id: str | None = None
    text: str | None = None
    dead_letters_only: bool = False
    waiting_for: Sequence[WaitingFor] = ()
    reason: str | None = None
    ids: Sequence[str] | None = None
    group_id: str | None = None


def insert_run(connection: Connection, run: NewRun, grace: float, window: int) -> Recorded | None:
    """Records a run for an identity whose it is. None if its id or one of its keys is taken."""
    run_id = run.run_id or new_id()
    row = {
        **{name: getattr(run, name) for name in PLAIN if name != "id"},
        "id": run_id,
        "tenant_name": run.tenant_id,
        "at": run.eta,
        "delay": run.delay or None,
        "grace": grace,
        "window": window,
        "ends_at": run.expires_at,
        "ends_in": run.expires_in,
    }
    inserted = connection.execute(accept_statement(connection.dialect.name), row).one_or_none()
    if inserted is None:
        return None
    return Recorded(run_id, is_new=True, is_published=bool(inserted[1]), crowd=inserted[2], is_limited=inserted[0] == WaitingFor.LIMIT)


def as_revoked(reason: str) -> dict[str, Any]:
    """The columns of a waiting run that is ended."""
    return {"state": State.REVOKED, "reason": reason, "finished_at": db_now(), "publish_at": None, "waiting_for": None, "eta": None}


def mark_of(*, terminate: bool) -> Any:
    """How a STARTED run is to end from now on. Past its hard limit its process ends anyway: then it is not tried again either."""
    stronger = TaskRun.ending.in_([Ending.TERMINATE, Ending.HARD_LIMIT])
    return Ending.TERMINATE if terminate else case((stronger, Ending.TERMINATE), else_=Ending.REVOKE)


def as_replayed() -> dict[str, Any]:
    """The columns of an ended run that starts over."""
    gone = ("reason", "error", "error_type", "finished_at", "dead_lettered_at", "expires_at", "duration_ms")
    return {"state": State.PENDING, "waiting_for": WaitingFor.BROKER, "publish_at": db_now(), "attempt": 0} | dict.fromkeys(gone)


class TaskRuns(Repository):
    """The runs the identity may see."""

    def insert(self, run: NewRun, grace: float, window: int) -> Recorded:
        """Records a run, or finds the live run (or earlier request) that holds its key: looked for only if there is one.

        Raises InvalidInputError when the idempotency key was used for something else.
        """
        self.require_tenant(run.tenant_id)
        return insert_run(self.session.connection(), run, grace, window) or self._holder_of_key(run, grace, window)

    def insert_many(self, run: NewRun, rows: Sequence[NewRow], grace: float, window: int) -> list[Recorded]:
        """Records due runs that differ in what a NewRow has (of `run` the rest is used), in the order given."""
        connection = self.session.connection()
        names = ("queue", "task", "tenant_id", "mail_host")
        if run.after_run_id is not None:
            lane = Lane(WaitingFor.RUN, room=0, crowd=0)
        else:
            lane = look_at_lane(connection, {name: getattr(run, name) for name in names}, window)
        common = {name: getattr(run, name) for name in PLAIN if name not in {"id", "args", "request_id"}}
        accept_many(connection, common, rows, lane, grace)
        is_limited = lane.waiting_for is WaitingFor.LIMIT
        return [
            Recorded(row.run_id, True, place < lane.room, lane.crowd + place, is_limited, row.request_id) for place, row in enumerate(rows)
        ]

    def _holder_of_key(self, run: NewRun, grace: float, window: int) -> Recorded:
        if (earlier := self.by_idempotency_key(run.tenant_id, run.idempotency_key, run.request_hash)) is not None:
            return Recorded(earlier, is_new=False)
        if run.idempotency_key is None and run.unique_key is None:
            return Recorded(run.run_id, is_new=False)  # the id itself is taken: it was recorded before
        holder = self.session.scalar(
            select(TaskRun.id).where(
                TaskRun.tenant_id == run.tenant_id,
                TaskRun.task == run.task,
                TaskRun.unique_key == run.unique_key,
                TaskRun.state.in_(sorted(LIVE)),
            )
        )
        if holder is not None:
            return Recorded(holder, is_new=False)
        return self.insert(replace(run, run_id=new_id()), grace, window)  # the holder ended in between

    def by_idempotency_key(self, tenant_id: str, key: str | None, request_hash: str | None) -> str | None:
        """The run of an earlier request with the key. Raises InvalidInputError when that was a different one."""
        if key is None:
            return None
        self.require_tenant(tenant_id)
        row = self.session.execute(
            select(TaskRun.id, TaskRun.request_hash).where(TaskRun.tenant_id == tenant_id, TaskRun.idempotency_key == key)
        ).one_or_none()
        if row is None:
            return None
        if row.request_hash != request_hash:
            raise InvalidInputError("This Idempotency-Key was used for a different request; use a new key.")
        return str(row.id)

    def one(self, run_id: str) -> TaskRun:
        """Raises NotFoundError: an unknown id is never PENDING."""
        return self.get(TaskRun, run_id, "task run")

    def find(self, run_id: str) -> TaskRun | None:
        """None for an unknown id."""
        return self.session.scalar(self.scoped(TaskRun).where(TaskRun.id == run_id))

    def attempts(self, run_id: str) -> list[TaskAttempt]:
        """The run's attempts, the first first."""
        return list(self.session.scalars(self.scoped(TaskAttempt).where(TaskAttempt.run_id == run_id).order_by(TaskAttempt.fence)))

    def page(self, narrowed: RunFilter, *, before: tuple[datetime, str] | None = None, limit: int = 50) -> list[TaskRun]:
        """The newest first; `before` is the last row of the page before (keyset, so that deep pages cost the same)."""
        statement = self._narrowed(narrowed).order_by(TaskRun.id.desc()).limit(limit)  # ids begin with their time
        if before is not None:
            statement = statement.where(TaskRun.id < before[1])
        if narrowed.dead_letters_only or narrowed.group_id is not None:
            # As text ids sort the same, but not by the primary key: that would go through all history for a few dead letters, or members.
            some = statement.with_only_columns(TaskRun.id).order_by(None).order_by(cast(TaskRun.id, String).desc()).subquery()
            statement = select(TaskRun).where(TaskRun.id.in_(select(some.c.id))).order_by(TaskRun.id.desc())
        return list(self.session.scalars(statement))

    def count(self, narrowed: RunFilter) -> int:
        """How many, up to COUNT_LIMIT + 1."""
        some = self._narrowed(narrowed).with_only_columns(TaskRun.id).limit(COUNT_LIMIT + 1).subquery()
        return self.session.scalar(select(func.count()).select_from(some)) or 0

    def revoke(self, run_id: str, *, terminate: bool = False, reason: str = "revoked") -> TaskRun:
        """Ends a waiting run; marks a running one, which ends as REVOKED whatever its actor does, `terminate` by force.

        A mark is never lowered. Raises NotFoundError, or ConflictError for a run that has ended otherwise.
        """
        run = self.one(run_id)
        for _ in range(MOST_LOOKS):  # a claim or a hand-back may come between the statements
            if self._end_waiting(run_id, reason) or self._mark(run_id, terminate=terminate):
                self.session.refresh(run)
                return run
            self.session.refresh(run)
            if run.state in FINAL:
                break
        if run.state != State.REVOKED:
            raise ConflictError(f"The run is {run.state}; only a run that waits or runs can be revoked.")
        return run

    def _end_waiting(self, run_id: str, reason: str) -> bool:
        waiting = update(TaskRun).where(self.owns(TaskRun), TaskRun.id == run_id, TaskRun.state.in_(sorted(WAITING)))
        is_ended = self.session.execute(waiting.values(**as_revoked(reason)).returning(TaskRun.id)).scalar() is not None
        if is_ended:
            note_revoked(self.session.connection(), [run_id])
        return is_ended

    def _mark(self, run_id: str, *, terminate: bool) -> bool:
        running = update(TaskRun).where(self.owns(TaskRun), TaskRun.id == run_id, TaskRun.state == State.STARTED)
        return self.session.execute(running.values(ending=mark_of(terminate=terminate)).returning(TaskRun.id)).scalar() is not None

    def replay(self, run_id: str) -> TaskRun:
        """Gives a dead letter or a revoked run a full set of attempts, and lets those wait for it again that were revoked because of it.

        Raises NotFoundError, or ConflictError for any other, and for one whose unique key another live run holds.
        """
        run = self.one(run_id)
        follows = run.after_run_id is not None or run.after_group_id is not None
        if follows and (before := followers.failed_predecessor(self.session.connection(), run_id)) is not None:
            raise ConflictError(f"The run before this one is {before}; replay that one, and this one waits for it again.")
        columns = as_replayed() | (followers.as_replayed_follower() if follows else {})
        ended = update(TaskRun).where(
            self.owns(TaskRun), TaskRun.id == run_id, TaskRun.state.in_([state for state in sources_of(State.PENDING) if state in FINAL])
        )
        try:
            with self.session.begin_nested():
                replayed = self.session.execute(ended.values(**columns).returning(TaskRun.id)).scalar()
                if replayed is not None:
                    followers.take_back(self.session.connection(), run_id)
        except IntegrityError:
            raise ConflictError("Another run with this run's unique key waits or runs; only one of them may.") from None
        self.session.refresh(run)
        if replayed is None:
            raise ConflictError(f"The run is {run.state}; only a FAILURE or REVOKED run can be replayed.")
        return run

    def replay_moved(self, run_id: str, tenant_id: str, attempt: int) -> bool:
        """Replays a run whose dead letter was moved back to its queue; only if it is a dead letter of that attempt.

        A message carries the attempts spent when it was published, a dead letter of a lost run those spent in all.
        """
        dead = self.session.scalar(
            select(TaskRun.id).where(
                TaskRun.id == run_id,
                TaskRun.tenant_id == tenant_id,
                TaskRun.state == State.FAILURE,
                TaskRun.dead_lettered_at.is_not(None),
                TaskRun.attempt.in_([attempt, attempt + 1]),
            )
        )
        if dead is not None:
            self.replay(run_id)
        return dead is not None

    def set_progress(self, run_id: str, progress: dict[str, Any]) -> None:
        """What a long run has done so far."""
        self.session.execute(update(TaskRun).where(self.owns(TaskRun), TaskRun.id == run_id).values(progress=progress))

    def _narrowed(self, narrowed: RunFilter) -> Select[TaskRun]:
        conditions: list[ColumnElement[bool]] = []
        if narrowed.states:
            conditions.append(TaskRun.state.in_(list(narrowed.states)))
            conditions += _index_of(narrowed.states)
        if narrowed.dead_letters_only:
            conditions.append(TaskRun.dead_lettered_at.is_not(None))
        if narrowed.waiting_for:
            conditions.append(TaskRun.waiting_for.in_(list(narrowed.waiting_for)))
        if narrowed.ids is not None:
            conditions.append(TaskRun.id.in_([run_id for run_id in narrowed.ids if is_id(run_id)]))
        if narrowed.group_id is not None:
            conditions.append(TaskRun.group_id == narrowed.group_id if is_id(narrowed.group_id) else false())
        for name in ("queue", "task", "tenant_id", "reason"):
            if (value := getattr(narrowed, name)) is not None:
                conditions.append(getattr(TaskRun, name) == value)
        if narrowed.text:
            conditions.append(self._matches(narrowed.text))
        return self.scoped(TaskRun).where(*conditions)

    def _matches(self, text: str) -> ColumnElement[bool]:
        escaped = text.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        return or_(cast(TaskRun.id, String).like(f"{escaped}%", escape="\\"), TaskRun.task.like(f"%{escaped}%", escape="\\"))


def _index_of(states: Sequence[State]) -> list[ColumnElement[bool]]:
    """The condition of the partial index that has these states, as it is written there: SQLite finds it by nothing else."""
    if set(states) <= {State.RETRY, State.FAILURE, State.REVOKED}:
        return [sql_text(EXCEPTIONS)]  # type: ignore[list-item]
    return [sql_text("state = 'STARTED'")] if set(states) == {State.STARTED} else []  # type: ignore[list-item]
