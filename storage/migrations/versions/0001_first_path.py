"""The tables of the first whole path: tenants, runs, schedules, mail accounts, messages, outbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from core.tenancy import SYSTEM_TENANT
from storage.expressions import db_now
from storage.postgres import row_level_security
from storage.types import Id, Json, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TENANTS_TABLES = [
    "task_runs",
    "users",
    "api_keys",
    "email_clients",
    "task_attempts",
    "email_folders",
    "outbound_emails",
    "sessions",
    "email_messages",
    "outbound_recipients",
    "email_attachments",
]


def upgrade() -> None:
    """Forward only: a release that needs the old schema is an older release on a restored backup."""
    create_tables()
    tenants = sa.table(
        "tenants", sa.column("id", Id), sa.column("name"), sa.column("is_active", sa.Boolean), sa.column("created_at", UtcDateTime())
    )
    op.execute(tenants.insert().values(id=SYSTEM_TENANT, name="system", is_active=True, created_at=db_now()))
    if op.get_bind().dialect.name == "postgresql":
        for table in TENANTS_TABLES:
            for statement in row_level_security(table):
                op.execute(statement)
        for statement in row_level_security("tenants", column="id"):
            op.execute(statement)


def create_tables() -> None:
    """As the models stood at this revision."""

    op.create_table(
        "schedule_ticks",
        sa.Column("task", sa.String(length=200), nullable=False),
        sa.Column("minute", UtcDateTime(), nullable=False),
        sa.Column("run_id", Id, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("task", "minute", name="pk_schedule_ticks"),
    )
    op.create_index("ix_schedule_ticks_created_at", "schedule_ticks", ["created_at"], unique=False)
    op.create_table(
        "schedules",
        sa.Column("task", sa.String(length=200), nullable=False),
        sa.Column("cron", sa.String(length=100), nullable=False),
        sa.Column("is_paused", sa.Boolean(), nullable=False),
        sa.Column("checked_until", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("task", name="pk_schedules"),
    )
    op.create_table(
        "tenants",
        sa.Column("id", Id, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tenants"),
        sa.UniqueConstraint("name", name="uq_tenants_name"),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("threads", sa.Integer(), nullable=False),
        sa.Column("queues", Json, nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("heartbeat_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )
    op.create_table(
        "task_runs",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("user_id", Id, nullable=True),
        sa.Column("task", sa.String(length=200), nullable=False),
        sa.Column("queue", sa.String(length=100), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("args", Json, nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("waiting_for", sa.String(length=10), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("worker_id", sa.String(length=100), nullable=True),
        sa.Column("soft_limit", sa.Double(), nullable=True),
        sa.Column("hard_limit", sa.Double(), nullable=True),
        sa.Column("unique_key", sa.String(length=200), nullable=True),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("request_hash", sa.String(length=64), nullable=True),
        sa.Column("request_id", sa.String(length=128), nullable=True),
        sa.Column("result", Json, nullable=True),
        sa.Column("error_type", sa.String(length=200), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("reason", sa.String(length=50), nullable=True),
        sa.Column("progress", Json, nullable=True),
        sa.Column("eta", UtcDateTime(), nullable=True),
        sa.Column("expires_at", UtcDateTime(), nullable=True),
        sa.Column("publish_at", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.Column("dead_lettered_at", UtcDateTime(), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_task_runs_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_task_runs"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_task_runs_tenant_id_id"),
        postgresql_with={"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.05},
    )
    op.create_index("ix_task_runs_all_newest", "task_runs", ["created_at", "id"], unique=False)
    op.create_index("ix_task_runs_newest", "task_runs", ["tenant_id", "created_at", "id"], unique=False)
    op.create_index(
        "ix_task_runs_publish_at",
        "task_runs",
        ["publish_at"],
        unique=False,
        postgresql_where=sa.text("publish_at IS NOT NULL"),
        sqlite_where=sa.text("publish_at IS NOT NULL"),
    )
    op.create_index("ix_task_runs_queue_state", "task_runs", ["queue", "state"], unique=False)
    op.create_index(
        "ix_task_runs_started",
        "task_runs",
        ["worker_id"],
        unique=False,
        postgresql_where=sa.text("state = 'STARTED'"),
        sqlite_where=sa.text("state = 'STARTED'"),
    )
    op.create_index("uq_task_runs_idempotency_key", "task_runs", ["tenant_id", "idempotency_key"], unique=True)
    op.create_index(
        "uq_task_runs_live_unique_key",
        "task_runs",
        ["tenant_id", "task", "unique_key"],
        unique=True,
        postgresql_where=sa.text("unique_key IS NOT NULL AND state IN ('PENDING', 'STARTED', 'RETRY')"),
        sqlite_where=sa.text("unique_key IS NOT NULL AND state IN ('PENDING', 'STARTED', 'RETRY')"),
    )
    op.create_table(
        "users",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_users_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_users_tenant_id_id"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_users_tenant_id_name"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("user_id", Id, nullable=True),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("is_admin", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=True),
        sa.Column("revoked_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "user_id"], ["users.tenant_id", "users.id"], name="fk_api_keys_tenant_id_user_id_users", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_api_keys_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
    )
    op.create_index("ix_api_keys_tenant_id", "api_keys", ["tenant_id"], unique=False)
    op.create_table(
        "email_clients",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("user_id", Id, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("email", sa.String(length=320), nullable=False),
        sa.Column("imap_host", sa.String(length=255), nullable=True),
        sa.Column("imap_port", sa.Integer(), nullable=True),
        sa.Column("imap_security", sa.String(length=10), nullable=True),
        sa.Column("imap_username", sa.String(length=320), nullable=True),
        sa.Column("imap_password", sa.LargeBinary(), nullable=True),
        sa.Column("smtp_host", sa.String(length=255), nullable=True),
        sa.Column("smtp_port", sa.Integer(), nullable=True),
        sa.Column("smtp_security", sa.String(length=10), nullable=True),
        sa.Column("smtp_username", sa.String(length=320), nullable=True),
        sa.Column("smtp_password", sa.LargeBinary(), nullable=True),
        sa.Column("is_sync_enabled", sa.Boolean(), nullable=False),
        sa.Column("sync_interval", sa.Integer(), nullable=False),
        sa.Column("last_sync_at", UtcDateTime(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("syncing_run_id", Id, nullable=True),
        sa.Column("refused_logins", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "user_id"], ["users.tenant_id", "users.id"], name="fk_email_clients_tenant_id_user_id_users", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_email_clients_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_email_clients"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_email_clients_tenant_id_id"),
    )
    op.create_index("ix_email_clients_due", "email_clients", ["is_sync_enabled", "last_sync_at"], unique=False)
    op.create_index("ix_email_clients_tenant_id_user_id", "email_clients", ["tenant_id", "user_id"], unique=False)
    op.create_table(
        "task_attempts",
        sa.Column("run_id", Id, nullable=False),
        sa.Column("fence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.String(length=100), nullable=True),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("error_type", sa.String(length=200), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("traceback", Json, nullable=True),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "run_id"],
            ["task_runs.tenant_id", "task_runs.id"],
            name="fk_task_attempts_tenant_id_run_id_task_runs",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("run_id", "fence", name="pk_task_attempts"),
    )
    op.create_index("ix_task_attempts_tenant_id_run_id", "task_attempts", ["tenant_id", "run_id"], unique=False)
    op.create_table(
        "email_folders",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("client_id", Id, nullable=False),
        sa.Column("name", sa.String(length=1000), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=True),
        sa.Column("uid_validity", sa.BigInteger(), nullable=True),
        sa.Column("uid_next", sa.BigInteger(), nullable=True),
        sa.Column("highest_modseq", sa.BigInteger(), nullable=True),
        sa.Column("message_count", sa.Integer(), nullable=False),
        sa.Column("synced_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "client_id"],
            ["email_clients.tenant_id", "email_clients.id"],
            name="fk_email_folders_tenant_id_client_id_email_clients",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_email_folders_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_email_folders"),
        sa.UniqueConstraint("tenant_id", "client_id", "name", name="uq_email_folders_tenant_id_client_id_name"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_email_folders_tenant_id_id"),
    )
    op.create_table(
        "outbound_emails",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("user_id", Id, nullable=True),
        sa.Column("client_id", Id, nullable=True),
        sa.Column("run_id", Id, nullable=True),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("sender", sa.String(length=320), nullable=False),
        sa.Column("source", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.String(length=10), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("next_retry_at", UtcDateTime(), nullable=True),
        sa.Column("expires_at", UtcDateTime(), nullable=True),
        sa.Column("sent_at", UtcDateTime(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "client_id"],
            ["email_clients.tenant_id", "email_clients.id"],
            name="fk_outbound_emails_tenant_id_client_id_email_clients",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_outbound_emails_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_outbound_emails"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_outbound_emails_tenant_id_id"),
        sa.UniqueConstraint("tenant_id", "run_id", name="uq_outbound_emails_tenant_id_run_id"),
    )
    op.create_index("ix_outbound_emails_due", "outbound_emails", ["status", "next_retry_at"], unique=False)
    op.create_index("ix_outbound_emails_tenant_id_status", "outbound_emails", ["tenant_id", "status"], unique=False)
    op.create_table(
        "sessions",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("api_key_id", sa.String(length=16), nullable=False),
        sa.Column("csrf_token", sa.String(length=64), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name="fk_sessions_api_key_id_api_keys", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_sessions_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("digest", name="pk_sessions"),
    )
    op.create_index("ix_sessions_expires_at", "sessions", ["expires_at"], unique=False)
    op.create_index("ix_sessions_tenant_id", "sessions", ["tenant_id"], unique=False)
    op.create_table(
        "email_messages",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("client_id", Id, nullable=False),
        sa.Column("folder_id", Id, nullable=False),
        sa.Column("uid_validity", sa.BigInteger(), nullable=False),
        sa.Column("uid", sa.BigInteger(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=True),
        sa.Column("in_reply_to", sa.Text(), nullable=True),
        sa.Column("message_references", Json, nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("sender", Json, nullable=True),
        sa.Column("to_addresses", Json, nullable=False),
        sa.Column("cc_addresses", Json, nullable=False),
        sa.Column("sent_at", UtcDateTime(), nullable=True),
        sa.Column("internal_date", UtcDateTime(), nullable=True),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("flags", Json, nullable=False),
        sa.Column("snippet", sa.Text(), nullable=False),
        sa.Column("body_text", sa.Text(), nullable=True),
        sa.Column("body_html", sa.Text(), nullable=True),
        sa.Column("headers", Json, nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("defects", Json, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "client_id"],
            ["email_clients.tenant_id", "email_clients.id"],
            name="fk_email_messages_tenant_id_client_id_email_clients",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "folder_id"],
            ["email_folders.tenant_id", "email_folders.id"],
            name="fk_email_messages_tenant_id_folder_id_email_folders",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_email_messages_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_email_messages"),
        sa.UniqueConstraint("tenant_id", "folder_id", "uid_validity", "uid", name="uq_email_messages_tenant_id_folder_id_uid_validity_uid"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_email_messages_tenant_id_id"),
    )
    op.create_index("ix_email_messages_newest", "email_messages", ["tenant_id", "client_id", "internal_date", "id"], unique=False)
    op.create_index("ix_email_messages_tenant_id_message_id", "email_messages", ["tenant_id", "message_id"], unique=False)
    op.create_table(
        "outbound_recipients",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("email_id", Id, nullable=False),
        sa.Column("address", sa.String(length=320), nullable=False),
        sa.Column("status", sa.String(length=10), nullable=False),
        sa.Column("reply_code", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "email_id"],
            ["outbound_emails.tenant_id", "outbound_emails.id"],
            name="fk_outbound_recipients_tenant_id_email_id_outbound_emails",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_outbound_recipients_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_outbound_recipients"),
        sa.UniqueConstraint("tenant_id", "email_id", "address", name="uq_outbound_recipients_tenant_id_email_id_address"),
    )
    op.create_table(
        "email_attachments",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant_id", Id, nullable=False),
        sa.Column("user_id", Id, nullable=True),
        sa.Column("email_id", Id, nullable=True),
        sa.Column("part", sa.String(length=100), nullable=True),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("content_type", sa.String(length=255), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("content_id", sa.Text(), nullable=True),
        sa.Column("is_inline", sa.Boolean(), nullable=False),
        sa.Column("stored_filename", sa.String(length=100), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "email_id"],
            ["email_messages.tenant_id", "email_messages.id"],
            name="fk_email_attachments_tenant_id_email_id_email_messages",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_email_attachments_tenant_id_tenants", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_email_attachments"),
        sa.UniqueConstraint("tenant_id", "id", name="uq_email_attachments_tenant_id_id"),
    )
    op.create_index("ix_email_attachments_tenant_id_email_id", "email_attachments", ["tenant_id", "email_id"], unique=False)
