"""Keys and ticks: what must happen once happens once, however many ask for it at the same moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from core.errors import InvalidInputError
from core.tenancy import SYSTEM, acting_as
from runs.control import enqueue_by_name
from scheduler.loop import Scheduler
from storage.models import Schedule, ScheduleTick, TaskRun
from storage.repositories.schedules import Schedules
from tests.conformance.conftest import World
from tests.toys import together


def test_a_unique_key_returns_the_live_run(running: World) -> None:
    held = running.enqueue(running.toys.hold.options(unique_key="k"))
    running.wait_for(held, "STARTED")
    assert running.enqueue(running.toys.hold.options(unique_key="k")) == held
    other_tenant = running.enqueue(running.toys.hold.options(unique_key="k"), identity=running.people.globex)
    other_task = running.enqueue(running.toys.add.options(unique_key="k"), x=1)
    assert len({held, other_tenant, other_task}) == 3
    running.toys.gate.set()
    running.wait_for(held)
    assert running.enqueue(running.toys.hold.options(unique_key="k")) != held  # it is not live any more


def test_of_eight_that_enqueue_with_one_key_at_once_one_does(world: World) -> None:
    ids = together(*[lambda: world.enqueue(world.toys.add.options(unique_key="k"), x=1)] * 8)
    assert len(set(ids)) == 1
    assert world.count(TaskRun) == 1
    world.start_worker()
    world.wait_for(ids[0])
    world.drained()
    assert world.toys.ran == [(1, 1)]


def test_of_eight_that_send_one_request_at_once_one_is_recorded(world: World) -> None:
    def request() -> tuple[str, bool]:
        with world.session(world.people.acme) as session:
            accepted = enqueue_by_name(session, "add", {"x": 1}, idempotency_key="once")
            return accepted.run_id, accepted.is_new

    answers = together(*[request] * 8)
    assert len({run_id for run_id, _ in answers}) == 1
    assert [is_new for _, is_new in answers].count(True) == 1
    assert world.count(TaskRun) == 1


def test_an_idempotency_key_is_for_one_request_of_one_tenant_for_ever(running: World) -> None:
    with running.session(running.people.acme) as session:
        first = enqueue_by_name(session, "add", {"x": 1}, idempotency_key="once").run_id
    running.wait_for(first)
    with running.session(running.people.acme) as session:
        again = enqueue_by_name(session, "add", {"x": 1}, idempotency_key="once")
        assert (again.run_id, again.is_new) == (first, False)
    with running.session(running.people.globex) as session:
        assert enqueue_by_name(session, "add", {"x": 1}, idempotency_key="once").is_new
    with pytest.raises(InvalidInputError, match="different request"), running.session(running.people.acme) as session:
        enqueue_by_name(session, "add", {"x": 2}, idempotency_key="once")


def test_many_schedulers_start_one_run_for_each_minute(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)]
    monkeypatch.setattr(Schedules, "database_time", lambda _self: clock[0])
    schedulers = [Scheduler(world.broker, world.engine) for _ in range(2)]
    together(*[scheduler.declare for scheduler in schedulers])

    def plain_periodiq() -> None:
        with acting_as(SYSTEM):
            world.toys.tick.send_with_options(scheduled_at=clock[0].isoformat())

    for _ in range(15):
        clock[0] += timedelta(minutes=1)
        together(*[lambda each=each: each.tick() and None for each in schedulers], plain_periodiq)
    with world.session() as session:
        ticks = list(session.scalars(select(ScheduleTick).order_by(ScheduleTick.minute)))
    assert [tick.minute for tick in ticks] == [datetime(2026, 3, 1, 12, minute, tzinfo=UTC) for minute in range(1, 16)]
    assert world.count(TaskRun) == 15
    world.publish_all()
    world.start_worker()
    for tick in ticks:
        assert world.wait_for(tick.run_id).state == "SUCCESS"
    assert world.toys.ran == ["tick"] * 15


def test_minutes_that_passed_without_a_scheduler_are_made_up_for_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)]
    monkeypatch.setattr(Schedules, "database_time", lambda _self: clock[0])
    scheduler = Scheduler(world.broker, world.engine)
    scheduler.declare()
    scheduler.tick()
    assert world.count(TaskRun) == 0  # it begins with the minute after
    clock[0] += timedelta(minutes=45)
    scheduler.tick()
    scheduler.tick()
    with world.session() as session:
        (tick,) = session.scalars(select(ScheduleTick))
        assert tick.minute == datetime(2026, 3, 1, 12, 45, tzinfo=UTC)
    assert world.count(TaskRun) == 1


def test_a_paused_schedule_fires_nothing_and_makes_up_for_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)]
    monkeypatch.setattr(Schedules, "database_time", lambda _self: clock[0])
    scheduler = Scheduler(world.broker, world.engine)
    scheduler.declare()
    for paused in (True, False):
        with world.session() as session:
            Schedules(session).set_paused("tick", paused=paused)
        clock[0] += timedelta(minutes=5 if paused else 0)
        scheduler.tick()
    assert world.count(TaskRun) == 0
    with world.session() as session:
        assert session.get_one(Schedule, "tick").checked_until >= Schedules(session).database_time() - timedelta(minutes=1)
