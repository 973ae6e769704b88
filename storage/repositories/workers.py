"""The worker processes that live."""

from __future__ import annotations

from sqlalchemy import func, select

from storage.expressions import db_now_plus
from storage.lives import WORKER_LOST_SECONDS
from storage.models import TaskRun, WorkerProcess
from storage.repositories.base import Repository
from storage.states import State


class Workers(Repository):
    """Read only; workers write their own rows (storage/dispatch.py)."""

    def alive(self) -> list[WorkerProcess]:
        """Those that were heard of lately, the longest serving first."""
        recent = WorkerProcess.heartbeat_at >= db_now_plus(-WORKER_LOST_SECONDS)
        return list(self.session.scalars(select(WorkerProcess).where(recent).order_by(WorkerProcess.started_at, WorkerProcess.id)))

    def busy_threads(self) -> dict[str, int]:
        """Worker id to the number of runs it has claimed."""
        rows = self.session.execute(
            select(TaskRun.worker_id, func.count()).where(self.owns(TaskRun), TaskRun.state == State.STARTED).group_by(TaskRun.worker_id)
        )
        return {row[0]: row[1] for row in rows if row[0] is not None}
