"""Nothing of a paused queue, task or tenant starts, nothing of it is lost, and every run of it runs once when the pause is over."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import select

from core.errors import InvalidInputError, NotFoundError, TenantError
from core.ids import new_id
from runs.enqueue import enqueue_many
from runs.relay import Relay, RelayHooks
from storage import pauses
from storage.expressions import db_now, db_now_plus
from storage.models import Pause, TaskAttempt, TaskRun
from storage.record import open_record
from storage.repositories.controls import Controls
from tests.conformance.conftest import World
from tests.conformance.wires import RedisWire, Wire
from tests.servers.redis import Redis
from tests.toys import wait_until


@pytest.fixture
def wire(valkey: Redis) -> Wire:
    """One broker is enough: a pause is kept by the record."""
    found = RedisWire(valkey)
    found.clean()
    return found


def pause(world: World, kind: str, name: str) -> datetime:
    """Returns the database's time when the pause had been committed."""
    with world.session() as session:
        Controls(session).pause(kind, name)
    with world.session() as session:
        return session.scalars(select(db_now())).one()


def resume(world: World, kind: str, name: str) -> None:
    with world.session() as session:
        Controls(session).resume(kind, name)


def waiting(world: World) -> Counter[Any]:
    """What the runs that have not ended wait for."""
    with world.session() as session:
        rows = session.execute(select(TaskRun.state, TaskRun.waiting_for).where(TaskRun.state.in_(["PENDING", "RETRY"]))).all()
    return Counter(row.waiting_for for row in rows)


def how_they_ended(world: World) -> Counter[tuple[str, int]]:
    """State and attempts spent, of all runs."""
    with world.session() as session:
        return Counter((row.state, row.attempt) for row in session.execute(select(TaskRun.state, TaskRun.attempt)))


def started_after(world: World, moment: datetime) -> list[str]:
    with world.session() as session:
        return [str(row) for row in session.scalars(select(TaskAttempt.run_id).where(TaskAttempt.started_at > moment))]


def many(world: World, number: int) -> list[str]:
    with world.session(world.people.acme) as session:
        return enqueue_many(session, world.toys.add, [{"x": x} for x in range(number)])


def test_nothing_of_a_paused_queue_starts_and_all_of_it_runs_once_when_it_is_resumed(world: World) -> None:
    ids = many(world, 2000)
    world.publish_all()
    assert {world.run(ids[0]).publish_at is None, world.run(ids[-1]).publish_at is None} == {True, False}  # published and held
    world.start_worker()
    wait_until(lambda: len(world.toys.ran) > 20)
    paused_at = pause(world, "queue", "default")
    wait_until(lambda: set(waiting(world)) == {"pause"})
    world.drained()
    late = world.enqueue(world.toys.add, x=2000)
    other = world.enqueue(world.toys.urgent, text="another queue")
    assert world.wait_for(other).state == "SUCCESS"
    assert set(started_after(world, paused_at)) == {other}
    paused = world.run(late)
    assert (paused.state, paused.waiting_for, paused.publish_at, paused.attempt) == ("PENDING", "pause", None, 0)
    assert 20 < len(world.toys.ran) < 2000
    resume(world, "queue", "default")
    wait_until(lambda: not waiting(world) and set(how_they_ended(world)) == {("SUCCESS", 1)}, 30.0)
    assert how_they_ended(world) == {("SUCCESS", 1): 2002}
    assert {world.toys.calls[run_id] for run_id in (*ids, late)} == {1}


def test_a_paused_task_does_not_keep_the_others_of_its_busy_queue(world: World) -> None:
    first = many(world, 30)
    refused = [world.enqueue(world.toys.snooze, delay=0.0) for _ in range(10)]
    rest = many(world, 30)
    pause(world, "task", "snooze")
    assert waiting(world) == {"pause": 10, "queue": 60}
    world.start_worker()
    assert {world.wait_for(run_id).state for run_id in (*first, *rest)} == {"SUCCESS"}
    assert {world.toys.calls[run_id] for run_id in refused} == {0}
    resume(world, "task", "snooze")
    assert {world.wait_for(run_id).state for run_id in refused} == {"SUCCESS"}


def test_a_paused_tenant_does_not_keep_the_others(running: World) -> None:
    pause(running, "tenant", running.people.acme.tenant_id)
    ours = running.enqueue(running.toys.add, x=1)
    theirs = running.enqueue(running.toys.add, identity=running.people.globex, x=2)
    assert running.wait_for(theirs).state == "SUCCESS"
    assert running.run(ours).waiting_for == "pause"
    resume(running, "tenant", running.people.acme.tenant_id)
    assert running.wait_for(ours).state == "SUCCESS"


def test_nothing_starts_although_nobody_has_turned_it_yet(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "turn_waiting", lambda *_: 0)
    run_id = world.enqueue(world.toys.add, x=1)
    pause(world, "task", "add")
    assert world.run(run_id).waiting_for == "queue"
    record = open_record(world.engine)
    assert record.turn("me", [], {run_id: world.people.acme.tenant_id}, ())[1] == {}
    record.close()


