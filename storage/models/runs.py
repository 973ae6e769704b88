"""The record of runs: what was asked for, every attempt at it, and the workers that hold claims."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String, Text, UniqueConstraint, false, text
from sqlalchemy.orm import Mapped, mapped_column

from storage.expressions import db_now
from storage.models.base import Base
from storage.types import Id, Json, UtcDateTime

PUBLISHED = "waiting_for = 'queue' AND publish_at IS NOT NULL"
"""On a broker, or on its way there."""
HELD = "waiting_for = 'queue' AND publish_at IS NULL"
"""Due, and behind its tenant's window: without a message, to be claimed straight from the record."""
LIMITED = "waiting_for = 'limit' AND mail_host IS NULL"
"""Due, and waiting until its tenant's limit lets it on."""
LIMITED_BY_HOST = "waiting_for = 'limit' AND mail_host IS NOT NULL"
"""The same; its mail host's limit has a say too."""
PAUSED = "waiting_for = 'pause'"
"""Its queue, task or tenant is paused, or was until just now."""
QUEUED_BY_HOST = "waiting_for = 'queue' AND mail_host IS NOT NULL"
"""Published or held, and under way over a mail host."""

EXCEPTIONS = "state IN ('RETRY', 'FAILURE', 'REVOKED')"
"""What people look for by its state: neither the mass of what waits or succeeded nor the few that run."""
DEAD = "dead_lettered_at IS NOT NULL"
HAS_RESULT = "finished_at IS NOT NULL AND result IS NOT NULL"
"""Ended, and its result is still there."""
IS_HISTORY = "finished_at IS NOT NULL AND result IS NULL AND dead_lettered_at IS NULL"
"""Ended, and nothing is left to be done about it: one index entry for each run that has ended, here or among the results."""


