"""Whom a tenant wants to be told of what, and every telling."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, LargeBinary, String, Text, UniqueConstraint, text, true
from sqlalchemy.orm import Mapped, mapped_column

from core.ids import new_id
from storage.expressions import db_now
from storage.models.base import Base
from storage.types import Id, Json, UtcDateTime

NOT_STARTED = "run_id IS NULL AND status = 'pending'"
"""A delivery that no run carries yet."""


class Webhook(Base):
    """An address of a tenant's. `failing_since` and `failures`: since when, and how often, nothing has got through."""

    __tablename__ = "webhooks"
    __table_args__ = (UniqueConstraint("tenant_id", "id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    url: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(String(500), default="")
    events: Mapped[list[str]] = mapped_column(Json)
    secret: Mapped[bytes] = mapped_column(LargeBinary)  # encrypted, bound to the row
    previous_secret: Mapped[bytes | None] = mapped_column(LargeBinary)
    previous_until: Mapped[datetime | None]
    is_active: Mapped[bool] = mapped_column(default=True, server_default=true())
    disabled_reason: Mapped[str | None] = mapped_column(String(200))
    failures: Mapped[int] = mapped_column(default=0, server_default="0")
    failing_since: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())


class WebhookDelivery(Base):
    """An event for one webhook, written with what it tells of. Its id is the event's, for whoever receives it."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        ForeignKeyConstraint(["tenant_id", "webhook_id"], ["webhooks.tenant_id", "webhooks.id"], ondelete="CASCADE"),
        Index("ix_webhook_deliveries_newest", "tenant_id", "webhook_id", "created_at", "id"),
        Index("ix_webhook_deliveries_not_started", "id", postgresql_where=text(NOT_STARTED), sqlite_where=text(NOT_STARTED)),
        Index(None, "created_at"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    webhook_id: Mapped[str] = mapped_column(Id)
    type: Mapped[str] = mapped_column(String(50))
    payload: Mapped[dict[str, Any]] = mapped_column(Json)
    status: Mapped[str] = mapped_column(String(10), default="pending", server_default="pending")
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    next_attempt_at: Mapped[datetime | None]
    response_code: Mapped[int | None]
    response_text: Mapped[str | None] = mapped_column(String(200))  # how the answer began
    last_error: Mapped[str | None] = mapped_column(String(300))
    duration_ms: Mapped[int | None]
    run_id: Mapped[str | None] = mapped_column(Id)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())
    finished_at: Mapped[datetime | None]
