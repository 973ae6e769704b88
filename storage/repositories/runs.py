"""Task runs as callers and people see them: recorded, looked up, listed, counted, revoked, replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, String, cast, func, or_, select, update

from core.errors import ConflictError, InvalidInputError
from core.ids import new_id
from storage.accept import PLAIN, accept_many, accept_statement, look_at_lane
from storage.expressions import db_now
from storage.models import TaskAttempt, TaskRun
from storage.repositories.base import Repository
from storage.states import FINAL, LIVE, WAITING, State, WaitingFor, sources_of

COUNT_LIMIT = 10_000
"""Counts above this are not exact: nobody waits for `count(*)` over millions of rows."""


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
    """A recorded run, or the one that holds its key (`is_new` False). `is_published`: its message is to be sent now.

    `crowd` counts the messages of its tenant that are before it in its queue, up to CROWD.
    """

    run_id: str
    is_new: bool
    is_published: bool = False
    crowd: int = 0


@dataclass(frozen=True, slots=True)
class RunFilter:
    """What a list is narrowed to. `text` matches an id's beginning or the task's name."""

    states: Sequence[State] = ()
    queue: str | None = None
    task: str | None = None
    tenant_id: str | None = None
    text: str | None = None
    dead_letters_only: bool = False


class TaskRuns(Repository):
    """The runs the identity may see."""

    def insert(self, run: NewRun, grace: float, window: int) -> Recorded:
        """Records a run, or finds the live run (or earlier request) that holds its key.

        Raises ConflictError when the idempotency key was used for something else.
        """
        if run.idempotency_key is not None and (earlier := self._by_idempotency_key(run)) is not None:
            return Recorded(earlier, is_new=False)
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
        inserted = self.session.execute(accept_statement(self.session.get_bind().dialect.name), row).one_or_none()
        if inserted is None:
            return self._holder_of_key(run, grace, window)
        return Recorded(run_id, is_new=True, is_published=bool(inserted[1]), crowd=inserted[2])

    def insert_many(self, run: NewRun, arguments: Sequence[dict[str, Any]], grace: float, window: int) -> list[Recorded]:
        """Records due runs that differ in their arguments only (those of `run` are not used), in the order given."""
        connection = self.session.connection()
        names = ("queue", "task", "tenant_id", "mail_host")
        lane = look_at_lane(connection, {name: getattr(run, name) for name in names}, window)
        rows = [(new_id(), args) for args in arguments]
        common = {name: getattr(run, name) for name in PLAIN if name not in {"id", "args"}}
        accept_many(connection, common, rows, lane, grace)
        return [Recorded(run_id, True, place < lane.room, lane.crowd + place) for place, (run_id, _) in enumerate(rows)]

    def _holder_of_key(self, run: NewRun, grace: float, window: int) -> Recorded:
        if run.idempotency_key is not None and (earlier := self._by_idempotency_key(run)) is not None:
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

    def _by_idempotency_key(self, run: NewRun) -> str | None:
        row = self.session.execute(
            select(TaskRun.id, TaskRun.request_hash).where(
                TaskRun.tenant_id == run.tenant_id, TaskRun.idempotency_key == run.idempotency_key
            )
        ).one_or_none()
        if row is None:
            return None
        if row.request_hash != run.request_hash:
            raise InvalidInputError("This Idempotency-Key was used for a different request; use a new key.")
        return str(row.id)

    def one(self, run_id: str) -> TaskRun:
        """Raises NotFoundError: an unknown id is never PENDING."""
        return self.get(TaskRun, run_id, "task run")

    def attempts(self, run_id: str) -> list[TaskAttempt]:
        """The run's attempts, the first first."""
        return list(self.session.scalars(self.scoped(TaskAttempt).where(TaskAttempt.run_id == run_id).order_by(TaskAttempt.fence)))

    def page(self, narrowed: RunFilter, *, before: tuple[datetime, str] | None = None, limit: int = 50) -> list[TaskRun]:
        """The newest first; `before` is the last row of the page before (keyset, so that deep pages cost the same)."""
        statement = self._narrowed(narrowed).order_by(TaskRun.id.desc()).limit(limit)  # ids begin with their time
        if before is not None:
            statement = statement.where(TaskRun.id < before[1])
        return list(self.session.scalars(statement))

    def count(self, narrowed: RunFilter) -> int:
        """How many, up to COUNT_LIMIT + 1."""
        some = self._narrowed(narrowed).with_only_columns(TaskRun.id).limit(COUNT_LIMIT + 1).subquery()
        return self.session.scalar(select(func.count()).select_from(some)) or 0

    def counts_by_queue(self) -> dict[str, dict[str, int]]:
        """Queue to state to number of runs."""
        rows = self.session.execute(
            select(TaskRun.queue, TaskRun.state, func.count()).where(self.owns(TaskRun)).group_by(TaskRun.queue, TaskRun.state)
        )
        counts: dict[str, dict[str, int]] = {}
        for queue, state, number in rows:
            counts.setdefault(queue, {})[state] = number
        return counts

    def oldest_waiting(self) -> dict[str, datetime]:
        """Queue to the creation time of its longest waiting run that is due."""
        rows = self.session.execute(
            select(TaskRun.queue, func.min(TaskRun.created_at))
            .where(self.owns(TaskRun), TaskRun.state == State.PENDING, TaskRun.waiting_for == WaitingFor.QUEUE)
            .group_by(TaskRun.queue)
        )
        return {queue: moment for queue, moment in rows if moment is not None}

    def revoke(self, run_id: str, reason: str = "revoked") -> TaskRun:
        """Ends a waiting run. Raises NotFoundError, or ConflictError for one that runs or has ended otherwise."""
        run = self.one(run_id)
        if run.state == State.REVOKED:
            return run
        revoked = self.session.execute(
            update(TaskRun)
            .where(self.owns(TaskRun), TaskRun.id == run_id, TaskRun.state.in_(sorted(WAITING)))
            .values(state=State.REVOKED, reason=reason, finished_at=db_now(), publish_at=None, waiting_for=None, eta=None)
            .returning(TaskRun.id)
        ).scalar()
        self.session.refresh(run)
        if revoked is None and run.state != State.REVOKED:
            raise ConflictError(f"The run is {run.state}; only a waiting run can be revoked.")
        return run

    def replay(self, run_id: str) -> TaskRun:
        """Gives a dead letter or a revoked run a full set of attempts. Raises NotFoundError or ConflictError."""
        run = self.one(run_id)
        replayed = self.session.execute(
            update(TaskRun)
            .where(
                self.owns(TaskRun),
                TaskRun.id == run_id,
                TaskRun.state.in_([state for state in sources_of(State.PENDING) if state in FINAL]),
            )
            .values(
                state=State.PENDING,
                waiting_for=WaitingFor.BROKER,
                publish_at=db_now(),
                attempt=0,
                reason=None,
                error=None,
                error_type=None,
                finished_at=None,
                dead_lettered_at=None,
                expires_at=None,
                duration_ms=None,
            )
            .returning(TaskRun.id)
        ).scalar()
        if replayed is None:
            raise ConflictError(f"The run is {run.state}; only a FAILURE or REVOKED run can be replayed.")
        self.session.refresh(run)
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
        if narrowed.dead_letters_only:
            conditions.append(TaskRun.dead_lettered_at.is_not(None))
        for column, value in ((TaskRun.queue, narrowed.queue), (TaskRun.task, narrowed.task), (TaskRun.tenant_id, narrowed.tenant_id)):
            if value is not None:
                conditions.append(column == value)
        if narrowed.text:
            conditions.append(self._matches(narrowed.text))
        return self.scoped(TaskRun).where(*conditions)

    def _matches(self, text: str) -> ColumnElement[bool]:
        escaped = text.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        return or_(cast(TaskRun.id, String).like(f"{escaped}%", escape="\\"), TaskRun.task.like(f"%{escaped}%", escape="\\"))
