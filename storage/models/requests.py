"""Requests that were carried out under an Idempotency-Key and left no run that could bear it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from storage.expressions import db_now
from storage.models.base import Base
from storage.types import Id, UtcDateTime


class RequestKey(Base):
    """A key, the digest of the request that it was first used for, and the id of the row that is the answer."""

    __tablename__ = "request_keys"
    __table_args__ = (Index(None, "created_at"),)

    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    idempotency_key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_hash: Mapped[str] = mapped_column(String(64))
    answer_id: Mapped[str] = mapped_column(Id)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())
