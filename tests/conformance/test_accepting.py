"""An enqueue waits for its session's commit: alone in its transaction it is committed together with other threads', else with the rest."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.errors import TenantError
from core.ids import new_id
from core.settings import get_settings
from core.tenancy import Identity
from runs import intake
from runs.enqueue import enqueue
from storage import intake as accepting
from storage.engine import new_session
from storage.models import TaskRun, Tenant, User
from storage.repositories.controls import Controls
from tests.conformance.conftest import World
from tests.conformance.wires import RedisWire, Wire
from tests.servers.redis import Redis
from tests.toys import together


@pytest.fixture
def wire(redis_server: Redis) -> Wire:
    """One is enough: what follows reaches a broker as everything does."""
    wire = RedisWire(redis_server)
    wire.clean()
    return wire


@contextmanager
def transactions(world: World) -> Iterator[list[object]]:
    """One entry for each transaction that a session begins meanwhile."""
    begun: list[object] = []

    def count(connection: object) -> None:
        begun.append(connection)

    event.listen(world.engine, "begin", count)
    yield begun
    event.remove(world.engine, "begin", count)


def runs_of(session: Session) -> list[str]:
    return list(session.scalars(select(TaskRun.id).order_by(TaskRun.id)))


def test_a_lonely_enqueue_needs_no_transaction_of_its_session(world: World) -> None:
    with transactions(world) as begun, new_session(world.people.acme, world.engine) as session:
        run_id = enqueue(session, world.toys.add, x=1)
        assert begun == []
        session.commit()
        assert len(begun) == (0 if world.engine.dialect.name == "postgresql" else 1)  # the intake's own
    run = world.run(run_id)
    assert (run.tenant_id, run.state, run.waiting_for, run.args) == (world.people.acme.tenant_id, "PENDING", "queue", {"x": 1, "y": 1})
    world.publish_all()
    assert world.wire.depth("default") == 1


def test_nobody_sees_it_before_the_commit_but_its_own_session(world: World) -> None:
    with world.session(world.people.acme) as session:
        first = enqueue(session, world.toys.add, x=1)
        assert world.count(TaskRun) == 0 if world.engine.dialect.name == "postgresql" else True  # SQLite has one writer at a time
        assert runs_of(session) == [first]
        second = enqueue(session, world.toys.add, x=2)
        assert runs_of(session) == [first, second]
    world.publish_all()
    assert world.wire.depth("default") == 2


def test_rows_and_runs_of_a_session_are_committed_together_or_not_at_all(world: World) -> None:
    acme = world.people.acme.tenant_id
    with world.session() as session:
        enqueue(session, world.toys.add.options(tenant=acme), x=1)
        session.add(User(tenant_id=acme, name="carol"))
    assert (world.count(TaskRun), world.count(User)) == (1, 4)
    with world.session() as session:
        enqueue(session, world.toys.add.options(tenant=acme), x=2)
        session.add(User(tenant_id=acme, name="carol"))  # there is one
        with pytest.raises(IntegrityError):
            session.commit()
    assert (world.count(TaskRun), world.count(User)) == (1, 4)
    world.publish_all()
    assert world.wire.depth("default") == 1


@pytest.mark.parametrize("end", ["rollback", "close"])
def test_what_was_given_up_reaches_no_later_transaction_of_the_session(world: World, end: str) -> None:
    session = new_session(world.people.acme, world.engine)
    enqueue(session, world.toys.add, x=1)
    getattr(session, end)()
    kept = enqueue(session, world.toys.lazy, text="this one stays")
    session.commit()
    session.close()
    with world.session() as looking:
        assert runs_of(looking) == [kept]
    world.publish_all()
    assert world.wire.depth("default") == 0


def test_what_is_enqueued_in_a_savepoint_goes_with_it(world: World) -> None:
    with new_session(world.people.acme, world.engine) as session:
        before = enqueue(session, world.toys.add, x=1)
        inside = session.begin_nested()
        enqueue(session, world.toys.add, x=2)
        inside.rollback()
        after = enqueue(session, world.toys.add, x=3)
        session.commit()
    with world.session() as looking:
        assert runs_of(looking) == sorted([before, after])


def test_a_tenant_that_is_none_is_refused_at_the_commit_and_nobody_else_is(world: World) -> None:
    def nobody() -> str:
        with pytest.raises(IntegrityError):
            world.enqueue(world.toys.add, identity=Identity(new_id()), x=1)
        return ""

    made = together(*[lambda: world.enqueue(world.toys.add, x=1)] * 6, nobody)
    assert world.count(TaskRun) == len(set(made) - {""}) == 6


def test_a_session_enqueues_for_nobody_else(world: World) -> None:
    foreign = world.toys.add.options(tenant=world.people.globex.tenant_id)
    with world.session(world.people.acme) as session, pytest.raises(TenantError):
        enqueue(session, foreign, x=1)
    assert world.count(TaskRun) == 0


def test_many_of_one_session_are_one_transaction_its_own_if_they_are_very_many(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MOST_ALONE", 10)
    asked: list[int] = []
    accept = world.broker.intake.accept

    def accepted(runs: intake.Runs) -> None:
        asked.append(len(runs))
        accept(runs)

    monkeypatch.setattr(world.broker.intake, "accept", accepted)
    for number in (10, 11):
        with world.session(world.people.acme) as session:
            for x in range(number):
                enqueue(session, world.toys.add, x=x)
    assert asked == [10]
    assert world.count(TaskRun) == 21
    world.publish_all()
    assert world.wire.depth("default") == 21


@pytest.mark.parametrize("is_alone", [True, False])
def test_what_a_run_waits_for_is_the_same_either_way(world: World, is_alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = get_settings().model_copy(update={"tenant_window": 3})
    for module in ("runs.enqueue", "runs.intake"):
        monkeypatch.setattr(f"{module}.get_settings", lambda: settings)

    def enqueued(identity: Identity) -> str:
        with world.session(identity) as session:
            if not is_alone:
                session.connection()
            return enqueue(session, world.toys.add.options(max_attempts=7), x=1)

    with world.session() as session:
        Controls(session).pause("tenant", world.people.globex.tenant_id)
    runs = [world.run(enqueued(who)) for who in (world.people.globex, *[world.people.acme] * 4)]
    assert [run.waiting_for for run in runs] == ["pause", *["queue"] * 4]
    assert [run.publish_at is not None for run in runs] == [False, True, True, True, False]
    assert {run.max_attempts for run in runs} == {7}


def test_a_run_s_thread_leaves_it_to_another(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its limit may interrupt it at any moment, in the middle of the conversation that all others need."""
    threads: list[str] = []
    accept = world.broker.intake._do

    def done(asked: Sequence[intake.Runs]) -> list[None]:
        threads.append(threading.current_thread().name)
        return accept(asked)

    monkeypatch.setattr(world.broker.intake, "_do", done)
    world.enqueue(world.toys.add, x=1)
    monkeypatch.setattr(intake, "current_run", object)
    world.enqueue(world.toys.add, x=1)
    assert threads == [threading.current_thread().name, "intake"]