def test_what_slipped_past_a_pause_is_turned_by_the_relay(world: World) -> None:
    pause(world, "queue", "default")
    run_id = world.enqueue(world.toys.add, x=1)
    world.set_run(run_id, waiting_for="queue", publish_at=db_now())  # as if recorded by a transaction that did not see the pause
    world.relay_turn()
    assert (world.run(run_id).waiting_for, world.run(run_id).publish_at) == ("pause", None)
    world.set_run(run_id, waiting_for="queue", publish_at=None)
    world.relay_turn()
    assert world.run(run_id).waiting_for == "queue"  # held, and swept a moment ago
    with world.session() as session:
        session.get_one(Pause, ("queue", "default")).swept_at = session.scalars(select(db_now_plus(-61.0))).one()
    world.relay_turn()
    assert world.run(run_id).waiting_for == "pause"


def test_a_retry_that_becomes_due_while_its_task_is_paused_waits_and_loses_no_attempt(world: World) -> None:
    run_id = world.enqueue(world.toys.add, x=1)
    world.set_run(run_id, state="RETRY", waiting_for="eta", attempt=1, eta=db_now_plus(60.0), publish_at=db_now_plus(60.0))
    pause(world, "task", "add")
    world.relay_turn()
    assert world.run(run_id).waiting_for == "eta"  # its time has not come
    world.set_run(run_id, eta=db_now(), publish_at=db_now())
    world.start_worker()
    wait_until(lambda: world.run(run_id).waiting_for == "pause")
    run = world.run(run_id)
    assert (run.state, run.attempt, run.publish_at) == ("RETRY", 1, None)
    resume(world, "task", "add")
    assert (world.wait_for(run_id).state, world.run(run_id).attempt) == ("SUCCESS", 2)


def test_a_run_whose_time_has_not_come_waits_for_that_again(world: World) -> None:
    pause(world, "queue", "default")
    run_id = world.enqueue(world.toys.add.options(delay=60.0), x=1)
    assert world.run(run_id).waiting_for == "pause"
    resume(world, "queue", "default")
    run = world.run(run_id)
    assert (run.waiting_for, run.publish_at) == ("eta", run.eta)


def test_a_run_that_two_pauses_are_in_the_way_of_waits_for_both(world: World) -> None:
    run_id = world.enqueue(world.toys.add, x=1)
    for kind, name in (("queue", "default"), ("task", "add"), ("queue", "default")):
        pause(world, kind, name)
    with world.session() as session:
        assert [(row.kind, row.name) for row in Controls(session).pauses()] == [("queue", "default"), ("task", "add")]
    resume(world, "queue", "default")
    assert world.run(run_id).waiting_for == "pause"
    world.relay_turn()
    assert world.run(run_id).waiting_for == "pause"
    resume(world, "task", "add")
    assert (world.run(run_id).waiting_for, world.run(run_id).publish_at) == ("queue", None)


def test_any_relay_goes_on_with_what_a_pause_and_a_resume_began(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    many(world, 25)
    monkeypatch.setattr(pauses.turn_waiting, "__defaults__", (10,))
    pause(world, "queue", "default")
    assert waiting(world) == {"pause": 10, "queue": 15}
    world.relay_turn()
    assert waiting(world) == {"pause": 25}
    monkeypatch.setattr(pauses, "BATCH", 10)
    relay = Relay(world.engine, world.broker.publisher, world.broker.window)
    relay.turn()  # it knows the pause
    resume(world, "queue", "default")
    assert waiting(world) == {"pause": 15, "queue": 10}
    relay.turn()
    assert waiting(world) == {"queue": 25}


def test_a_run_that_was_recorded_as_paused_when_the_pause_was_over_is_found(world: World) -> None:
    run_id = world.enqueue(world.toys.add, x=1)
    world.set_run(run_id, waiting_for="pause", publish_at=None)
    world.relay_turn()
    assert world.run(run_id).waiting_for == "queue"


def test_no_process_empties_itself_for_a_paused_suspect(world: World) -> None:
    offers: list[str] = []
    relay = Relay(world.engine, world.broker.publisher, 200, RelayHooks(on_suspects=lambda: offers.append("alone")))
    run_id = world.enqueue(world.toys.add, x=1)
    world.set_run(run_id, state="RETRY", waiting_for="broker", publish_at=db_now(), is_suspect=True)
    pause(world, "queue", "default")
    relay.turn()
    world.set_run(run_id, waiting_for="broker", publish_at=db_now())  # lost with its worker, after the pause was swept
    relay.turn()
    assert (world.run(run_id).waiting_for, offers) == ("pause", [])
    resume(world, "queue", "default")
    run = world.run(run_id)
    assert (run.waiting_for, run.is_suspect, run.publish_at is not None) == ("broker", True, True)
    relay.turn()
    assert offers == ["alone"]


def test_a_tenant_may_neither_see_nor_set_what_is_the_operators(world: World) -> None:
    with world.session(world.people.acme) as session, pytest.raises(TenantError):
        Controls(session)


def test_what_cannot_be_paused_is_refused(world: World) -> None:
    with world.session() as session:
        controls = Controls(session)
        with pytest.raises(InvalidInputError):
            controls.pause("host", "imap.example.com")
        with pytest.raises(InvalidInputError):
            controls.pause("queue", "")
        for tenant_id in (new_id(), "acme"):
            with pytest.raises(NotFoundError):
                controls.pause("tenant", tenant_id)
        assert controls.pauses() == []
