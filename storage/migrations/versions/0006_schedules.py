"""Schedules with a time zone and policies; webhooks and their deliveries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from storage.types import UtcDateTime

revision = "0006"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Forward only, see 0001."""
    extend_schedules()


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
