"""The life of a run, the same on every broker and database: enqueued, claimed, run, settled, retried, put off, given up."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import delete

from brokers.message import Envelope
from brokers.queues import Priority
from core.clock import now
from core.tenancy import acting_as
from runs import recorder
from runs.enqueue import enqueue
from runs.task import Call
from storage.engine import new_session
from storage.models import TaskRun
from storage.repositories.runs import TaskRuns
from tests.conformance.conftest import World
from tests.toys import wait_until


def test_an_enqueued_run_is_run_once_and_its_outcome_is_recorded(running: World) -> None:
    run_id = running.enqueue(running.toys.add, identity=running.people.ann, x=2, y=3)
    run = running.wait_for(run_id)
    assert (run.state, run.result, run.attempt, run.fence, run.error, run.reason) == ("SUCCESS", 5, 1, 1, None, None)
    assert run.user_id == running.people.ann.user_id
    assert run.started_at is not None
    assert run.finished_at is not None
    assert run.duration_ms is not None
    assert run.finished_at >= run.started_at >= run.created_at
    (attempt,) = running.attempts(run_id)
    assert (attempt.fence, attempt.attempt, attempt.state, attempt.worker_id) == (1, 1, "SUCCESS", running.broker.worker_id)
    assert running.toys.ran == [(2, 3)]
    running.drained()


def test_the_actor_runs_as_the_tenant_and_user_that_enqueued(running: World) -> None:
    ann, gus = running.people.ann, running.people.gus
    runs = [(who, running.enqueue(running.toys.whoami, identity=who)) for who in (ann, gus, running.people.acme)]
    for who, run_id in runs:
        assert running.wait_for(run_id).result == [who.tenant_id, who.user_id]


def test_a_rolled_back_enqueue_leaves_no_row_and_no_message(world: World) -> None:
    with new_session(world.people.acme, world.engine) as transaction:
        enqueue(transaction, world.toys.add, x=1)
        transaction.rollback()  # somebody changed their mind
        transaction.commit()
    with world.session(world.people.acme) as transaction:
        enqueue(transaction, world.toys.lazy, text="this one stays")
    world.publish_all()
    assert world.count(TaskRun) == 1
    assert world.wire.depth("default") == 0
    assert world.wire.depth("low_priority") == 1


def test_a_failing_run_waits_and_succeeds_with_its_next_attempt(running: World) -> None:
    run_id = running.enqueue(running.toys.fail, times=1)
    run = running.wait_for(run_id)
    assert (run.state, run.result, run.attempt, run.fence) == ("SUCCESS", "at last", 2, 2)
    first, second = running.attempts(run_id)
    assert (first.state, first.attempt, first.error_type) == ("RETRY", 1, "RuntimeError")
    assert first.error == "not yet, says <address>"
    assert any("toys.py" in place for place in first.traceback or [])
    assert first.started_at is not None
    assert second.started_at is not None
    assert second.started_at >= first.started_at + timedelta(seconds=0.044)  # 0.05 s less a tenth
    assert (second.state, second.attempt) == ("SUCCESS", 2)


def test_a_permanent_error_is_a_dead_letter_at_once(running: World) -> None:
    run_id = running.enqueue(running.toys.refuse)
    run = running.wait_for(run_id)
    assert (run.state, run.reason, run.error_type, run.error) == ("FAILURE", "permanent", "PermanentError", "It will never work.")
    assert (run.attempt, run.dead_lettered_at is not None) == (1, True)
    wait_until(lambda: len(running.wire.dead_letters("default")) == 1)
    (dead,) = running.wire.dead_letters("default")
    assert running.toys.encoder.unpack(dead).run_id == run_id
    running.drained()


def test_a_run_out_of_attempts_is_a_dead_letter(running: World) -> None:
    run_id = running.enqueue(Call(running.toys.fail, max_attempts=2), times=99)
    run = running.wait_for(run_id)
    assert (run.state, run.reason, run.attempt, running.toys.calls[run_id]) == ("FAILURE", "attempts_exhausted", 2, 2)
    wait_until(lambda: len(running.wire.dead_letters("default")) == 1)


def test_a_snoozed_run_spends_no_attempt(running: World) -> None:
    run_id = running.enqueue(Call(running.toys.snooze, max_attempts=1), delay=0.1)
    run = running.wait_for(run_id)
    assert (run.state, run.result, run.attempt, run.fence) == ("SUCCESS", "rested", 1, 2)
    assert [(attempt.state, attempt.attempt, attempt.error) for attempt in running.attempts(run_id)] == [
        ("PENDING", 1, "Somebody asked to wait."),
        ("SUCCESS", 1, None),
    ]


def test_a_delayed_run_is_on_no_broker_and_not_started_before_its_time(running: World) -> None:
    run_id = running.enqueue(running.toys.add.options(delay=0.6), x=1)
    running.publish_all()
    assert running.wire.depth("default") == 0
    waiting = running.run(run_id)
    assert (waiting.state, waiting.waiting_for) == ("PENDING", "eta")
    run = running.wait_for(run_id)
    assert waiting.eta is not None
    assert run.started_at is not None
    assert run.started_at >= waiting.eta >= run.created_at + timedelta(seconds=0.59)


def test_a_message_that_comes_before_its_runs_time_starts_nothing(running: World) -> None:
    run_id = running.enqueue(running.toys.add.options(eta=now() + timedelta(hours=1)), x=1)
    envelope = Envelope(run_id, "add", "default", running.people.acme.tenant_id)
    running.broker.publisher.publish_now([envelope])
    running.drained()
    assert running.run(run_id).state == "PENDING"
    assert running.toys.ran == []


def test_an_expired_run_is_revoked_and_never_started(world: World) -> None:
    run_id = world.enqueue(world.toys.add.options(expires_in=0.05), x=1)
    world.publish_all()
    wait_until(lambda: now() > world.run(run_id).created_at + timedelta(seconds=0.1))
    world.start_worker()
    run = world.wait_for(run_id)
    assert (run.state, run.reason) == ("REVOKED", "expired")
    world.drained()
    assert world.toys.ran == []


def test_a_revoked_run_never_starts_wherever_it_waited(world: World) -> None:
    pending = world.enqueue(world.toys.add, x=1)
    delayed = world.enqueue(world.toys.add.options(delay=0.2), x=2)
    retrying = world.enqueue(world.toys.add, x=3)
    world.set_run(retrying, state="RETRY", attempt=1, waiting_for="eta")
    world.publish_all()
    with world.session(world.people.acme) as session:
        assert {TaskRuns(session).revoke(run_id).state for run_id in (pending, delayed, retrying)} == {"REVOKED"}
        assert TaskRuns(session).revoke(pending).state == "REVOKED"  # twice is fine
    world.start_worker()
    after = world.enqueue(world.toys.add.options(delay=0.4), x=4)
    world.wait_for(after)
    assert world.toys.ran == [(4, 1)]
    assert {world.run(run_id).reason for run_id in (pending, delayed, retrying)} == {"revoked"}


def test_a_revoked_running_run_ends_as_revoked_once_its_actor_has_returned(running: World) -> None:
    run_id = running.enqueue(running.toys.hold)
    running.wait_for(run_id, "STARTED")
    with running.session(running.people.acme) as session:
        assert TaskRuns(session).revoke(run_id).state == "STARTED"
    running.toys.gate.set()
    assert running.wait_for(run_id).state == "REVOKED"


def test_a_replayed_dead_letter_runs_again_with_all_its_attempts(running: World) -> None:
    run_id = running.enqueue(Call(running.toys.fail, max_attempts=1), times=1)
    assert running.wait_for(run_id).state == "FAILURE"
    with running.session(running.people.acme) as session:
        replayed = TaskRuns(session).replay(run_id)
        assert (replayed.state, replayed.attempt, replayed.dead_lettered_at, replayed.reason) == ("PENDING", 0, None, None)
    run = running.wait_for(run_id)
    assert (run.state, run.attempt, run.fence) == ("SUCCESS", 1, 2)


def test_the_soft_limit_is_raised_in_the_actor_which_tidies_up_and_is_retried(running: World) -> None:
    run_id = running.enqueue(Call(running.toys.slow, soft_limit=0.15), seconds=10)
    run = running.wait_for(run_id)
    assert (run.state, run.result, run.attempt) == ("SUCCESS", "quick this time", 2)
    first = running.attempts(run_id)[0]
    assert (first.state, first.error_type, running.toys.tidied) == ("RETRY", "SoftTimeLimitExceeded", 1)
    assert first.duration_ms is not None
    assert 150 <= first.duration_ms < 2000


def test_a_plain_send_takes_the_same_way(running: World) -> None:
    with acting_as(running.people.ann):
        at_once = running.toys.add.send(1, y=4).message_id
        later = running.toys.add.send_with_options(kwargs={"x": 5}, delay=100).message_id
    assert running.wait_for(at_once).result == 5
    assert running.wait_for(later).result == 6
    assert running.run(at_once).user_id == running.people.ann.user_id


def test_more_urgent_queues_go_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "BUSY_SECONDS", 60.0)  # it keeps both, however long this takes
    world.start_worker(threads=1)
    blocker = world.enqueue(world.toys.hold)
    world.wait_for(blocker, "STARTED")
    runs = [world.enqueue(world.toys.lazy, text="lazy"), world.enqueue(world.toys.urgent, text="urgent")]
    world.publish_all()
    wait_until(lambda: world.wire.depth("low_priority") == 0 and world.wire.depth("sync") == 0)  # the worker has seen both
    world.toys.gate.set()
    for run_id in runs:
        world.wait_for(run_id)
    assert world.toys.ran == ["hold", "urgent", "lazy"]


def test_inside_a_queue_high_goes_before_normal_before_low(world: World) -> None:
    levels = [Priority.LOW, Priority.NORMAL, Priority.HIGH] * 2
    runs = [world.enqueue(world.toys.add.options(priority=level), x=int(level)) for level in levels]
    world.publish_all()
    world.start_worker(threads=1)
    for run_id in runs:
        world.wait_for(run_id)
    assert [x for x, _ in world.toys.ran] == [2, 2, 1, 1, 0, 0]


def test_a_run_whose_row_is_gone_leaves_nothing_behind(world: World) -> None:
    world.enqueue(world.toys.add, x=1)
    world.publish_all()
    with world.session() as session:
        session.execute(delete(TaskRun))
    world.start_worker()
    world.drained()
    assert (world.toys.ran, world.count(TaskRun), world.wire.dead_letters("default")) == ([], 0, [])
