"""Schedules with a time zone and policies; webhooks and their deliveries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from storage.postgres import row_level_security
from storage.types import Id, Json, UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Forward only, see 0001."""
    extend_schedules()
    create_webhooks()
    if op.get_bind().dialect.name == "postgresql":
        for table in ("webhooks", "webhook_deliveries"):
            for statement in row_level_security(table):
                op.execute(statement)


def extend_schedules() -> None:
    """Existing rows keep their behaviour: UTC, one run for what was missed, runs may overlap."""
    for column in (
        sa.Column("timezone", sa.String(length=100), nullable=False, server_default="UTC"),
        sa.Column("catch_up", sa.String(length=10), nullable=False, server_default="once"),
        sa.Column("overlap", sa.String(length=10), nullable=False, server_default="allow"),
        sa.Column("jitter", sa.Double(), nullable=False, server_default="0"),
        sa.Column("declared_at", UtcDateTime(), nullable=True),
    ):
        op.add_column("schedules", column)
    op.add_column("schedule_ticks", sa.Column("is_skipped", sa.Boolean(), nullable=False, server_default=sa.false()))


def create_webhooks() -> None:
    """Addresses, and what was or is to be told to them."""
    op.create_table(
        "webhooks",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("description", sa.String(length=500), nullable=False),
        sa.Column("events", Json, nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("previous_secret", sa.LargeBinary(), nullable=True),
        sa.Column("previous_until", UtcDateTime(), nullable=True),
        sa.Column("is_active", sa.Boolean(), nullable=False, server_default=sa.true()),
        sa.Column("disabled_reason", sa.String(length=200), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("failing_since", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_webhooks_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_webhooks"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_webhooks_tenant_id_id"),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("webhook_id", Id, nullable=False),
        sa.Column("type", sa.String(length=50), nullable=False),
        sa.Column("payload", Json, nullable=False),
        sa.Column("status", sa.String(length=10), nullable=False, server_default="pending"),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("next_attempt_at", UtcDateTime(), nullable=True),
        sa.Column("response_code", sa.Integer(), nullable=True),
        sa.Column("response_text", sa.String(length=200), nullable=True),
        sa.Column("last_error", sa.String(length=300), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=True),
        sa.Column("run_id", Id, nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_webhook_deliveries_tenant_id_tenants", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "webhook_id"],
            ["webhooks.tenant_id", "webhooks.id"],
            name="fk_webhook_deliveries_tenant_id_webhook_id_webhooks",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_webhook_deliveries_tenant_id_id"),
    )
    op.create_index("ix_webhook_deliveries_newest", "webhook_deliveries", ["tenant_id", "webhook_id", "created_at", "id"])
    op.create_index("ix_webhook_deliveries_created_at", "webhook_deliveries", ["created_at"])
    waits = sa.text("run_id IS NULL AND status = 'pending'")
    op.create_index("ix_webhook_deliveries_not_started", "webhook_deliveries", ["id"], postgresql_where=waits, sqlite_where=waits)
