"""How the parts that Mailroom stands on were, minute by minute."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from storage.models.base import Base
from storage.types import Json, UtcDateTime


class ServiceHealth(Base):
    """One component in one check. Rows of the same `checked_at` are one check; the newest check is the present, the others are history.

    The system's own; no tenant reads or writes it. Keyed by time first: the newest check, an hour and what is too old are ranges.
    """

    __tablename__ = "service_health"

    checked_at: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    component: Mapped[str] = mapped_column(String(320), primary_key=True)  # database, worker, ..., smtp:mail.example.com:587
    status: Mapped[str] = mapped_column(String(10))  # a HealthStatus
    latency_ms: Mapped[float | None]
    reason: Mapped[str | None] = mapped_column(Text)  # one sentence, of what is not healthy
    facts: Mapped[dict[str, Any] | None] = mapped_column(Json)
    since: Mapped[datetime] = mapped_column(UtcDateTime)  # when the status became what it is
    failures: Mapped[int] = mapped_column(default=0)  # checks in a row in which it was not healthy
