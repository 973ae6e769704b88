"""Whatever is lost on the way (messages, workers, connections, answers), every run ends, and ends once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from brokers.message import Envelope
from storage import dispatch
from storage.claims import claim_suspect
from storage.engine import system_connection
from storage.outcomes import Claim, Outcome
from storage.record import open_record
from storage.states import State
from tests.conformance.conftest import World
from tests.toys import wait_until


def turn(
    world: World, worker: str, *, outcomes: Sequence[Outcome] = (), wanted: Mapping[str, str] | None = None, in_doubt: Sequence[str] = ()
) -> tuple[set[str], dict[str, Claim]]:
    """One turn of a worker's recorder at the record."""
    record = open_record(world.engine)
    try:
        return record.turn(worker, outcomes, wanted or {}, in_doubt)
    finally:
        record.close()


def lost_worker_claims(world: World, run_id: str) -> None:
    """A worker that dies before it has said anything of itself but its claim."""
    _, claimed = turn(world, "lost-worker", wanted={run_id: world.people.acme.tenant_id})
    assert claimed


def test_messages_lost_on_the_broker_are_published_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "PUBLISH_GRACE_SECONDS", 0.2)
    ids = [world.enqueue(world.toys.add, x=number) for number in range(5)]
    world.publish_all()
    wait_until(lambda: world.wire.depth("default") == 5)
    world.wire.lose_everything()
    assert world.wire.depth("default") == 0
    world.start_worker()
    assert {world.wait_for(run_id).state for run_id in ids} == {"SUCCESS"}
    assert sorted(world.toys.ran) == [(number, 1) for number in range(5)]


def test_messages_that_only_wait_long_are_not_published_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "PUBLISH_GRACE_SECONDS", 0.1)
    first = world.run(world.enqueue(world.toys.add, x=0))
    world.enqueue(world.toys.add, x=1)
    world.publish_all()
    wait_until(lambda: world.wire.depth("default") == 2)
    world.start_relay()
    wait_until(lambda: (world.run(first.id).publish_at or first.created_at) > (first.publish_at or first.created_at))  # looked at
    assert world.wire.depth("default") == 2


def test_only_the_missing_messages_are_published_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "PUBLISH_GRACE_SECONDS", 0.1)
    lost = world.enqueue(world.toys.add, x=0)
    world.publish_all()
    wait_until(lambda: world.wire.depth("default") == 1)
    world.wire.lose_everything()
    kept = [world.enqueue(world.toys.add, x=number) for number in (1, 2)]
    world.publish_all()
    world.start_relay()
    wait_until(lambda: world.wire.depth("default") == 3)
    world.start_worker()
    for run_id in (lost, *kept):
        world.wait_for(run_id)
    assert sorted(world.toys.ran) == [(0, 1), (1, 1), (2, 1)]


def test_a_run_of_a_lost_worker_is_rescued(world: World) -> None:
    run_id = world.enqueue(world.toys.add, x=1)
    lost_worker_claims(world, run_id)
    world.start_worker()
    run = world.wait_for(run_id)
    assert (run.state, run.attempt, run.fence) == ("SUCCESS", 2, 2)
    first = world.attempts(run_id)[0]
    assert (first.state, first.error_type, first.worker_id) == ("RETRY", "WorkerLost", "lost-worker")
    assert world.toys.ran == [(1, 1)]


def test_a_run_lost_with_its_last_attempt_is_a_dead_letter(world: World) -> None:
    run_id = world.enqueue(world.toys.add.options(max_attempts=1), x=1)
    lost_worker_claims(world, run_id)
    world.relay_turn()
    run = world.run(run_id)
    assert (run.state, run.reason, run.error_type, run.dead_lettered_at is not None) == ("FAILURE", "crashed", "WorkerLost", True)
    wait_until(lambda: len(world.wire.dead_letters("default")) == 1)
    assert world.toys.encoder.unpack(world.wire.dead_letters("default")[0]).run_id == run_id


def test_a_run_of_a_living_worker_is_left_alone(running: World) -> None:
    run_id = running.enqueue(running.toys.hold)
    running.wait_for(run_id, "STARTED")
    for _ in range(3):
        running.relay_turn()
    assert running.run(run_id).state == "STARTED"
    running.toys.gate.set()
    assert running.wait_for(run_id).fence == 1


