"""What transactional mails need: secret arguments, templates and senders of tenants, mails whose bytes are secret until they are sent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from storage.postgres import row_level_security
from storage.types import Id, UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TENANTS_TABLES = ["run_secrets", "mail_templates", "mail_settings"]


def upgrade() -> None:
    """Forward only, see 0001."""
    create_tables()
    for column in (
        sa.Column("kind", sa.String(length=30), nullable=True),
        sa.Column("is_sealed", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("erased_at", UtcDateTime(), nullable=True),
        sa.Column("to_addresses", sa.Text(), nullable=False, server_default=""),
    ):
        op.add_column("outbound_emails", column)
    sealed = sa.text("is_sealed")
    op.create_index("ix_outbound_emails_sealed", "outbound_emails", ["tenant_id", "status"], postgresql_where=sealed, sqlite_where=sealed)
    is_postgres = op.get_bind().dialect.name == "postgresql"
    joined = "string_agg(r.address, ', ' ORDER BY r.id)" if is_postgres else "group_concat(r.address, ', ')"
    op.execute(
        f"UPDATE outbound_emails SET to_addresses = coalesce((SELECT {joined} FROM outbound_recipients r"  # noqa: S608  (our own text)
        " WHERE r.tenant_id = outbound_emails.tenant_id AND r.email_id = outbound_emails.id), '')"
    )
    if is_postgres:
        for table in TENANTS_TABLES:
            for statement in row_level_security(table):
                op.execute(statement)


def create_tables() -> None:
    """Each row is a tenant's."""
    op.create_table(
        "run_secrets",
        sa.Column("run_id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_run_secrets_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "run_id", name="pk_run_secrets"),
    )
    op.create_table(
        "mail_templates",
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("name", sa.String(length=30), nullable=False),
        sa.Column("locale", sa.String(length=35), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("html", sa.Text(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_mail_templates_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "name", "locale", name="pk_mail_templates"),
    )
    op.create_table(
        "mail_settings",
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("client_id", Id, nullable=True),
        sa.Column("sender_name", sa.String(length=200), nullable=True),
        sa.Column("sender_address", sa.String(length=320), nullable=True),
        sa.Column("locale", sa.String(length=35), nullable=True),
        sa.Column("app_name", sa.String(length=100), nullable=True),
        sa.Column("link_base_url", sa.String(length=500), nullable=True),
        sa.Column("verification_path", sa.String(length=200), nullable=True),
        sa.Column("password_reset_path", sa.String(length=200), nullable=True),
        sa.Column("accent_color", sa.String(length=7), nullable=True),
        sa.Column("verification_expires_hours", sa.Integer(), nullable=True),
        sa.Column("password_reset_expires_minutes", sa.Integer(), nullable=True),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_mail_settings_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_mail_settings"),
    )
