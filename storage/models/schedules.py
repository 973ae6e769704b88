"""The schedules the actors declare, and the ticks that make each firing exactly one run."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Index, String, false
from sqlalchemy.orm import Mapped, mapped_column

from storage.expressions import db_now
from storage.models.base import Base
from storage.types import Id, UtcDateTime


class Schedule(Base):
    """One periodic task, as it was declared last. `checked_until` is the last minute whose ticks were looked at, by any scheduler.

    `declared_at`: when a scheduler said last that there is such a task.
    """

    __tablename__ = "schedules"

    task: Mapped[str] = mapped_column(String(200), primary_key=True)
    cron: Mapped[str] = mapped_column(String(100))
    is_paused: Mapped[bool] = mapped_column(default=False)
    checked_until: Mapped[datetime]
    timezone: Mapped[str] = mapped_column(String(100), default="UTC", server_default="UTC")
    catch_up: Mapped[str] = mapped_column(String(10), default="once", server_default="once")
    overlap: Mapped[str] = mapped_column(String(10), default="allow", server_default="allow")
    jitter: Mapped[float] = mapped_column(default=0.0, server_default="0")
    declared_at: Mapped[datetime | None]


class ScheduleTick(Base):
    """One firing. The primary key is what keeps two schedulers from doubling it. `is_skipped`: the run was there already."""

    __tablename__ = "schedule_ticks"
    __table_args__ = (Index(None, "created_at"),)

    task: Mapped[str] = mapped_column(String(200), primary_key=True)
    minute: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    run_id: Mapped[str] = mapped_column(Id)
    is_skipped: Mapped[bool] = mapped_column(default=False, server_default=false())
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())
