"""What operators set over the runs: pauses, and limits of tenants and mail hosts."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from storage.expressions import db_now
from storage.models.base import Base
from storage.types import UtcDateTime


class Pause(Base):
    """Nothing of this queue, task or tenant starts until the row is gone. `name` is the tenant's id for a tenant.

    `swept_at`: when it was last made sure that what waits behind it says so; NULL while that is being done for the first time.
    """

    __tablename__ = "pauses"

    kind: Mapped[str] = mapped_column(String(10), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())
    swept_at: Mapped[datetime | None]


class Limit(Base):
    """How many runs of a tenant (`name` is its id) or over a mail host may be under way at a time, and how many may start a minute.

    `tokens` are the starts that are left at `refilled_at`; the bucket holds a second's worth of starts, at least one. `swept_at`: when
    it was last made sure that no more is on its way than may be; NULL while that is being done for the first time.
    """

    __tablename__ = "limits"

    kind: Mapped[str] = mapped_column(String(10), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    concurrency: Mapped[int | None]
    per_minute: Mapped[int | None]
    tokens: Mapped[float] = mapped_column(default=1.0)
    refilled_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())
    swept_at: Mapped[datetime | None]
