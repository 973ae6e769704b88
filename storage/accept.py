"""The statement that accepts a run, built once for each dialect: building it anew for every run cost more than executing it."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import bindparam, func
from sqlalchemy.dialects import postgresql, sqlite

from storage.expressions import db_now, db_now_plus
from storage.models import TaskRun
from storage.states import State
from storage.types import UtcDateTime

PLAIN = (
    "id",
    "tenant_id",
    "user_id",
    "task",
    "queue",
    "priority",
    "args",
    "waiting_for",
    "max_attempts",
    "soft_limit",
    "hard_limit",
    "unique_key",
    "idempotency_key",
    "request_hash",
    "request_id",
)
"""Columns that are given as they are; beside them come `at` or `delay`, `grace`, `ends_at` or `ends_in` (seconds)."""


@cache
def accept_statement(dialect: str) -> Any:
    """INSERT ... ON CONFLICT DO NOTHING RETURNING id. All times are the database's."""
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    table = TaskRun.__table__
    due = func.coalesce(bindparam("at", type_=UtcDateTime()), db_now_plus(bindparam("delay")), type_=UtcDateTime())
    return (
        insert(table)  # type: ignore[arg-type]
        .values(
            **{name: bindparam(name) for name in PLAIN},
            state=State.PENDING,
            attempt=0,
            fence=0,
            eta=due,
            publish_at=func.coalesce(due, db_now_plus(bindparam("grace")), type_=UtcDateTime()),
            expires_at=func.coalesce(bindparam("ends_at", type_=UtcDateTime()), db_now_plus(bindparam("ends_in")), type_=UtcDateTime()),
            created_at=db_now(),
        )
        .on_conflict_do_nothing()
        .returning(table.c.id)
    )
