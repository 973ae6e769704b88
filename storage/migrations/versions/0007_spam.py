"""What the spam check needs: verdicts, feedback, a tenant's settings, weights and lists, and an account's own wishes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from storage.postgres import row_level_security
from storage.types import Id, Json, UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TENANTS_TABLES = ["spam_verdicts", "spam_feedback", "spam_settings", "spam_weights", "spam_lists"]


def upgrade() -> None:
    """Forward only, see 0001."""
    op.add_column("email_clients", sa.Column("checks_spam", sa.Boolean(), nullable=True))
    op.add_column("email_clients", sa.Column("moves_junk", sa.Boolean(), nullable=True))
    create_verdicts()
    create_feedback()
    create_choices()
    if op.get_bind().dialect.name == "postgresql":
        for table in TENANTS_TABLES:
            for statement in row_level_security(table):
                op.execute(statement)


def create_verdicts() -> None:
    """One for each message that was checked."""
    op.create_table(
        "spam_verdicts",
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("email_id", Id, nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("is_spam", sa.Boolean(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("logit", sa.Double(), nullable=False),
        sa.Column("indicators", Json, nullable=False),
        sa.Column("contributions", Json, nullable=False),
        sa.Column("engines", Json, nullable=False),
        sa.Column("notes", Json, nullable=False),
        sa.Column("hashes", sa.LargeBinary(), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=True),
        sa.Column("source", sa.String(length=10), nullable=False),
        sa.Column("junked_at", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        _tenant("spam_verdicts"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "email_id"],
            ["email_messages.tenant_id", "email_messages.id"],
            name="fk_spam_verdicts_tenant_id_email_id_email_messages",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "email_id", name="pk_spam_verdicts"),
    )
    spam = sa.text("is_spam")
    op.create_index("ix_spam_verdicts_spam", "spam_verdicts", ["tenant_id", "email_id"], postgresql_where=spam, sqlite_where=spam)


def create_feedback() -> None:
    """What people said, and what was learned from it."""
    op.create_table(
        "spam_feedback",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("user_id", Id, nullable=True),
        sa.Column("email_id", Id, nullable=False),
        sa.Column("is_spam", sa.Boolean(), nullable=False),
        sa.Column("was_spam", sa.Boolean(), nullable=True),
        sa.Column("via", sa.String(length=10), nullable=False),
        sa.Column("hashes", sa.LargeBinary(), nullable=True),
        sa.Column("logit", sa.Double(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("undone_at", UtcDateTime(), nullable=True),
        _tenant("spam_feedback"),
        sa.PrimaryKeyConstraint("id", name="pk_spam_feedback"),
        sa.UniqueConstraint("tenant_id", "email_id", name="uq_spam_feedback_tenant_id_email_id"),
    )
    op.create_index("ix_spam_feedback_tenant_id_user_id_created_at", "spam_feedback", ["tenant_id", "user_id", "created_at"])
    op.create_index("ix_spam_feedback_tenant_id_created_at", "spam_feedback", ["tenant_id", "created_at"])
    op.create_table(
        "spam_weights",
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("learned_revision", sa.Integer(), nullable=False),
        sa.Column("weights", sa.LargeBinary(), nullable=True),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("spam_count", sa.Integer(), nullable=False),
        sa.Column("ham_count", sa.Integer(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("trial", Json, nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        _tenant("spam_weights"),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_spam_weights"),
    )


def create_choices() -> None:
    """What a tenant wants of the check, and the senders it is sure of."""
    op.create_table(
        "spam_settings",
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("false_positive_budget", sa.Double(), nullable=True),
        sa.Column("moves_junk", sa.Boolean(), nullable=False),
        sa.Column("is_learning", sa.Boolean(), nullable=False),
        sa.Column("trusted_authserv_ids", Json, nullable=False),
        sa.Column("own_domains", Json, nullable=False),
        sa.Column("brands", Json, nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        _tenant("spam_settings"),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_spam_settings"),
    )
    op.create_table(
        "spam_lists",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("kind", sa.String(length=5), nullable=False),
        sa.Column("pattern", sa.String(length=320), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        _tenant("spam_lists"),
        sa.PrimaryKeyConstraint("id", name="pk_spam_lists"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_spam_lists_tenant_id_id"),
        sa.UniqueConstraint("tenant_id", "pattern", name="uq_spam_lists_tenant_id_pattern"),
    )


def _tenant(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=f"fk_{table}_tenant_id_tenants", ondelete="CASCADE")
