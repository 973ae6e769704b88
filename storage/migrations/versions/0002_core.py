"""What the core needs: held runs, endings, suspects, followers, pauses and limits; indexes over what is live only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from storage.types import Id, UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Forward only, see 0001."""
    for column in (
        sa.Column("ending", sa.String(length=10), nullable=True),
        sa.Column("is_suspect", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("mail_host", sa.String(length=255), nullable=True),
        sa.Column("after_run_id", Id, nullable=True),
        sa.Column("after_group_id", Id, nullable=True),
        sa.Column("group_id", Id, nullable=True),
        sa.Column("delay", sa.Double(), nullable=True),
    ):
        op.add_column("task_runs", column)
    op.add_column("workers", sa.Column("process_key", sa.String(length=200), nullable=True))
    create_tables()
    replace_indexes()
    # An attempt is written by the statement that ends it, together with its run: looking the run up again cost more than the row.
    with op.batch_alter_table("task_attempts") as attempts:
        attempts.drop_constraint("fk_task_attempts_tenant_id_run_id_task_runs", type_="foreignkey")


def create_tables() -> None:
    """The system's own; no tenant reads or writes them."""
    op.create_table(
        "pauses",
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("swept_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("kind", "name", name="pk_pauses"),
    )
    op.create_table(
        "limits",
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=True),
        sa.Column("per_minute", sa.Integer(), nullable=True),
        sa.Column("tokens", sa.Double(), nullable=False),
        sa.Column("refilled_at", UtcDateTime(), nullable=False),
        sa.Column("swept_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("kind", "name", name="pk_limits"),
    )


def replace_indexes() -> None:
    """Ids begin with their time, so (tenant_id, id) and the primary key list the newest; each index fewer is a cheaper claim."""
    for name in ("ix_task_runs_all_newest", "ix_task_runs_newest", "ix_task_runs_queue_state", "uq_task_runs_idempotency_key"):
        op.drop_index(name, "task_runs")
    op.drop_index("ix_task_attempts_tenant_id_run_id", "task_attempts")
    _index("uq_task_runs_idempotency_key", "tenant_id", "idempotency_key", where="idempotency_key IS NOT NULL", unique=True)
    _index("ix_task_runs_published", "queue", "tenant_id", where="waiting_for = 'queue' AND publish_at IS NOT NULL")
    _index("ix_task_runs_held", "queue", "tenant_id", "priority", "id", where="waiting_for = 'queue' AND publish_at IS NULL")
    _index("ix_task_runs_limited", "tenant_id", "queue", "priority", "id", where="waiting_for = 'limit' AND mail_host IS NULL")
    by_host = ("tenant_id", "mail_host", "queue", "priority", "id")
    _index("ix_task_runs_limited_by_host", *by_host, where="waiting_for = 'limit' AND mail_host IS NOT NULL")
    _index("ix_task_runs_queued_by_host", "mail_host", where="waiting_for = 'queue' AND mail_host IS NOT NULL")
    _index("ix_task_runs_paused", "queue", "task", "tenant_id", where="waiting_for = 'pause'")
    _index("ix_task_runs_followers", "after_run_id", "after_group_id", where="waiting_for = 'run'")
    _index("ix_task_runs_after_run_id", "after_run_id", where="after_run_id IS NOT NULL")
    _index("ix_task_runs_group_id", "group_id", "state", where="group_id IS NOT NULL")
    _index("ix_task_runs_expires_at", "expires_at", where="expires_at IS NOT NULL AND state IN ('PENDING', 'RETRY')")
    _index("ix_task_runs_exceptions", "queue", "state", "tenant_id", where="state IN ('RETRY', 'FAILURE', 'REVOKED')")
    _index("ix_task_runs_suspects", "id", where="is_suspect")
    _index("ix_task_runs_dead_letters", "queue", "tenant_id", "id", where="dead_lettered_at IS NOT NULL")


def _index(name: str, *columns: str, where: str, unique: bool = False) -> None:
    op.create_index(name, "task_runs", list(columns), unique=unique, postgresql_where=sa.text(where), sqlite_where=sa.text(where))