def test_a_server_that_was_started_anew_costs_nobody_a_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "TRUSTED_SECONDS", -1.0)  # it was long ago
    world.enqueue(world.toys.add, x=1)
    world.engine.dispose()
    if world.engine.dialect.name == "postgresql":
        with world.session() as session:
            others = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = current_user AND pid <> pg_backend_pid()")
            assert session.execute(others).all()
    world.enqueue(world.toys.add, x=2)
    assert world.count(TaskRun) == 2


def test_tenants_stay_apart(world: World) -> None:
    together(*[lambda who=who: world.enqueue(world.toys.whoami, identity=who) for who in (world.people.ann, world.people.gus)] * 4)
    world.start_worker()
    with world.session() as session:
        ids = runs_of(session)
        tenants = set(session.scalars(select(Tenant.id)))
    for run in map(world.wait_for, ids):
        assert run.tenant_id in tenants
        assert run.result == [run.tenant_id, run.user_id]
    with world.session(world.people.gus) as session:
        mine = list(session.scalars(select(TaskRun.id).where(TaskRun.tenant_id == world.people.gus.tenant_id)))
    assert len(mine) == 4


def test_accepting_reads_one_held_run_however_many_there_are(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant's backlog must not slow down everybody's calls; the plan is made while hardly anything waits, and kept."""
    prepared = world.broker.intake._prepared
    if prepared is None:
        return  # SQLite plans every statement anew
    settings = get_settings().model_copy(update={"tenant_window": 1})
    monkeypatch.setattr(intake, "get_settings", lambda: settings)
    for x in range(20):
        world.enqueue(world.toys.add, x=x)
    plain = {"task": "t", "queue": "default", "priority": 5, "args": {}, "max_attempts": 3}
    lone = json.dumps([{"place": 0, "id": new_id(), "tenant_id": world.people.acme.tenant_id, **plain}])
    with prepared._prepared.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("EXPLAIN (ANALYZE, COSTS OFF) EXECUTE mailroom_accept (%s, 1, 30)", [lone])
        plan = [line for (line,) in cursor.fetchall()]
        cursor.execute("ROLLBACK")
    held = [line for line in plan if "ix_task_runs_held" in line]
    assert held
    assert all("rows=1 " in line for line in held), plan
