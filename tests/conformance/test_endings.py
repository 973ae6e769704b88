"""Runs that must end: revoked, terminated, past their hard limit; and a process that has to be replaced."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest

from core.clock import now
from runs.life import OVERRUN_GRACE_SECONDS, Lifespan
from runs.progress import progress
from storage import lives
from storage.engine import relay_connection
from storage.states import Ending
from tests.conformance.conftest import World
from tests.toys import wait_until

LOST: dict[str, Any] = {"state": "STARTED", "worker_id": "gone", "waiting_for": None, "publish_at": None}
pytestmark = pytest.mark.parametrize("wire", ["valkey"], indirect=True)  # the broker has no part in it


def test_a_revoked_run_ends_as_revoked_whatever_its_actor_returned(running: World) -> None:
    run_id = running.enqueue(running.toys.hold)
    running.wait_for(run_id, "STARTED")
    running.set_run(run_id, ending=Ending.REVOKE)
    running.toys.gate.set()
    run = running.wait_for(run_id)
    assert (run.state, run.reason, run.result, run.ending, run.dead_lettered_at) == ("REVOKED", "revoked", "held", None, None)
    (attempt,) = running.attempts(run_id)
    assert attempt.state == "REVOKED"


def test_a_checkpoint_ends_a_revoked_run(running: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = running.enqueue(running.toys.hold)
    running.wait_for(run_id, "STARTED")

    def long(*_arguments: object) -> bool:
        for _ in range(1000):
            progress(1, 2)
            time.sleep(0.01)
        return True

    monkeypatch.setattr(running.toys.gate, "wait", long)
    second = running.enqueue(running.toys.hold)
    running.wait_for(second, "STARTED")
    running.set_run(second, ending=Ending.REVOKE)
    assert running.wait_for(second, timeout=5).state == "REVOKED"
    running.toys.gate.set()
    assert running.wait_for(run_id).state == "SUCCESS"  # the other was not meant


def test_a_terminated_run_is_interrupted(running: World) -> None:
    run_id = running.enqueue(running.toys.slow, seconds=60)
    running.wait_for(run_id, "STARTED")
    running.set_run(run_id, ending=Ending.TERMINATE)
    run = running.wait_for(run_id, timeout=5)
    assert (run.state, run.reason) == ("REVOKED", "revoked")


def test_past_its_hard_limit_a_run_is_marked_and_its_process_retires(running: World) -> None:
    graces: list[float | None] = []
    running.broker.on_retire = graces.append
    run_id = running.enqueue(running.toys.hold)
    running.wait_for(run_id, "STARTED")
    running.set_run(run_id, started_at=now() - timedelta(seconds=601))
    wait_until(lambda: graces)
    assert graces == [OVERRUN_GRACE_SECONDS]
    assert running.run(run_id).ending == Ending.HARD_LIMIT
    assert running.broker.recorder.has_abandoned
    assert running.broker.recorder.is_empty  # nothing else is waited for
    other = running.enqueue(running.toys.add, x=1)
    running.publish_all()
    running.stop_worker(grace_ms=100)
    assert running.run(run_id).state == "STARTED"  # its own until the process is gone
    assert running.run(other).state == "PENDING"
    with relay_connection(running.engine) as connection:
        assert running.broker.worker_id in lives.process_keys(connection)


def test_what_passed_its_hard_limit_is_retried_once_its_process_is_gone(world: World) -> None:
    run_id = world.enqueue(world.toys.add, x=1)
    world.set_run(
        run_id, state="STARTED", worker_id="gone", attempt=1, fence=1, waiting_for=None, publish_at=None, ending=Ending.HARD_LIMIT
    )
    world.relay_turn()
    run = world.run(run_id)
    assert (run.state, run.error_type, run.reason, run.is_suspect) == ("RETRY", "HardTimeLimitExceeded", "hard_time_limit", False)


def test_a_process_is_replaced_after_so_many_runs(running: World) -> None:
    graces: list[float | None] = []
    running.broker.on_retire = graces.append
    running.broker.life._last_run = 3
    ids = [running.enqueue(running.toys.add, x=number) for number in range(3)]
    assert {running.wait_for(run_id).state for run_id in ids} == {"SUCCESS"}
    wait_until(lambda: graces)
    assert graces == [None]
    late = running.enqueue(running.toys.add, x=9)
    running.stop_worker()
    running.restart()
    running.start_worker()
    assert running.wait_for(late, timeout=45).state == "SUCCESS"


def test_a_process_that_has_grown_is_replaced(running: World) -> None:
    graces: list[float | None] = []
    running.broker.on_retire = graces.append
    running.broker.life._lifespan = Lifespan(max_memory=1)
    running.broker.life.beat()
    running.broker.life.beat()
    assert graces == [None]


def test_neighbours_of_a_crash_run_alone_and_lose_no_attempt(world: World) -> None:
    ids = [world.enqueue(world.toys.add, x=number) for number in range(3)]
    for run_id in ids:
        world.set_run(run_id, **LOST, attempt=1, fence=1)
    world.relay_turn()
    assert {(world.run(run_id).state, world.run(run_id).is_suspect) for run_id in ids} == {("RETRY", True)}
    world.start_worker()
    for run_id in ids:
        run = world.wait_for(run_id)
        assert (run.state, run.attempt, run.fence, run.is_suspect) == ("SUCCESS", 1, 2, False)
    wait_until(lambda: not world.broker.recorder.is_alone)
    after = world.enqueue(world.toys.add, x=7)
    assert world.wait_for(after).state == "SUCCESS"


def test_whoever_kills_its_process_alone_is_a_dead_letter_in_the_end(world: World) -> None:
    run_id = world.enqueue(world.toys.add.options(max_attempts=2), x=1)
    for attempt in (1, 2):
        world.set_run(run_id, **LOST, attempt=attempt, fence=attempt)
        world.relay_turn()
    run = world.run(run_id)
    assert (run.state, run.reason, run.attempt, run.is_suspect) == ("FAILURE", "crashed", 2, False)


def test_held_runs_are_claimed_without_a_message(world: World) -> None:
    ids = [world.enqueue(world.toys.add, x=number) for number in range(5)]
    for run_id in ids:
        world.set_run(run_id, publish_at=None)
    world.publish_all()
    world.wire.lose_everything()
    world.start_worker()
    assert {world.wait_for(run_id).state for run_id in ids} == {"SUCCESS"}
    assert len(world.toys.ran) == 5
