"""The recorder: nothing is acknowledged before the record has it, and nothing is lost when the database is away."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import dramatiq
import pytest
from sqlalchemy.exc import OperationalError

import runs.recorder
from brokers.consumer import Delivery, Verdict
from brokers.message import Envelope, MessageEncoder
from brokers.stub import StubBroker, StubConsumer
from core.clock import now
from core.errors import UnavailableError
from core.ids import new_id
from runs.hooks import RecorderHooks
from runs.message import RunMessage
from runs.recorder import Recorder
from runs.relay import _what_becomes
from runs.retry import succeeded
from storage.dispatch import Publishable
from storage.lives import LostRun
from storage.outcomes import Claim, HeldLane, Outcome, OwnRun
from storage.postgres import BEFORE_ANY_ID
from storage.record import open_record
from storage.states import Ending
from tests.unit.conftest import House


class Recording:
    """A recorder that is turned by hand, over a database that can be away before or after it has committed."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch, *, threads: int = 2) -> None:
        self.house = house
        self.encoder = MessageEncoder({"k1": bytes(32)})
        self.consumer = StubConsumer(StubBroker(), lambda _delivery: None)
        self.started: list[RunMessage] = []
        self.adoptable: Callable[[Envelope], Verdict | None] = lambda _envelope: Verdict.ACK
        self.away: str | None = None
        monkeypatch.setattr(runs.recorder, "IDLE_SECONDS", 0.001)
        monkeypatch.setattr(runs.recorder, "QUIET_SECONDS", 0.002)
        monkeypatch.setattr(runs.recorder, "BROKEN_SECONDS", 0.001)
        self._record = open_record(house.engine)
        self.lanes: list[HeldLane] = []
        self.suspects: list[Claim] = []
        self.buried: list[Envelope] = []
        self.consuming: list[bool] = []
        hooks = RecorderHooks(
            start_run=self._start,
            adopt=lambda _delivery, envelope: self.adoptable(envelope),
            consume=self.consuming.append,
            find_held=lambda: list(self.lanes),
            bury=self.buried.append,
            claim_alone=lambda: self.suspects.pop() if self.suspects else None,
            on_ended=lambda _ended: None,
        )
        self.recorder = Recorder(self, self.encoder, "me", hooks, threads=threads)

    def _start(self, message: RunMessage) -> None:
        self.started.append(message)

    def turn(
        self,
        worker_id: str,
        outcomes: Sequence[Outcome],
        wanted: Mapping[str, str],
        in_doubt: Collection[str],
        lanes: Sequence[HeldLane] = (),
    ) -> tuple[set[str], dict[str, Claim]]:
        """The record's, which may be away."""
        if self.away == "before":
            raise OperationalError("", None, Exception("away"))
        done = self._record.turn(worker_id, outcomes, wanted, in_doubt, lanes)
        if self.away == "after":
            raise OperationalError("", None, Exception("no answer"))
        return done

    def own(self, worker_id: str) -> list[OwnRun]:
        return self._record.own(worker_id)

    def close(self) -> None:
        self._record.close()

    def offer(self, run_id: str, queue: str = "default") -> None:
        body = self.encoder.pack(Envelope(run_id, "add", queue, self.house.people.acme.tenant_id))
        self.recorder.offer(Delivery(body, queue, self.consumer, None))

    def finish(self, message: RunMessage) -> None:
        assert message.claim is not None
        message.outcome = succeeded(message.claim, 1, 5)
        self.recorder.finished(message)

    @property
    def verdicts(self) -> list[Verdict]:
        return [verdict for _, verdict in self.consumer.settled]


@pytest.fixture
def recording(house: House, monkeypatch: pytest.MonkeyPatch) -> Recording:
    return Recording(house, monkeypatch)


def test_a_message_is_acknowledged_only_after_its_outcome_is_committed(recording: Recording) -> None:
    run_id = recording.house.enqueue(recording.house.toys.add, x=1)
    recording.offer(run_id)
    recording.recorder.turn()
    (message,) = recording.started
    assert message.kwargs == {"x": 1, "y": 1}
    assert recording.verdicts == []
    recording.finish(message)
    recording.away = "before"
    for _ in range(3):
        with pytest.raises(OperationalError):
            recording.recorder.turn()
        assert recording.verdicts == []
    recording.away = None
    recording.recorder.turn()
    assert recording.house.run(run_id).state == "SUCCESS"
    assert recording.verdicts == [Verdict.ACK]


def test_a_database_that_is_away_loses_no_message(recording: Recording) -> None:
    runs_ = [recording.house.enqueue(recording.house.toys.add, x=number) for number in range(2)]
    recording.away = "before"
    for run_id in runs_:
        recording.offer(run_id)
    for _ in range(3):
        with pytest.raises(OperationalError):
            recording.recorder.turn()
    assert (recording.started, recording.verdicts) == ([], [])
    recording.away = None
    recording.recorder.turn()
    assert {message.run_id for message in recording.started} == set(runs_)


