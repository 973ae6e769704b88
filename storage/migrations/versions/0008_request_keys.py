"""Idempotency-Keys of requests that leave no run: those about webhooks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from storage.postgres import row_level_security
from storage.types import Id, UtcDateTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Forward only, see 0001."""
    op.create_table(
        "request_keys",
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=False),
        sa.Column("request_hash", sa.String(length=64), nullable=False),
        sa.Column("answer_id", Id, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_request_keys_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "idempotency_key", name="pk_request_keys"),
    )
    op.create_index("ix_request_keys_created_at", "request_keys", ["created_at"])
    if op.get_bind().dialect.name == "postgresql":
        for statement in row_level_security("request_keys"):
            op.execute(statement)
