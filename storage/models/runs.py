"""The record of runs: what was asked for, every attempt at it, and the workers that hold claims."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, ForeignKeyConstraint, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from storage.expressions import db_now
from storage.models.base import Base
from storage.types import Id, Json, UtcDateTime


class TaskRun(Base):
    """One enqueued call and its history.

    `publish_at` is when the relay should look at the run again: at its `eta`, or when its message may have been lost. It is
    NULL while the run is STARTED or final, so that the relay's index stays small. `fence` counts claims and is never lowered;
    `attempt` counts attempts spent and is given back by a snooze or a hand-back.
    """

    __tablename__ = "task_runs"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        Index(
            "uq_task_runs_live_unique_key",
            "tenant_id",
            "task",
            "unique_key",
            unique=True,
            postgresql_where=text("unique_key IS NOT NULL AND state IN ('PENDING', 'STARTED', 'RETRY')"),
            sqlite_where=text("unique_key IS NOT NULL AND state IN ('PENDING', 'STARTED', 'RETRY')"),
        ),
        Index("uq_task_runs_idempotency_key", "tenant_id", "idempotency_key", unique=True),
        Index("ix_task_runs_newest", "tenant_id", "created_at", "id"),
        Index("ix_task_runs_all_newest", "created_at", "id"),
        Index(
            "ix_task_runs_publish_at",
            "publish_at",
            postgresql_where=text("publish_at IS NOT NULL"),
            sqlite_where=text("publish_at IS NOT NULL"),
        ),
        Index("ix_task_runs_started", "worker_id", postgresql_where=text("state = 'STARTED'"), sqlite_where=text("state = 'STARTED'")),
        Index("ix_task_runs_queue_state", "queue", "state"),
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


class TaskAttempt(Base):
    """One execution of a run, written together with its outcome. Keyed by the fence, which no two executions share."""

    __tablename__ = "task_attempts"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "run_id"], ["task_runs.tenant_id", "task_runs.id"], ondelete="CASCADE"),
        Index(None, "tenant_id", "run_id"),
    )

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
    """A worker process. Its heartbeat is written only while its recorder and all its threads live."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    threads: Mapped[int]
    queues: Mapped[list[str]]
    state: Mapped[str] = mapped_column(String(20), default="running")
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())
    heartbeat_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())