def test_a_claim_whose_commit_got_no_answer_is_counted_once(recording: Recording) -> None:
    run_id = recording.house.enqueue(recording.house.toys.add, x=1)
    recording.offer(run_id)
    recording.away = "after"
    with pytest.raises(OperationalError):
        recording.recorder.turn()
    assert recording.house.run(run_id).state == "STARTED"
    recording.away = None
    recording.recorder.turn()
    (message,) = recording.started
    assert message.claim is not None
    assert (message.claim.attempt, message.claim.fence) == (1, 1)


def test_a_claim_without_answer_is_found_although_its_message_was_given_back(recording: Recording) -> None:
    run_id = recording.house.enqueue(recording.house.toys.add, x=1)
    recording.offer(run_id)
    recording.away = "after"
    with pytest.raises(OperationalError):
        recording.recorder.turn()
    recording.recorder._return_waiting()  # as a process does whose threads are busy
    assert recording.verdicts == [Verdict.REQUEUE]
    recording.away = None
    recording.recorder._doubts.begin()
    recording.recorder.turn()
    recording.recorder.turn()
    (message,) = recording.started
    assert message.run_id == run_id
    assert message.claim is not None
    assert message.claim.attempt == 1


def test_an_outcome_whose_commit_got_no_answer_is_written_once(recording: Recording) -> None:
    run_id = recording.house.enqueue(recording.house.toys.add, x=1)
    recording.offer(run_id)
    recording.recorder.turn()
    recording.finish(recording.started[0])
    recording.away = "after"
    with pytest.raises(OperationalError):
        recording.recorder.turn()
    recording.away = None
    recording.recorder.turn()
    assert recording.verdicts == [Verdict.ACK]
    assert len(recording.house.attempts(run_id)) == 1


def test_no_more_is_claimed_than_can_start_and_the_most_urgent_first(recording: Recording) -> None:
    lazy = [recording.house.enqueue(recording.house.toys.lazy, text="x") for _ in range(2)]
    urgent = [recording.house.enqueue(recording.house.toys.urgent, text="x") for _ in range(2)]
    for run_id in lazy:
        recording.offer(run_id, "low_priority")
    for run_id in urgent:
        recording.offer(run_id, "sync")
    room = recording.recorder.room()
    recording.recorder.turn()
    recording.recorder.turn()
    assert [message.run_id for message in recording.started] == urgent
    assert recording.recorder.room() == room
    assert {recording.house.run(run_id).state for run_id in lazy} == {"PENDING"}
    recording.finish(recording.started[0])
    recording.recorder.turn()
    assert [message.run_id for message in recording.started] == [*urgent, lazy[0]]


def test_duplicates_are_acknowledged_even_while_the_database_is_away(recording: Recording) -> None:
    run_id = recording.house.enqueue(recording.house.toys.add, x=1)
    recording.offer(run_id)
    recording.recorder.turn()
    recording.offer(run_id)
    recording.away = "before"
    other = recording.house.enqueue(recording.house.toys.add, x=2)
    recording.offer(other)
    with pytest.raises(OperationalError):
        recording.recorder.turn()
    assert recording.verdicts == [Verdict.ACK]
    recording.away = None
    recording.recorder.turn()
    assert [message.run_id for message in recording.started] == [run_id, other]


def test_what_is_none_of_ours_is_rejected_at_once(recording: Recording) -> None:
    recording.recorder.offer(Delivery(json.dumps({"options": {}}).encode(), "default", recording.consumer, None))
    assert recording.verdicts == [Verdict.REJECT]


@pytest.mark.parametrize("verdict", [Verdict.ACK, Verdict.REJECT])
def test_a_message_with_nothing_to_claim_gets_the_adopters_verdict(recording: Recording, verdict: Verdict) -> None:
    recording.adoptable = lambda _envelope: verdict
    recording.offer(recording.house.people.acme.tenant_id)  # an id that is no run's
    recording.recorder.turn()
    assert (recording.verdicts, recording.started) == ([verdict], [])


def test_an_adopter_without_a_database_is_asked_again(recording: Recording) -> None:
    asked: list[str] = []

    def adopt(envelope: Envelope) -> Verdict | None:
        asked.append(envelope.run_id)
        if len(asked) == 1:
            raise UnavailableError("away")
        return Verdict.ACK

    recording.adoptable = adopt
    recording.offer(recording.house.people.acme.tenant_id)
    recording.recorder.turn()
    assert recording.verdicts == []
    recording.recorder.turn()
    assert recording.verdicts == [Verdict.ACK]


