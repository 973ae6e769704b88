"""The schedules the actors declare, and the ticks that make each firing exactly one run."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from storage.expressions import db_now
from storage.models.base import Base
from storage.types import Id, UtcDateTime


class Schedule(Base):
    """One periodic task. `checked_until` is the last minute whose ticks were looked at, by any scheduler."""

    __tablename__ = "schedules"

    task: Mapped[str] = mapped_column(String(200), primary_key=True)
    cron: Mapped[str] = mapped_column(String(100))
    is_paused: Mapped[bool] = mapped_column(default=False)
    checked_until: Mapped[datetime]


class ScheduleTick(Base):
    """One firing. The primary key is what keeps two schedulers from doubling it."""

    __tablename__ = "schedule_ticks"
    __table_args__ = (Index(None, "created_at"),)

    task: Mapped[str] = mapped_column(String(200), primary_key=True)
    minute: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    run_id: Mapped[str] = mapped_column(Id)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())