def _partial(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    return Index(name, *columns, unique=unique, postgresql_where=text(where), sqlite_where=text(where))


class TaskRun(Base):
    """One enqueued call and its history.

    `publish_at` is when the relay should look at the run again: at its `eta`, or when its message may have been lost. It is
    NULL while the run is STARTED or final, and while it is held, limited or paused. `fence` counts claims and is never lowered;
    `attempt` counts attempts spent and is given back by a snooze or a hand-back.
    """

    __tablename__ = "task_runs"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),  # also the order in which a tenant's runs are listed: ids begin with their time
        _partial(
            "uq_task_runs_live_unique_key",
            "tenant_id",
            "task",
            "unique_key",
            where="unique_key IS NOT NULL AND state IN ('PENDING', 'STARTED', 'RETRY')",
            unique=True,
        ),
        _partial("uq_task_runs_idempotency_key", "tenant_id", "idempotency_key", where="idempotency_key IS NOT NULL", unique=True),
        _partial("ix_task_runs_publish_at", "publish_at", where="publish_at IS NOT NULL"),
        _partial("ix_task_runs_published", "queue", "tenant_id", where=PUBLISHED),
        _partial("ix_task_runs_held", "queue", "tenant_id", "priority", "id", where=HELD),
        _partial("ix_task_runs_limited", "tenant_id", "queue", "priority", "id", where=LIMITED),
        _partial("ix_task_runs_limited_by_host", "tenant_id", "mail_host", "queue", "priority", "id", where=LIMITED_BY_HOST),
        _partial("ix_task_runs_queued_by_host", "mail_host", where=QUEUED_BY_HOST),
        _partial("ix_task_runs_paused", "queue", "task", "tenant_id", where=PAUSED),
        _partial("ix_task_runs_followers", "after_run_id", "after_group_id", where="waiting_for = 'run'"),
        _partial("ix_task_runs_after_run_id", "after_run_id", where="after_run_id IS NOT NULL"),
        _partial("ix_task_runs_after_group_id", "after_group_id", where="after_group_id IS NOT NULL"),
        _partial("ix_task_runs_results", "finished_at", "id", where=HAS_RESULT),
        _partial("ix_task_runs_history", "finished_at", "id", where=IS_HISTORY),
        _partial("ix_task_runs_group_id", "group_id", "state", where="group_id IS NOT NULL"),
        _partial("ix_task_runs_expires_at", "expires_at", where="expires_at IS NOT NULL AND state IN ('PENDING', 'RETRY')"),
        _partial("ix_task_runs_started", "worker_id", where="state = 'STARTED'"),
        _partial("ix_task_runs_suspects", "id", where="is_suspect"),
        _partial("ix_task_runs_dead_letters", "queue", "tenant_id", "id", where=DEAD),
        _partial("ix_task_runs_exceptions", "queue", "state", "tenant_id", where=EXCEPTIONS),
        {"postgresql_with": {"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.05}},
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    user_id: Mapped[str | None] = mapped_column(Id)
    task: Mapped[str] = mapped_column(String(200))
    queue: Mapped[str] = mapped_column(String(100))
    priority: Mapped[int] = mapped_column(default=1)
    args: Mapped[dict[str, Any]] = mapped_column(Json)

    state: Mapped[str] = mapped_column(String(10))
    waiting_for: Mapped[str | None] = mapped_column(String(10))
    attempt: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int]
    fence: Mapped[int] = mapped_column(BigInteger, default=0)
    worker_id: Mapped[str | None] = mapped_column(String(100))
    soft_limit: Mapped[float | None]
    hard_limit: Mapped[float | None]
    ending: Mapped[str | None] = mapped_column(String(10))  # an Ending: how a STARTED run is to end, whatever its actor does
    is_suspect: Mapped[bool] = mapped_column(default=False, server_default=false())  # lost in company: runs alone in a process next
    mail_host: Mapped[str | None] = mapped_column(String(255))  # whose limits it is under, beside its tenant's
    after_run_id: Mapped[str | None] = mapped_column(Id)  # starts when that run has succeeded
    after_group_id: Mapped[str | None] = mapped_column(Id)  # starts when every run of that group has ended
    group_id: Mapped[str | None] = mapped_column(Id)  # the group it is a member of
    delay: Mapped[float | None]  # of one that follows: seconds from its release until it is due

    unique_key: Mapped[str | None] = mapped_column(String(200))
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    request_hash: Mapped[str | None] = mapped_column(String(64))
    request_id: Mapped[str | None] = mapped_column(String(128))

    result: Mapped[Any | None] = mapped_column(Json)
    error_type: Mapped[str | None] = mapped_column(String(200))
    error: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(String(50))
    progress: Mapped[dict[str, Any] | None] = mapped_column(Json)

    eta: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    publish_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    dead_lettered_at: Mapped[datetime | None]
    duration_ms: Mapped[int | None]


class RunSecret(Base):
    """The secret arguments of one run, encrypted together; `task_runs.args` has a mask in their place. Erased once no attempt can need
    them any more.

    No foreign key to the run: whoever deletes runs need not know of it, and what is left alone is erased with the next sweep.
    """

    __tablename__ = "run_secrets"

    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    run_id: Mapped[str] = mapped_column(Id, primary_key=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())


class TaskAttempt(Base):
    """One execution of a run, written by the statement that writes its outcome. Keyed by the fence, which no two executions share.

    No foreign key: the row cannot come without its run, and whoever deletes runs deletes their attempts.
    """

    __tablename__ = "task_attempts"

    run_id: Mapped[str] = mapped_column(Id, primary_key=True)
    fence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    tenant_id: Mapped[str] = mapped_column(Id)
    attempt: Mapped[int]
    worker_id: Mapped[str | None] = mapped_column(String(100))
    state: Mapped[str] = mapped_column(String(10))
    error_type: Mapped[str | None] = mapped_column(String(200))
    error: Mapped[str | None] = mapped_column(Text)
    traceback: Mapped[list[str] | None] = mapped_column(Json)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    duration_ms: Mapped[int | None]


class WorkerProcess(Base):
    """A worker process. Its heartbeat is written only while its recorder and all its threads live.

    `process_key` tells processes of the same machine whether this one still exists (runs/process_key.py); NULL where nobody can.
    """

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    threads: Mapped[int]
    queues: Mapped[list[str]]
    state: Mapped[str] = mapped_column(String(20), default="running")
    process_key: Mapped[str | None] = mapped_column(String(200))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())
    heartbeat_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())
