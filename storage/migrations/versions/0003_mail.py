"""What the mail engine needs: POP3 and OAuth logins, conversations, sources, host back-off, the outbox's timing, suppressions, DKIM."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

from storage.postgres import row_level_security
from storage.postgres_mail import INDEX_STORED, wall_of_words
from storage.types import Id, UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TENANTS_TABLES = ["email_sources", "thread_links", "suppressions", "dkim_keys"]


def upgrade() -> None:
    """Forward only, see 0001."""
    add_columns()
    create_sync_tables()
    create_search_table()
    create_sending_tables()
    if op.get_bind().dialect.name == "postgresql":
        for table in TENANTS_TABLES:
            for statement in row_level_security(table):
                op.execute(statement)
        for statement in wall_of_words("email_search"):
            op.execute(statement)
        op.execute(INDEX_STORED)


def add_columns() -> None:
    """A server's or an account's new facts; existing rows know none of them."""
    _add(
        "email_clients",
        sa.Column("pop3_host", sa.String(length=255), nullable=True),
        sa.Column("pop3_port", sa.Integer(), nullable=True),
        sa.Column("pop3_security", sa.String(length=10), nullable=True),
        sa.Column("pop3_username", sa.String(length=320), nullable=True),
        sa.Column("pop3_password", sa.LargeBinary(), nullable=True),
        sa.Column("oauth_token_url", sa.String(length=500), nullable=True),
        sa.Column("oauth_client_id", sa.String(length=255), nullable=True),
        sa.Column("oauth_client_secret", sa.LargeBinary(), nullable=True),
        sa.Column("oauth_refresh_token", sa.LargeBinary(), nullable=True),
        sa.Column("oauth_access_token", sa.LargeBinary(), nullable=True),
        sa.Column("oauth_expires_at", UtcDateTime(), nullable=True),
        sa.Column("saves_sent", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    _add(
        "email_folders",
        sa.Column("raw_name", sa.Text(), nullable=True),
        sa.Column("remote_id", sa.String(length=255), nullable=True),
        sa.Column("vanished_at", UtcDateTime(), nullable=True),
    )
    _add(
        "email_messages",
        sa.Column("remote_id", sa.String(length=255), nullable=True),
        sa.Column("thread_id", Id, nullable=True),
        sa.Column("vanished_at", UtcDateTime(), nullable=True),
    )
    op.create_index("ix_email_messages_tenant_id_thread_id", "email_messages", ["tenant_id", "thread_id"])
    vanished = sa.text("vanished_at IS NOT NULL")
    op.create_index(
        "ix_email_messages_vanished",
        "email_messages",
        ["tenant_id", "client_id", "vanished_at"],
        postgresql_where=vanished,
        sqlite_where=vanished,
    )
    nameless = sa.text("message_id IS NULL")
    op.create_index(
        "ix_email_messages_nameless",
        "email_messages",
        ["tenant_id", "client_id", "sha256"],
        postgresql_where=nameless,
        sqlite_where=nameless,
    )
    _add(
        "outbound_emails",
        sa.Column("priority", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("scheduled_at", UtcDateTime(), nullable=True),
        sa.Column("saved_to_sent", sa.String(length=10), nullable=True),
    )
    op.create_index("ix_outbound_emails_tenant_id_message_id", "outbound_emails", ["tenant_id", "message_id"])
    _add(
        "outbound_recipients",
        sa.Column("enhanced_code", sa.String(length=12), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("next_retry_at", UtcDateTime(), nullable=True),
        sa.Column("bounced_at", UtcDateTime(), nullable=True),
    )


def create_sync_tables() -> None:
    """Sources, conversations, and the servers that want to be left alone for a while."""
    op.create_table(
        "email_sources",
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("email_id", Id, nullable=False),
        sa.Column("source", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_email_sources_tenant_id_tenants", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "email_id"],
            ["email_messages.tenant_id", "email_messages.id"],
            name="fk_email_sources_tenant_id_email_id_email_messages",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "email_id", name="pk_email_sources"),
    )
    op.create_index("ix_email_sources_created_at", "email_sources", ["created_at"])
    op.create_table(
        "thread_links",
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("client_id", Id, nullable=False),
        sa.Column("message_id", sa.String(length=64), nullable=False),
        sa.Column("thread_id", Id, nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_thread_links_tenant_id_tenants", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "client_id"],
            ["email_clients.tenant_id", "email_clients.id"],
            name="fk_thread_links_tenant_id_client_id_email_clients",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "client_id", "message_id", name="pk_thread_links"),
    )
    op.create_index("ix_thread_links_tenant_id_thread_id", "thread_links", ["tenant_id", "thread_id"])
    op.create_table(
        "mail_hosts",
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("closed_until", UtcDateTime(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("host", name="pk_mail_hosts"),
    )


def create_search_table() -> None:
    """The words of messages, on PostgreSQL."""
    op.create_table(
        "email_search",
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("email_id", Id, nullable=False),
        sa.Column("words", sa.Text().with_variant(TSVECTOR, "postgresql"), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "email_id"],
            ["email_messages.tenant_id", "email_messages.id"],
            name="fk_email_search_tenant_id_email_id_email_messages",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "email_id", name="pk_email_search"),
    )
    op.create_index("ix_email_search_words", "email_search", ["words"], postgresql_using="gin")


def create_sending_tables() -> None:
    """Who is not written to, and the keys that sign."""
    op.create_table(
        "suppressions",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("address", sa.String(length=320), nullable=False),
        sa.Column("reason", sa.String(length=20), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_suppressions_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_suppressions"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_suppressions_tenant_id_id"),
        sa.UniqueConstraint("tenant_id", "address", name="uq_suppressions_tenant_id_address"),
    )
    op.create_table(
        "dkim_keys",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("domain", sa.String(length=255), nullable=False),
        sa.Column("selector", sa.String(length=63), nullable=False),
        sa.Column("private_key", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_dkim_keys_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_dkim_keys"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_dkim_keys_tenant_id_id"),
        sa.UniqueConstraint("tenant_id", "domain", name="uq_dkim_keys_tenant_id_domain"),
    )


def _add(table: str, *columns: sa.Column[object]) -> None:
    for column in columns:
        op.add_column(table, column)
