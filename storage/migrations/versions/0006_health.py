"""What health checks and clean-ups need: the checks' rows, and the ways to what is old."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from storage.types import Json, UtcDateTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Forward only, see 0001."""
    op.create_table(
        "service_health",
        sa.Column("checked_at", UtcDateTime(), nullable=False),
        sa.Column("component", sa.String(length=320), nullable=False),
        sa.Column("status", sa.String(length=10), nullable=False),
        sa.Column("latency_ms", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("facts", Json, nullable=True),
        sa.Column("since", UtcDateTime(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("checked_at", "component", name="pk_service_health"),
    )
    _index("ix_email_attachments_stored", "email_attachments", "tenant_id", "stored_filename", where="stored_filename IS NOT NULL")
    _index("ix_task_runs_after_group_id", "task_runs", "after_group_id", where="after_group_id IS NOT NULL")
    ended = "finished_at IS NOT NULL AND result IS "
    _index("ix_task_runs_results", "task_runs", "finished_at", "id", where=ended + "NOT NULL")
    _index("ix_task_runs_history", "task_runs", "finished_at", "id", where=ended + "NULL AND dead_lettered_at IS NULL")


def _index(name: str, table: str, *columns: str, where: str) -> None:
    op.create_index(name, table, list(columns), postgresql_where=sa.text(where), sqlite_where=sa.text(where))