def test_an_outcome_with_an_old_fence_changes_nothing(world: World) -> None:
    run_id = world.enqueue(world.toys.add, x=1)
    lost_worker_claims(world, run_id)
    world.relay_turn()  # given back; it killed its process, so somebody else claims it alone
    with system_connection(world.engine) as connection:
        assert claim_suspect(connection, "lost-worker", ["default"]) is not None
    late = Outcome(run_id, 1, State.SUCCESS, result="from beyond")
    assert turn(world, "lost-worker", outcomes=[late])[0] == set()
    run = world.run(run_id)
    assert (run.state, run.fence, run.result) == ("STARTED", 2, None)
    assert turn(world, "lost-worker", outcomes=[Outcome(run_id, 2, State.SUCCESS, result="now")])[0] == {run_id}
    assert turn(world, "lost-worker", outcomes=[Outcome(run_id, 2, State.FAILURE)])[0] == set()  # and only once
    assert world.run(run_id).result == "now"
    assert len(world.attempts(run_id)) == 2


def test_a_claim_that_got_no_answer_is_not_counted_twice(world: World) -> None:
    run_id = world.enqueue(world.toys.add, x=1)
    wanted = {run_id: world.people.acme.tenant_id}
    assert turn(world, "me", wanted=wanted)[1][run_id].attempt == 1
    assert turn(world, "me", wanted=wanted)[1] == {}
    assert turn(world, "another", wanted=wanted, in_doubt=[run_id])[1] == {}
    again = turn(world, "me", wanted=wanted, in_doubt=[run_id])[1][run_id]
    assert (again.attempt, again.fence) == (1, 1)


def test_a_stopping_worker_hands_back_what_it_runs_and_burns_no_attempt(world: World) -> None:
    world.start_worker(threads=1)
    run_id = world.enqueue(world.toys.hold)
    waiting = [world.enqueue(world.toys.add, x=number) for number in range(3)]
    world.wait_for(run_id, "STARTED")
    world.publish_all()
    world.stop_worker(grace_ms=100)
    run = world.run(run_id)
    assert (run.state, run.attempt, run.fence) == ("PENDING", 0, 1)
    assert [attempt.state for attempt in world.attempts(run_id)] == ["PENDING"]
    world.toys.gate.set()
    world.restart()
    world.toys.gate.set()
    world.start_worker()
    for each in (run_id, *waiting):
        ended = world.wait_for(each)
        assert (ended.state, ended.attempt) == ("SUCCESS", 1)
    assert world.run(run_id).fence == 2


def test_a_worker_leaves_no_row_behind(world: World) -> None:
    world.start_worker()
    world.stop_worker()
    with world.session() as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM workers").scalar() == 0


def test_a_run_that_no_worker_has_the_task_for_is_not_failed(world: World) -> None:
    world.start_worker(queues={"sync"})
    run_id = world.enqueue(world.toys.add, x=1)
    assert world.wait_for(world.enqueue(world.toys.urgent, text="mine")).state == "SUCCESS"
    assert world.run(run_id).state == "PENDING"
    world.stop_worker()
    world.start_worker()
    assert world.wait_for(run_id).state == "SUCCESS"


def test_runs_under_way_end_once_although_the_brokers_connections_are_lost(running: World) -> None:
    held = [running.enqueue(running.toys.hold) for _ in range(3)]
    for run_id in held:
        running.wait_for(run_id, "STARTED")
    running.wire.cut_connections()
    running.toys.gate.set()
    after = [running.enqueue(running.toys.add, x=number) for number in range(3)]
    for run_id in (*held, *after):
        run = running.wait_for(run_id)
        assert (run.state, run.fence) == ("SUCCESS", 1)
        assert running.toys.calls[run_id] == 1
    running.drained()


def test_runs_enqueued_while_no_broker_takes_them_wait_and_are_run_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = world.enqueue(world.toys.add, x=1)
    world.publish_all()
    envelope = Envelope(run_id, "add", "default", world.people.acme.tenant_id)
    world.wire.lose_everything()
    with system_connection(world.engine) as connection:
        dispatch.wait_for_broker(connection, [envelope.run_id])
    assert world.run(run_id).waiting_for == "broker"
    world.start_worker()
    assert world.wait_for(run_id).state == "SUCCESS"
