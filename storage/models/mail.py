"""Mail accounts and what sync stored of them. Every reference stays inside its tenant by composite foreign keys."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, ForeignKeyConstraint, Index, LargeBinary, String, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column

from core.ids import new_id
from storage.expressions import db_now
from storage.models.base import Base
from storage.types import Id, Json, UtcDateTime


class EmailClient(Base):
    """A mail account of a user: how to reach its IMAP (or POP3) and SMTP servers, and how its syncs went."""

    __tablename__ = "email_clients"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        ForeignKeyConstraint(["tenant_id", "user_id"], ["users.tenant_id", "users.id"], ondelete="CASCADE"),
        Index(None, "tenant_id", "user_id"),
        Index("ix_email_clients_due", "is_sync_enabled", "last_sync_at"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    user_id: Mapped[str] = mapped_column(Id)
    name: Mapped[str] = mapped_column(String(200))
    email: Mapped[str] = mapped_column(String(320))

    imap_host: Mapped[str | None] = mapped_column(String(255))
    imap_port: Mapped[int | None]
    imap_security: Mapped[str | None] = mapped_column(String(10))
    imap_username: Mapped[str | None] = mapped_column(String(320))
    imap_password: Mapped[bytes | None] = mapped_column(LargeBinary)
    smtp_host: Mapped[str | None] = mapped_column(String(255))
    smtp_port: Mapped[int | None]
    smtp_security: Mapped[str | None] = mapped_column(String(10))
    smtp_username: Mapped[str | None] = mapped_column(String(320))
    smtp_password: Mapped[bytes | None] = mapped_column(LargeBinary)
    pop3_host: Mapped[str | None] = mapped_column(String(255))
    pop3_port: Mapped[int | None]
    pop3_security: Mapped[str | None] = mapped_column(String(10))
    pop3_username: Mapped[str | None] = mapped_column(String(320))
    pop3_password: Mapped[bytes | None] = mapped_column(LargeBinary)
    oauth_token_url: Mapped[str | None] = mapped_column(String(500))  # set: logins take a token instead of a password (RFC 6749 section 6)
    oauth_client_id: Mapped[str | None] = mapped_column(String(255))
    oauth_client_secret: Mapped[bytes | None] = mapped_column(LargeBinary)
    oauth_refresh_token: Mapped[bytes | None] = mapped_column(LargeBinary)
    oauth_access_token: Mapped[bytes | None] = mapped_column(LargeBinary)
    oauth_expires_at: Mapped[datetime | None]
    saves_sent: Mapped[bool] = mapped_column(default=False)  # append what was sent to the Sent folder; many servers do it themselves

    checks_spam: Mapped[bool | None]  # new mail, when it is synced; None: as SPAM_CHECK_ON_SYNC says
    moves_junk: Mapped[bool | None]  # what is spam goes to the Junk folder; None: as the tenant's spam settings say

    is_sync_enabled: Mapped[bool] = mapped_column(default=True)
    sync_interval: Mapped[int] = mapped_column(default=300)  # seconds
    last_sync_at: Mapped[datetime | None]
    last_error: Mapped[str | None] = mapped_column(Text)
    syncing_run_id: Mapped[str | None] = mapped_column(Id)  # at most one sync at a time; void once that run is not STARTED
    refused_logins: Mapped[int] = mapped_column(default=0)  # in a row; the third stops the account's syncs
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())


class EmailFolder(Base):
    """A mailbox folder and the cursor up to which it was stored (RFC 3501 UIDVALIDITY and UIDNEXT, RFC 7162 HIGHESTMODSEQ)."""

    __tablename__ = "email_folders"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        UniqueConstraint("tenant_id", "client_id", "name"),
        ForeignKeyConstraint(["tenant_id", "client_id"], ["email_clients.tenant_id", "email_clients.id"], ondelete="CASCADE"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    client_id: Mapped[str] = mapped_column(Id)
    name: Mapped[str] = mapped_column(String(1000))
    raw_name: Mapped[str | None] = mapped_column(Text)  # as the server spells it (modified UTF-7)
    remote_id: Mapped[str | None] = mapped_column(String(255))  # MAILBOXID (RFC 8474): the folder by any name
    role: Mapped[str | None] = mapped_column(String(20))
    uid_validity: Mapped[int | None] = mapped_column(BigInteger)
    uid_next: Mapped[int | None] = mapped_column(BigInteger)
    highest_modseq: Mapped[int | None] = mapped_column(BigInteger)
    message_count: Mapped[int] = mapped_column(default=0)  # those that have not vanished
    synced_at: Mapped[datetime | None]
    vanished_at: Mapped[datetime | None]  # gone from the server; kept for as long as messages in it may turn up in another folder


class EmailMessage(Base):
    """One message in one folder. (folder, UIDVALIDITY, UID) is its identity on the server; a Message-ID may repeat or miss."""

    __tablename__ = "email_messages"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        UniqueConstraint("tenant_id", "folder_id", "uid_validity", "uid"),
        ForeignKeyConstraint(["tenant_id", "client_id"], ["email_clients.tenant_id", "email_clients.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["tenant_id", "folder_id"], ["email_folders.tenant_id", "email_folders.id"], ondelete="CASCADE"),
        Index("ix_email_messages_newest", "tenant_id", "client_id", "internal_date", "id"),
        Index(None, "tenant_id", "message_id"),
        Index(None, "tenant_id", "thread_id"),
        Index(
            "ix_email_messages_vanished",
            "tenant_id",
            "client_id",
            "vanished_at",
            postgresql_where=text("vanished_at IS NOT NULL"),
            sqlite_where=text("vanished_at IS NOT NULL"),
        ),
        Index(  # how the twin of a message without Message-ID is found
            "ix_email_messages_nameless",
            "tenant_id",
            "client_id",
            "sha256",
            postgresql_where=text("message_id IS NULL"),
            sqlite_where=text("message_id IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    client_id: Mapped[str] = mapped_column(Id)
    folder_id: Mapped[str] = mapped_column(Id)
    uid_validity: Mapped[int] = mapped_column(BigInteger)
    uid: Mapped[int] = mapped_column(BigInteger)
    message_id: Mapped[str | None] = mapped_column(Text)
    in_reply_to: Mapped[str | None] = mapped_column(Text)
    references: Mapped[list[str]] = mapped_column("message_references", Json)
    subject: Mapped[str] = mapped_column(Text, default="")
    sender: Mapped[dict[str, Any] | None] = mapped_column(Json)  # {"name": ..., "address": ...}
    to: Mapped[list[Any]] = mapped_column("to_addresses", Json)
    cc: Mapped[list[Any]] = mapped_column("cc_addresses", Json)
    date: Mapped[datetime | None] = mapped_column("sent_at", UtcDateTime)
    internal_date: Mapped[datetime | None]
    size: Mapped[int]
    flags: Mapped[list[str]] = mapped_column(Json)
    snippet: Mapped[str] = mapped_column(Text, default="")
    body_text: Mapped[str | None] = mapped_column(Text)
    body_html: Mapped[str | None] = mapped_column(Text)
    headers: Mapped[list[Any]] = mapped_column(Json)
    sha256: Mapped[str] = mapped_column(String(64))
    remote_id: Mapped[str | None] = mapped_column(String(255))  # EMAILID (RFC 8474), X-GM-MSGID or POP3's UIDL: the mail in any folder
    thread_id: Mapped[str | None] = mapped_column(Id)
    vanished_at: Mapped[datetime | None]  # gone from its folder; shown to nobody, kept a while in case it turns up in another
    defects: Mapped[list[str]] = mapped_column(Json)  # what could not be read, as codes; empty for a sound message
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())


class EmailAttachment(Base):
    """An attachment: of a stored message (metadata; content stays on the server) or uploaded to be sent (content in a file)."""

    __tablename__ = "email_attachments"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        ForeignKeyConstraint(["tenant_id", "email_id"], ["email_messages.tenant_id", "email_messages.id"], ondelete="CASCADE"),
        Index(None, "tenant_id", "email_id"),
        Index(  # which stored files somebody still needs
            "ix_email_attachments_stored",
            "tenant_id",
            "stored_filename",
            postgresql_where=text("stored_filename IS NOT NULL"),
            sqlite_where=text("stored_filename IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"))
    user_id: Mapped[str | None] = mapped_column(Id)
    email_id: Mapped[str | None] = mapped_column(Id)
    part: Mapped[str | None] = mapped_column(String(100))
    filename: Mapped[str] = mapped_column(Text)
    content_type: Mapped[str] = mapped_column(String(255))
    size: Mapped[int]
    content_id: Mapped[str | None] = mapped_column(Text)
    is_inline: Mapped[bool] = mapped_column(default=False)
    stored_filename: Mapped[str | None] = mapped_column(String(100))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())


class EmailSource(Base):
    """A message as it came, compressed; kept for as long as RAW_RETENTION says."""

    __tablename__ = "email_sources"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "email_id"], ["email_messages.tenant_id", "email_messages.id"], ondelete="CASCADE"),
        Index(None, "created_at"),
    )

    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    email_id: Mapped[str] = mapped_column(Id, primary_key=True)
    source: Mapped[bytes] = mapped_column(LargeBinary)  # zlib
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=db_now())


class EmailSearch(Base):
    """The words of a message. PostgreSQL only: SQLite has an FTS5 table for them, which is no table to SQLAlchemy (storage/search.py)."""

    __tablename__ = "email_search"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "email_id"], ["email_messages.tenant_id", "email_messages.id"], ondelete="CASCADE"),
        Index("ix_email_search_words", "words", postgresql_using="gin"),
    )

    tenant_id: Mapped[str] = mapped_column(Id, primary_key=True)
    email_id: Mapped[str] = mapped_column(Id, primary_key=True)
    words: Mapped[str] = mapped_column(Text().with_variant(TSVECTOR, "postgresql"))


class ThreadLink(Base):
    """A Message-ID and the conversation it belongs to, also of messages that are only referred to (RFC 5256, "REFERENCES")."""

    __tablename__ = "thread_links"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "client_id"], ["email_clients.tenant_id", "email_clients.id"], ondelete="CASCADE"),
        Index(None, "tenant_id", "thread_id"),
    )

    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    client_id: Mapped[str] = mapped_column(Id, primary_key=True)
    message_id: Mapped[str] = mapped_column(String(64), primary_key=True)  # its SHA-256: a Message-ID may be as long as it likes
    thread_id: Mapped[str] = mapped_column(Id)


class MailHost(Base):
    """A mail server that asked for a pause, or did not answer. The system's own: all tenants' accounts on it wait together."""

    __tablename__ = "mail_hosts"

    host: Mapped[str] = mapped_column(String(255), primary_key=True)
    failures: Mapped[int] = mapped_column(default=0)  # in a row
    closed_until: Mapped[datetime | None]
    reason: Mapped[str | None] = mapped_column(Text)
