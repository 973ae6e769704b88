"""What will be sent, what became of it for each recipient, and who is not written to any more."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, LargeBinary, String, Text, UniqueConstraint, false, text
from sqlalchemy.orm import Mapped, mapped_column

from core.ids import new_id
from storage.expressions import db_now
from storage.models.base import Base
from storage.types import Id, UtcDateTime


class OutboundEmail(Base):
    """A mail on its way out. The MIME source is built once, at accept, so that every attempt sends the same bytes.

    Without a `client_id` it goes over the system's own server. `is_sealed`: the source holds a secret and is encrypted until it is
    erased, which is as soon as the mail is sent, cancelled or expired. `to_addresses` is for people who look at the table.
    """

    __tablename__ = "outbound_emails"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        ForeignKeyConstraint(["tenant_id", "client_id"], ["email_clients.tenant_id", "email_clients.id"], ondelete="CASCADE"),
        Index(None, "tenant_id", "status"),
        Index("ix_outbound_emails_due", "status", "next_retry_at"),
        Index(None, "tenant_id", "message_id"),
        UniqueConstraint("tenant_id", "run_id"),
        Index("ix_outbound_emails_sealed", "tenant_id", "status", postgresql_where=text("is_sealed"), sqlite_where=text("is_sealed")),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    user_id: Mapped[str | None] = mapped_column(Id)
    client_id: Mapped[str | None] = mapped_column(Id)
    run_id: Mapped[str | None] = mapped_column(Id)
    message_id: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text, default="")
    sender: Mapped[str] = mapped_column(String(320))
    source: Mapped[bytes] = mapped_column(LargeBinary)
    kind: Mapped[str | None] = mapped_column(String(30))  # which transactional mail it is, if it is one
    to_addresses: Mapped[str] = mapped_column(Text, default="", server_default="")
    is_sealed: Mapped[bool] = mapped_column(default=False, server_default=false())
    erased_at: Mapped[datetime | None]
    status: Mapped[str] = mapped_column(String(10), default="pending")
    priority: Mapped[int] = mapped_column(default=1)  # 0 low, 1 normal, 2 high, as a run's
    scheduled_at: Mapped[datetime | None]  # not before
    attempts: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int] = mapped_column(default=10)
    next_retry_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    sent_at: Mapped[datetime | None]
    saved_to_sent: Mapped[str | None] = mapped_column(String(10))  # wanted, saved or failed; None: nobody asked
    last_error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())


class OutboundRecipient(Base):
    """One envelope recipient and what the server said of it. An accepted one is never sent to again."""

    __tablename__ = "outbound_recipients"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "email_id"], ["outbound_emails.tenant_id", "outbound_emails.id"], ondelete="CASCADE"),
        UniqueConstraint("tenant_id", "email_id", "address"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    email_id: Mapped[str] = mapped_column(Id)
    address: Mapped[str] = mapped_column(String(320))
    status: Mapped[str] = mapped_column(String(10), default="pending")
    reply_code: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    enhanced_code: Mapped[str | None] = mapped_column(String(12))  # RFC 3463
    attempts: Mapped[int] = mapped_column(default=0)
    next_retry_at: Mapped[datetime | None]
    bounced_at: Mapped[datetime | None]  # a delivery report came back later (RFC 3464)


class Suppression(Base):
    """An address that a tenant does not write to: it bounced, complained, or somebody said so."""

    __tablename__ = "suppressions"
    __table_args__ = (UniqueConstraint("tenant_id", "id"), UniqueConstraint("tenant_id", "address"))

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    address: Mapped[str] = mapped_column(String(320))  # in lower case
    reason: Mapped[str] = mapped_column(String(20))  # bounce, complaint or manual
    detail: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())


class DkimKey(Base):
    """The key that signs a tenant's mail from a domain (RFC 6376)."""

    __tablename__ = "dkim_keys"
    __table_args__ = (UniqueConstraint("tenant_id", "id"), UniqueConstraint("tenant_id", "domain"))

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    domain: Mapped[str] = mapped_column(String(255))
    selector: Mapped[str] = mapped_column(String(63))
    private_key: Mapped[bytes] = mapped_column(LargeBinary)  # PKCS #8, encrypted like a password
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())
