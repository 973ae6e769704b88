"""Statements that are planned once: made while the tables are empty, the plan serves when they no longer are."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import text

import storage.postgres
from core.ids import new_id
from storage.postgres import BEFORE_ANY_ID, PostgresRecord
from tests.toys import Record

ENTERED = re.compile(r"Scan using (\w+) on task_runs run(?:_\d+)?\b[^\n]*\n\s*Index Cond:")


def plan_of_a_turn(record: PostgresRecord, tenant_id: str) -> str:
    """As the server keeps it for this connection."""
    values = "'[]', ARRAY[%s]::uuid[], ARRAY[%s]::uuid[], 'me', '{}', '{default}', ARRAY[%s]::uuid[], '{1}', ARRAY[%s]::uuid[], '{8}'"
    with record.cursor() as cursor:
        cursor.execute(f"EXPLAIN EXECUTE mailroom_turn ({values})", (new_id(), tenant_id, tenant_id, BEFORE_ANY_ID))
        return "\n".join(line for (line,) in cursor.fetchall())


@pytest.mark.parametrize("has_statistics", [False, True])
def test_a_turn_enters_the_runs_by_their_ids_however_few_there_were(record: Record, *, has_statistics: bool) -> None:
    if record.engine.dialect.name != "postgresql":
        return  # SQLite plans every statement anew
    if has_statistics:
        with record.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE task_runs"))
    turns = PostgresRecord(record.engine)
    plan = plan_of_a_turn(turns, record.people.acme.tenant_id)
    turns.close()
    outcomes, held, claims = ENTERED.findall(plan)  # a scan without a condition would read every run there ever was
    assert held == "ix_task_runs_held"
    assert {outcomes, claims} <= {"pk_task_runs", "uq_task_runs_tenant_id_id"}, plan


def test_a_plan_is_kept_for_a_while(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    if record.engine.dialect.name != "postgresql":
        return
    turns, acme = PostgresRecord(record.engine), record.people.acme.tenant_id
    first = plan_of_a_turn(turns, acme)
    with turns.cursor() as cursor:
        cursor.execute("SET enable_seqscan = on; SET enable_indexscan = off; SET enable_indexonlyscan = off")
    assert plan_of_a_turn(turns, acme) == first
    monkeypatch.setattr(storage.postgres, "PLAN_SECONDS", 0)
    assert "Seq Scan on task_runs" in plan_of_a_turn(turns, acme)
    turns.close()
