"""Clean-ups on both databases: what is old goes in batches, what somebody still needs stays."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

import actors
from actors.cleanup import cleanup_old_sessions, cleanup_stale_results
from core.clock import now
from core.ids import new_id
from core.tenancy import SYSTEM, Identity, acting_as
from storage.models import DashboardSession, EmailMessage, EmailSource, ServiceHealth, TaskAttempt, TaskRun, WorkerProcess
from storage.repositories import history
from storage.repositories.history import History, Place
from storage.repositories.tenants import ApiKeys
from tests.toys import Record

assert actors.broker  # declares the tasks


def ended(record: Record, who: Identity, hours_ago: float, state: str = "SUCCESS", **columns: Any) -> str:
    """A run that ended so long ago, with a result and an attempt."""
    moment, run_id = now() - timedelta(hours=hours_ago), columns.pop("id", None) or new_id()
    given = {"result": {"x": 1}, "finished_at": moment, "created_at": moment} | columns
    row = TaskRun(id=run_id, tenant_id=who.tenant_id, task="t", queue="default", args={}, state=state, max_attempts=1, **given)
    with record.session() as session:
        session.add(row)
        session.add(TaskAttempt(run_id=run_id, fence=1, tenant_id=who.tenant_id, attempt=1, state=state))
    return run_id


def live(record: Record, who: Identity, state: str = "PENDING", **columns: Any) -> str:
    return ended(record, who, 0, state, result=None, finished_at=None, **columns)


def results(record: Record) -> dict[str, Any]:
    with record.session() as session:
        return {run.id: run.result for run in session.query(TaskRun)}


def clean(record: Record) -> dict[str, Any]:
    with acting_as(SYSTEM):
        return dict(cleanup_stale_results.fn())


def test_results_are_cleared_after_their_time_and_their_runs_stay(record: Record) -> None:
    old, fresh = ended(record, record.people.ann, 2), ended(record, record.people.gus, 0.5)
    found = clean(record)
    assert (found["status"], found["cleared_count"], found["deleted_count"], found["has_more"]) == ("success", 1, 0, False)
    assert results(record) == {old: None, fresh: {"x": 1}}


def test_what_ended_before_the_history_goes_with_its_attempts(record: Record) -> None:
    month = 31 * 24
    for state in ("SUCCESS", "REVOKED", "FAILURE"):  # a failure that was purged from the dead letters
        ended(record, record.people.ann, month, state, result=None)
    kept = ended(record, record.people.ann, 29 * 24, result=None)
    dead = ended(record, record.people.ann, month, "FAILURE", result=None, dead_lettered_at=now())
    waiting = live(record, record.people.gus, created_at=now() - timedelta(days=60))
    assert clean(record)["deleted_count"] == 3
    with record.session() as session:
        assert {run.id for run in session.query(TaskRun)} == {kept, dead, waiting}
        assert {attempt.run_id for attempt in session.query(TaskAttempt)} == {kept, dead, waiting}


@pytest.mark.parametrize("state", ["PENDING", "STARTED", "RETRY"])
def test_what_a_live_run_follows_is_spared(record: Record, state: str) -> None:
    ann, month, group = record.people.ann, 31 * 24, new_id()
    before = ended(record, ann, month)
    ended(record, ann, month, result=None)  # nobody follows this one
    members = [ended(record, ann, month, group_id=group), ended(record, ann, month, "FAILURE", result=None, group_id=group)]
    live(record, ann, state, after_run_id=before)
    callback = live(record, ann, state, after_group_id=group, waiting_for="run" if state == "PENDING" else None)
    found = clean(record)
    assert (found["cleared_count"], found["deleted_count"]) == (0, 1)
    assert {before, *members} <= set(results(record))
    with record.session() as session:
        session.query(TaskRun).filter(TaskRun.state == state).update({"state": "SUCCESS", "finished_at": now()})
    found = clean(record)
    assert (found["cleared_count"], found["deleted_count"]) == (2, 3)
    assert callback in results(record)


def test_batches_go_on_where_the_last_one_ended(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "BATCH", 2)
    first = ended(record, record.people.ann, 50)
    live(record, record.people.ann, after_run_id=first)
    moment = now() - timedelta(hours=40)
    for _ in range(4):  # all at the same moment, as a statement over many rows writes them
        ended(record, record.people.ann, 0, finished_at=moment)
    with record.session() as session:
        steps, place = [], Place()
        while place is not None:
            step = History(session).clear_results(3600, place)
            steps.append(step.changed)
            place = step.goes_on  # type: ignore[assignment]
    assert steps == [1, 2, 1]
    assert sum(result is not None for result in results(record).values()) == 1


@pytest.mark.parametrize("database", ["postgres"], indirect=True)  # SQLite has one writer
def test_a_run_that_somebody_else_has_locked_is_passed_over(record: Record) -> None:
    locked, free = ended(record, record.people.ann, 2), ended(record, record.people.ann, 2)
    with record.engine.begin() as connection:
        connection.execute(text("SELECT set_config('mailroom.is_system', 'on', true)"))
        connection.execute(text("SELECT 1 FROM task_runs WHERE id = :id FOR UPDATE"), {"id": locked})
        assert clean(record)["cleared_count"] == 1
    assert results(record) == {locked: {"x": 1}, free: None}


def test_what_there_is_no_time_for_is_told(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    ended(record, record.people.ann, 2)
    monkeypatch.setattr("actors.cleanup.BUDGET_SECONDS", -1.0)
    assert clean(record)["has_more"] is True


def test_checks_sources_and_workers_go_when_they_are_old(record: Record) -> None:
    old = now() - timedelta(days=8)
    with record.session() as session:
        for moment in (old, now()):
            session.add(ServiceHealth(checked_at=moment, component="database", status="healthy", since=moment))
        facts = {"host": "h", "pid": 1, "threads": 1, "queues": []}
        session.add_all([WorkerProcess(id="gone", heartbeat_at=old, **facts), WorkerProcess(id="here", **facts)])
    assert clean(record)["checks_deleted"] == 1
    with record.session() as session:
        assert [worker.id for worker in session.query(WorkerProcess)] == ["here"]
        assert session.query(ServiceHealth).count() == 1
        assert session.query(EmailSource).count() == session.query(EmailMessage).count() == 0


def test_sessions_go_when_they_have_expired(record: Record) -> None:
    with record.session() as session:
        keys = ApiKeys(session)
        caller = keys.authenticate(keys.create(record.people.acme.tenant_id, "k"))
        assert caller is not None
        tokens = [keys.open_session(caller)[0] for _ in range(2)]
        session.query(DashboardSession).filter(DashboardSession.digest == history_digest(tokens[0])).update(
            {"expires_at": now() - timedelta(minutes=1)}
        )
    with acting_as(SYSTEM):
        assert dict(cleanup_old_sessions.fn()) == {"status": "success", "deleted_count": 1, "has_more": False}
    with record.session() as session:
        assert ApiKeys(session).resume_session(tokens[0]) is None
        assert ApiKeys(session).resume_session(tokens[1]) is not None


def history_digest(token: str) -> str:
    """As the record keeps a session's token."""
    import hashlib

    return hashlib.sha256(token.encode()).hexdigest()
