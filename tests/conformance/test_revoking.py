"""Revoking against claiming on both databases: whoever comes first, a run that is said to be REVOKED never starts."""

from __future__ import annotations

from functools import partial

from core.clock import now
from core.ids import new_id
from runs import control, sweep
from storage.claims import claim
from storage.engine import new_session, system_connection
from storage.models import TaskRun
from storage.repositories.runs import RunFilter
from tests.toys import Record, together

ROUNDS = 12


def a_run(record: Record, **columns: object) -> str:
    run_id = new_id()
    facts = {
        "task": "t",
        "queue": "default",
        "args": {},
        "max_attempts": 1,
        "state": "PENDING",
        "waiting_for": "queue",
        "created_at": now(),
    }
    with record.session() as session:
        session.add(TaskRun(id=run_id, tenant_id=record.people.acme.tenant_id, **{**facts, **columns}))
    return run_id


def claimed(record: Record, *ids: str) -> set[str]:
    with system_connection(record.engine) as connection:
        return set(claim(connection, "w", dict.fromkeys(ids, record.people.acme.tenant_id)))


def test_a_revoke_and_a_claim_at_the_same_moment(record: Record) -> None:
    for _ in range(ROUNDS):
        run_id = a_run(record)

        def revoke(run_id: str = run_id) -> object:
            with record.session(record.people.acme) as session:
                run = control.revoke(session, run_id)
                return run.state, run.ending

        told, also_told, started = together(revoke, revoke, partial(claimed, record, run_id))
        run = record.run(run_id)
        expected = ("STARTED", "revoke") if started else ("REVOKED", None)
        assert told == also_told == (run.state, run.ending) == expected


def test_a_sweep_and_claims_at_the_same_moment(record: Record) -> None:
    ids = [a_run(record) for _ in range(40)]

    def revoke() -> object:
        with new_session(record.people.acme, record.engine) as session:
            return sweep.revoke_many(session, RunFilter(), expect=40)

    done, started = together(revoke, lambda: claimed(record, *ids[:20]) | claimed(record, *ids[20:]))
    runs = [record.run(run_id) for run_id in ids]
    assert isinstance(done, sweep.Revoked)
    assert isinstance(started, set)
    assert (done.revoked, done.marked) == (40 - len(started), len(started))
    assert {run.id for run in runs if run.state == "STARTED" and run.ending == "revoke"} == started
    assert {run.id for run in runs if run.state == "REVOKED"} == set(ids) - started


def test_dead_letters_are_replayed_and_purged_on_both_databases(record: Record) -> None:
    dead = {"state": "FAILURE", "waiting_for": None, "dead_lettered_at": now(), "reason": "crashed"}
    plain, keyed, rival = a_run(record, **dead), a_run(record, **dead, unique_key="k"), a_run(record, **dead, unique_key="k")
    with new_session(record.people.acme, record.engine) as session:
        assert sweep.replay_dead_letters(session, RunFilter(reason="crashed"), expect=3) == sweep.Replayed(2, 1)
    with new_session(record.people.acme, record.engine) as session:
        assert sweep.purge_dead_letters(session, RunFilter(), expect=1) == 1
    assert [record.run(each).state for each in (plain, keyed, rival)] == ["PENDING", "PENDING", "FAILURE"]
    assert record.run(rival).dead_lettered_at is None


def test_what_waits_is_counted_on_both_databases(record: Record) -> None:
    for columns in (
        {"publish_at": now()},
        {},
        {"waiting_for": "eta", "publish_at": now()},
        {"waiting_for": "run"},
        {"waiting_for": "pause"},
    ):
        a_run(record, **columns)
    a_run(record, state="RETRY", waiting_for="eta", publish_at=now())
    a_run(record, state="FAILURE", waiting_for=None, dead_lettered_at=now())
    a_run(record, queue="elsewhere", state="STARTED", waiting_for=None, worker_id="w")
    for identity in (record.people.acme, None):
        with record.session(identity) if identity is not None else record.session() as session:
            stats = {each.name: each for each in control.get_queue_stats(session)}
        assert stats["default"].counts == {"PENDING": 5, "RETRY": 1, "FAILURE": 1}
        assert stats["elsewhere"].counts == {"STARTED": 1}
        assert stats["default"].oldest_seconds is not None
        assert stats["default"].looked_at == 8
