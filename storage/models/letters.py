"""What a tenant's transactional mails are made of: its own templates, its sender and its links."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from storage.expressions import db_now
from storage.models.base import Base
from storage.types import Id, UtcDateTime


class MailTemplate(Base):
    """A tenant's own wording of one mail in one language, instead of the shipped one."""

    __tablename__ = "mail_templates"

    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(30), primary_key=True)
    locale: Mapped[str] = mapped_column(String(35), primary_key=True)
    subject: Mapped[str] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)
    html: Mapped[str] = mapped_column(Text)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now(), onupdate=db_now())


class MailSettings(Base):
    """How a tenant's transactional mails go out. What is NULL is as the installation's settings say.

    `client_id` has no foreign key: an account that was deleted must not take the rest with it.
    """

    __tablename__ = "mail_settings"

    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    client_id: Mapped[str | None] = mapped_column(Id)
    sender_name: Mapped[str | None] = mapped_column(String(200))
    sender_address: Mapped[str | None] = mapped_column(String(320))
    locale: Mapped[str | None] = mapped_column(String(35))
    app_name: Mapped[str | None] = mapped_column(String(100))
    link_base_url: Mapped[str | None] = mapped_column(String(500))
    verification_path: Mapped[str | None] = mapped_column(String(200))
    password_reset_path: Mapped[str | None] = mapped_column(String(200))
    accent_color: Mapped[str | None] = mapped_column(String(7))
    verification_expires_hours: Mapped[int | None]
    password_reset_expires_minutes: Mapped[int | None]
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now(), onupdate=db_now())
