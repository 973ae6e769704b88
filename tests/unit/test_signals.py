"""Signals: who is told of a run's end, when, as whom, and that what a hook does changes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from core.tenancy import Identity, current_identity
from runs import signals
from runs.relay import RelayHooks
from runs.signals import ALL_TASKS, Announcer, Hooks, RunInfo
from storage.claims import attempt_state
from storage.dispatch import Publishable
from storage.outcomes import Outcome
from storage.states import State
from tests.toys import Record, wait_until
from tests.unit.conftest import House

Told = list[Any]


@pytest.fixture
def told() -> Iterator[Told]:
    """What hooks were told; those of all tasks are disconnected again."""
    connected = {signal: ALL_TASKS.of(signal) for signal in signals.Signal}
    yield []
    for signal in signals.Signal:
        for hook in set(ALL_TASKS.of(signal)) - set(connected[signal]):
            ALL_TASKS.disconnect(hook)


def remember(told: Told, name: str) -> Callable[..., None]:
    def hook(run: RunInfo, *result: Any) -> None:
        told.append((name, run.task, str(run.state), run.attempt, *result))

    return hook


def wait_with_relay(house: House, condition: Callable[[], bool]) -> None:
    def look() -> bool:
        house.relay_turn()
        return condition()

    wait_until(look, 20)


def connect_all(told: Told, task: Any) -> None:
    for name in ("on_success", "on_failure", "on_retry", "after_return"):
        getattr(task, name)(remember(told, name))


def test_a_success_is_told_with_its_result(house: House, told: Told) -> None:
    connect_all(told, house.toys.add)
    house.start_worker()
    house.wait_for(house.enqueue(house.toys.add, x=1, y=2))
    wait_until(lambda: len(told) == 2)
    assert told == [("on_success", "add", "SUCCESS", 1, 3), ("after_return", "add", "SUCCESS", 1)]


def test_each_retry_is_told_and_a_failure_only_when_it_is_final(house: House, told: Told) -> None:
    connect_all(told, house.toys.fail)
    house.start_worker()
    house.enqueue(house.toys.fail.options(max_attempts=2), times=9)
    wait_with_relay(house, lambda: len(told) == 4)
    names = [(name, state, attempt) for name, _, state, attempt in told]
    assert names == [("on_retry", "RETRY", 1), ("after_return", "RETRY", 1), ("on_failure", "FAILURE", 2), ("after_return", "FAILURE", 2)]


def test_hooks_for_all_tasks_come_after_a_task_s_own(house: House, told: Told) -> None:
    signals.on_failure(remember(told, "all"))
    signals.on_success(remember(told, "never"))
    signals.on_retry(remember(told, "never"))
    signals.after_return(remember(told, "return"))
    house.toys.refuse.on_failure(remember(told, "own"))
    house.start_worker()
    house.wait_for(house.enqueue(house.toys.refuse))
    wait_until(lambda: len(told) == 3)
    assert [name for name, *_ in told] == ["own", "all", "return"]


def test_the_record_has_it_before_anybody_is_told_and_a_hook_acts_as_the_run_s_owner(house: House, told: Told) -> None:
    def look(run: RunInfo, result: int) -> None:
        told.append((house.run(run.run_id).state, current_identity(), structlog.contextvars.get_contextvars()["task_id"], run.run_id))

    house.toys.add.on_success(look)
    house.start_worker()
    run_id = house.enqueue(house.toys.add, identity=house.people.ann, x=1)
    wait_until(lambda: told)
    assert told == [("SUCCESS", house.people.ann, run_id, run_id)]


def test_what_a_hook_raises_changes_nothing_and_does_not_stop_the_next(
    house: House, told: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(run: RunInfo, result: int) -> None:
        raise RuntimeError("secret of ann@acme.test")

    house.toys.add.on_success(broken)
    house.toys.add.on_success(remember(told, "next"))
    house.start_worker()
    run_id = house.enqueue(house.toys.add, x=1)
    wait_until(lambda: told)
    assert house.run(run_id).state == "SUCCESS"
    output = capsys.readouterr().out
    assert "hook_failed" in output
    assert "ann@acme.test" not in output


def test_a_hook_that_hangs_is_interrupted_and_keeps_no_run_waiting(house: House, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "HOOK_SECONDS", 0.2)

    def hang(run: RunInfo, result: int) -> None:
        told.append("began")
        while True:
            time.sleep(0.01)

    house.toys.add.on_success(hang)
    house.start_worker()
    for run_id in [house.enqueue(house.toys.add, x=number) for number in range(2)]:
        house.wait_for(run_id)
    wait_until(lambda: told == ["began", "began"])


def test_a_run_that_was_revoked_while_it_ran_is_no_success(house: House, told: Told) -> None:
    connect_all(told, house.toys.hold)
    house.start_worker()
    run_id = house.enqueue(house.toys.hold)
    house.wait_for(run_id, "STARTED")
    house.set_run(run_id, ending="revoke")
    house.toys.gate.set()
    wait_until(lambda: told)
    assert told == [("after_return", "hold", "REVOKED", 1)]


def test_snoozes_are_not_told(house: House, told: Told) -> None:
    connect_all(told, house.toys.snooze)
    house.start_worker()
    house.enqueue(house.toys.snooze, delay=0.01)
    wait_with_relay(house, lambda: len(told) == 2)
    assert [name for name, *_ in told] == ["on_success", "after_return"]


def test_an_outcome_that_somebody_else_has_written_is_not_told_here(house: House, told: Told) -> None:
    connect_all(told, house.toys.hold)
    house.start_worker()
    run_id = house.enqueue(house.toys.hold)
    house.wait_for(run_id, "STARTED")
    house.set_run(run_id, fence=7)
    house.toys.gate.set()
    wait_until(lambda: house.broker.recorder.ended == 1)
    house.broker.signals.close()
    assert told == []


# The announcer itself.


def announcer(record: Record, hooks: Hooks) -> Announcer:
    return Announcer(lambda: record.engine, lambda name: hooks if name == "t" else None)


def lost_run(record: Record) -> Publishable:
    return Publishable("r", record.people.ann.tenant_id, record.people.ann.user_id, "t", "default", 1, "q", 2)


def test_a_run_lost_with_its_worker_is_told_by_whoever_gave_it_back(record: Record, told: Told) -> None:
    hooks = Hooks()
    hooks.connect(signals.Signal.ON_RETRY, lambda run: told.append((run, current_identity())))
    announcing = announcer(record, hooks)
    RelayHooks(on_lost=announcing.ended).on_lost(
        lost_run(record), Outcome("r", 3, State.RETRY, error_type="WorkerLost", error="Lost.", reason="crashed")
    )
    announcing.close()
    ((run, identity),) = told
    ann: Identity = record.people.ann
    assert run == RunInfo("r", "t", "default", ann.tenant_id, ann.user_id, None, State.RETRY, "WorkerLost", "Lost.", "crashed", "q")
    assert identity == ann


def test_when_hooks_cannot_keep_up_runs_are_not_told_of(record: Record, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "MOST_WAITING", 2)
    hooks, gate = Hooks(), threading.Event()

    def hold(run: RunInfo, result: int) -> None:
        gate.wait(20)
        told.append(result)

    hooks.connect(signals.Signal.ON_SUCCESS, hold)
    announcing = announcer(record, hooks)
    for number in range(9):
        announcing.ended(lost_run(record), Outcome("r", 1, State.SUCCESS, result=number))
    gate.set()
    announcing.close()
    assert told[:1] == [0]
    assert 2 <= len(told) <= 3


def test_a_database_that_is_away_loses_the_signal_and_not_the_thread(record: Record, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = Hooks()
    hooks.connect(signals.Signal.ON_SUCCESS, lambda run, result: told.append(result))
    announcing = announcer(record, hooks)
    failures = iter([RuntimeError("away")])

    def sometimes(*arguments: Any) -> Any:
        for failure in failures:
            raise failure
        return attempt_state(*arguments)

    monkeypatch.setattr("runs.signals.attempt_state", sometimes)
    for number in range(2):
        announcing.ended(lost_run(record), Outcome("r", 1, State.SUCCESS, result=number))
    announcing.close()
    assert told == [1]


def test_what_nobody_wants_to_be_told_of_starts_no_thread(record: Record) -> None:
    announcing = announcer(record, Hooks())
    announcing.ended(lost_run(record), Outcome("r", 1, State.SUCCESS))
    announcing.close()
    assert "signals" not in {thread.name for thread in threading.enumerate()}


def test_a_disconnected_hook_is_not_told(record: Record, told: Told) -> None:
    hooks, hook = Hooks(), told.append
    hooks.connect(signals.Signal.AFTER_RETURN, hook)
    hooks.disconnect(hook)
    assert hooks.of(signals.Signal.AFTER_RETURN) == []