def test_stopping_returns_what_waits_and_hands_back_what_runs(recording: Recording) -> None:
    ids = [recording.house.enqueue(recording.house.toys.add, x=number) for number in range(3)]
    for run_id in ids:
        recording.offer(run_id)
    recording.recorder.turn()
    assert len(recording.started) == 2
    recording.finish(recording.started[0])
    recording.recorder.stop_claiming()
    assert recording.recorder.room() == 0
    recording.recorder.start()
    recording.recorder.stop()
    assert not recording.recorder.is_alive()
    assert recording.house.run(ids[1]).state == "STARTED"  # it still runs here; nobody else may
    recording.recorder.hand_back()
    done, held, waiting = (recording.house.run(run_id) for run_id in ids)
    assert (done.state, held.state, held.attempt, waiting.state, waiting.fence) == ("SUCCESS", "PENDING", 0, "PENDING", 0)
    assert sorted(recording.verdicts, key=str) == [Verdict.ACK, Verdict.ACK, Verdict.REQUEUE]
    assert held.publish_at is not None
    assert held.publish_at > now()  # when this process is gone


def test_what_ends_while_the_process_leaves_has_ended(recording: Recording) -> None:
    run_id = recording.house.enqueue(recording.house.toys.add, x=1)
    recording.offer(run_id)
    recording.recorder.turn()
    recording.recorder.start()
    recording.recorder.stop()
    recording.finish(recording.started[0])
    recording.recorder.hand_back()
    assert recording.house.run(run_id).state == "SUCCESS"


def test_a_worker_that_lost_its_run_changes_nothing_with_its_outcome(recording: Recording) -> None:
    run_id = recording.house.enqueue(recording.house.toys.add, x=1)
    recording.offer(run_id)
    recording.recorder.turn()
    recording.house.set_run(run_id, fence=2)  # rescued and claimed by another
    recording.finish(recording.started[0])
    recording.recorder.turn()
    run = recording.house.run(run_id)
    assert (run.state, run.result, recording.verdicts) == ("STARTED", None, [Verdict.ACK])


def test_an_idle_recorder_waits_for_events_and_looks_at_the_clock_only_where_time_changes_something(recording: Recording) -> None:
    quiet, soon = runs.recorder.QUIET_SECONDS, runs.recorder.IDLE_SECONDS
    recorder = recording.recorder
    assert recorder._patience() == quiet
    for number in range(3):
        recording.offer(recording.house.enqueue(recording.house.toys.add, x=number))
    recorder.turn()
    assert recorder._patience() == soon  # one waits behind two that run: it may have to be given back
    recording.finish(recording.started[0])
    recorder.turn()
    assert recorder._patience() == quiet  # both threads are busy, nothing waits
    recorder._doubts.begin()
    assert recorder._patience() == soon


def test_a_thread_whose_database_comes_back_goes_on(recording: Recording) -> None:
    recording.away = "before"
    run_id = recording.house.enqueue(recording.house.toys.add, x=1)
    recording.offer(run_id)
    recording.recorder.start()
    recording.recorder.join(0.1)
    recording.away = None
    while not recording.started:
        recording.recorder.join(0.01)
    recording.finish(recording.started[0])
    recording.recorder.stop()
    assert recording.house.run(run_id).state == "SUCCESS"


def test_the_message_of_a_run_shows_no_argument(recording: Recording) -> None:
    run_id = recording.house.enqueue(recording.house.toys.urgent, text="canary")
    recording.offer(run_id)
    recording.recorder.turn()
    shown: Any = recording.started[0]
    assert str(shown) == f"add({run_id})"
    assert "canary" not in str(shown)
    assert shown.duration_ms() is None


def test_after_a_hard_limit_a_run_waits_as_its_task_says_and_as_its_queue_where_nobody_knows_the_task(house: House) -> None:
    def wait_of(task: str) -> float:
        lost = LostRun(Publishable(new_id(), new_id(), None, task, "default", 1, None, 1), 1, 4, Ending.HARD_LIMIT, 1, is_explained=False)
        return _what_becomes(lost).run_again_in or 0.0

    dramatiq.set_broker(house.broker)
    assert wait_of("fail") == pytest.approx(0.05, rel=0.2)
    assert [wait_of("add"), wait_of("of a later version")] == pytest.approx([60, 60], rel=0.2)


def test_a_backlog_leaves_a_thread_to_a_guest_and_waits_for_it_without_turning(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording(house, monkeypatch, threads=4)
    acme, globex = house.people.acme, house.people.globex
    for _ in range(10):
        house.set_run(house.enqueue(house.toys.add, x=1), publish_at=None)
    recording.lanes = [HeldLane("default", acme.tenant_id, house.run(house.enqueue(house.toys.add, x=1)).priority, BEFORE_ANY_ID)]

    def guest() -> str:
        run_id = house.enqueue(house.toys.add, x=2, identity=globex)
        body = recording.encoder.pack(Envelope(run_id, "add", "default", globex.tenant_id))
        recording.recorder.offer(Delivery(body, "default", recording.consumer, None))
        return run_id

    recording.recorder.held_runs_wait()
    recording.recorder.turn()
    assert len(recording.started) == 4
    first = guest()
    recording.finish(recording.started[0])
    recording.recorder.turn()
    assert recording.started[4].run_id == first
    recording.finish(recording.started[1])
    recording.recorder.turn()
    assert len(recording.started) == 5
    assert recording.recorder._patience() > 0
    second = guest()
    recording.recorder.turn()
    assert recording.started[5].run_id == second
