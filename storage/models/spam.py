"""What the spam check said of messages, what people said of that, and what a tenant's own weights have learned. Never a word of mail."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, LargeBinary, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from core.ids import new_id
from storage.expressions import db_now
from storage.models.base import Base
from storage.types import Id, Json, UtcDateTime


class SpamVerdict(Base):
    """The newest verdict on a message. It stays with the message through moves, and goes with it."""

    __tablename__ = "spam_verdicts"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "email_id"], ["email_messages.tenant_id", "email_messages.id"], ondelete="CASCADE"),
        Index(
            "ix_spam_verdicts_spam",
            "tenant_id",
            "email_id",
            postgresql_where=text("is_spam"),
            sqlite_where=text("is_spam"),
        ),
    )

    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    email_id: Mapped[str] = mapped_column(Id, primary_key=True)
    score: Mapped[float]  # 0..1, calibrated
    is_spam: Mapped[bool]
    threshold: Mapped[float]
    logit: Mapped[float]  # the log-odds of everybody's check, without the tenant's weights
    indicators: Mapped[list[Any]] = mapped_column(Json)  # [{"code", "severity", "evidence"}]
    contributions: Mapped[list[Any]] = mapped_column(Json)  # [{"name", "weight"}], the ten that counted most
    engines: Mapped[list[Any]] = mapped_column(Json)  # [{"engine", "score", "required", "symbols"}]
    notes: Mapped[list[str]] = mapped_column(Json)  # what could not be looked at, as codes
    hashes: Mapped[bytes] = mapped_column(LargeBinary)  # the hashed features, little-endian uint32
    model: Mapped[str | None] = mapped_column(String(64))
    source: Mapped[str] = mapped_column(String(10))  # "embedded", or "engines" where others were asked too
    junked_at: Mapped[datetime | None]  # we moved the message to Junk: that move is nobody's opinion
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())  # when it was checked


class SpamFeedback(Base):
    """Somebody's word that a message is spam or is not: at most one for a message, which may change or be taken back."""

    __tablename__ = "spam_feedback"
    __table_args__ = (
        UniqueConstraint("tenant_id", "email_id"),
        Index(None, "tenant_id", "user_id", "created_at"),
        Index(None, "tenant_id", "created_at"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    user_id: Mapped[str | None] = mapped_column(Id)  # None: the tenant as a whole
    email_id: Mapped[str] = mapped_column(Id)  # the message may be gone; what was learned from it stays
    is_spam: Mapped[bool]
    was_spam: Mapped[bool | None]  # what the verdict said then; None: there was none
    via: Mapped[str] = mapped_column(String(10))  # "api", or "move" for one to or from the Junk folder
    hashes: Mapped[bytes | None] = mapped_column(LargeBinary)  # None: not read yet; empty: it cannot be read any more
    logit: Mapped[float | None]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())
    undone_at: Mapped[datetime | None]


class SpamSettings(Base):
    """What a tenant wants of the check. A tenant without a row has the defaults."""

    __tablename__ = "spam_settings"

    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    threshold: Mapped[float | None]  # None: from the budget, or the model's own
    false_positive_budget: Mapped[float | None]  # the share of wanted mail that may be called spam
    moves_junk: Mapped[bool] = mapped_column(default=False)
    is_learning: Mapped[bool] = mapped_column(default=True)
    trusted_authserv_ids: Mapped[list[str]] = mapped_column(Json)
    own_domains: Mapped[list[str]] = mapped_column(Json)
    brands: Mapped[dict[str, list[str]]] = mapped_column(Json)  # a word, and the domains that may use it
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())


class SpamWeights(Base):
    """A tenant's own weights over the shared model. They are worked out from the feedback that stands, and count once they are the
    better judge of it."""

    __tablename__ = "spam_weights"

    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    revision: Mapped[int] = mapped_column(default=0)  # of the feedback
    learned_revision: Mapped[int] = mapped_column(default=0)  # of the feedback that the weights are from
    weights: Mapped[bytes | None] = mapped_column(LargeBinary)
    is_active: Mapped[bool] = mapped_column(default=False)
    spam_count: Mapped[int] = mapped_column(default=0)
    ham_count: Mapped[int] = mapped_column(default=0)
    threshold: Mapped[float | None]  # from the tenant's false-positive budget
    trial: Mapped[dict[str, Any]] = mapped_column(Json)  # how they judged recent feedback before they had learned it
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())


class SpamListEntry(Base):
    """A sender (an address, or a domain with everything below it) whose mail always passes, or never."""

    __tablename__ = "spam_lists"
    __table_args__ = (UniqueConstraint("tenant_id", "id"), UniqueConstraint("tenant_id", "pattern"))

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(5))  # "allow" or "block"
    pattern: Mapped[str] = mapped_column(String(320))  # in lower case, domains in A-labels
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())
