"""Cancellation: what ends at once, what is marked, who wins, and many at a time; and dead letters replayed and purged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

import storage.repositories.many_runs
from core import clock
from core.errors import ConflictError
from runs import control, sweep
from storage.engine import new_session
from storage.lives import mark_overrun
from storage.models import TaskRun
from storage.repositories.runs import RunFilter, TaskRuns
from storage.states import State
from tests.unit.conftest import House

STARTED: dict[str, Any] = {"state": "STARTED", "waiting_for": None, "publish_at": None, "worker_id": "w", "attempt": 1, "fence": 1}
DEAD: dict[str, Any] = {"state": "FAILURE", "waiting_for": None, "publish_at": None, "reason": "attempts_exhausted", "attempt": 4}
WAITING: list[dict[str, Any]] = [
    {"waiting_for": "queue"},
    {"waiting_for": "queue", "publish_at": None},  # held
    {"waiting_for": "eta", "publish_at": clock.now()},
    {"waiting_for": "broker", "publish_at": clock.now()},
    {"waiting_for": "pause", "publish_at": None},
    {"waiting_for": "limit"},
    {"waiting_for": "run", "publish_at": None},
    {"state": "RETRY", "waiting_for": "eta", "publish_at": clock.now(), "attempt": 2},
]


def a_run(house: House, **columns: Any) -> str:
    run_id = house.enqueue(house.toys.add, x=1)
    if columns:
        house.set_run(run_id, **columns)
    return run_id


def dead(house: House, **columns: Any) -> str:
    return a_run(house, **{**DEAD, "dead_lettered_at": clock.now(), "finished_at": clock.now(), **columns})


def revoke(house: House, run_id: str, *, terminate: bool = False) -> Any:
    with house.session(house.people.acme) as session:
        return control.revoke(session, run_id, terminate=terminate)


@pytest.mark.parametrize("columns", WAITING, ids=[f"{each.get('state', 'PENDING')} {each['waiting_for']}" for each in WAITING])
@pytest.mark.parametrize("terminate", [False, True])
def test_whatever_a_run_waits_for_it_ends_at_once(house: House, columns: dict[str, Any], terminate: bool) -> None:
    run_id = a_run(house, **columns)
    revoke(house, run_id, terminate=terminate)
    run = house.run(run_id)
    assert (run.state, run.reason, run.waiting_for, run.publish_at, run.ending) == ("REVOKED", "revoked", None, None, None)
    assert run.finished_at is not None


@pytest.mark.parametrize(
    ("before", "terminate", "after"),
    [
        (None, False, "revoke"),
        (None, True, "terminate"),
        ("revoke", True, "terminate"),
        ("terminate", False, "terminate"),  # never lowered
        ("hard_limit", False, "terminate"),  # its process ends anyway, and it is not tried again
    ],
)
def test_a_running_run_is_marked_and_goes_on(house: House, before: str | None, terminate: bool, after: str) -> None:
    run_id = a_run(house, **STARTED, ending=before)
    told = revoke(house, run_id, terminate=terminate)
    run = house.run(run_id)
    assert (told.state, run.state, run.ending, run.worker_id) == ("STARTED", "STARTED", after, "w")
    assert control.revoke_requested(run) == after


def test_what_has_ended_stays_and_revoking_twice_is_fine(house: House) -> None:
    for state in ("SUCCESS", "FAILURE"):
        run_id = a_run(house, state=state, waiting_for=None, publish_at=None)
        with pytest.raises(ConflictError, match="that waits or runs"):
            revoke(house, run_id)
        assert house.run(run_id).state == state
    run_id = a_run(house)
    first = revoke(house, run_id).finished_at
    assert revoke(house, run_id, terminate=True).finished_at == first


@pytest.mark.parametrize("then", ["STARTED", "SUCCESS", "PENDING"])
def test_a_claim_or_a_hand_back_between_the_statements_is_seen(house: House, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """The run is claimed after we looked whether it waits, and what it is when we look again is told, never more."""
    run_id = a_run(house)
    real = TaskRuns._end_waiting
    looks: list[int] = []

    def too_late(self: TaskRuns, wanted: str, reason: str) -> bool:
        looks.append(1)
        if len(looks) > 1:
            return real(self, wanted, reason)
        columns = STARTED if then != "SUCCESS" else {**STARTED, "state": "SUCCESS"}
        if then != "PENDING":
            self.session.execute(update(TaskRun).where(TaskRun.id == wanted).values(**columns))
        return False

    monkeypatch.setattr(TaskRuns, "_end_waiting", too_late)
    if then == "SUCCESS":
        with house.session(house.people.acme) as session, pytest.raises(ConflictError):
            control.revoke(session, run_id)
        return
    told = revoke(house, run_id)
    run = house.run(run_id)
    assert (told.state, run.state, run.ending) == (("STARTED", "STARTED", "revoke") if then == "STARTED" else ("REVOKED", "REVOKED", None))


def test_a_revoked_run_without_a_checkpoint_is_ended_by_force_at_its_hard_limit(house: House) -> None:
    long_ago = clock.now().replace(year=2020)
    asked = a_run(house, **STARTED, ending="revoke", started_at=long_ago, hard_limit=1.0)
    overrun = a_run(house, **STARTED, started_at=long_ago, hard_limit=1.0)
    forced = a_run(house, **STARTED, ending="terminate", started_at=long_ago, hard_limit=1.0)
    with house.engine.begin() as connection:
        assert set(mark_overrun(connection)) == {asked, overrun}
        assert mark_overrun(connection) == []
    assert [house.run(each).ending for each in (asked, overrun, forced)] == ["terminate", "hard_limit", "terminate"]


# many at a time


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.repositories.many_runs, "BATCH", 3)
    monkeypatch.setattr(sweep, "BATCH", 3)


@pytest.mark.usefixtures("small_batches")
def test_many_are_revoked_in_batches_and_running_ones_marked(house: House) -> None:
    waiting = [a_run(house) for _ in range(13)]  # more batches than passes
    running = [a_run(house, **STARTED) for _ in range(4)]
    others = [a_run(house, queue="sync"), a_run(house, state="SUCCESS", waiting_for=None, publish_at=None)]
    narrowed = RunFilter(queue="default")
    with house.session(house.people.acme) as session:
        assert sweep.count_live(session, narrowed) == 17
    with new_session(house.people.acme, house.engine) as session:  # a sweep commits by itself
        assert sweep.revoke_many(session, narrowed, expect=17) == sweep.Revoked(13, 4)
    assert {house.run(each).state for each in waiting} == {"REVOKED"}
    assert {(house.run(each).state, house.run(each).ending) for each in running} == {("STARTED", "revoke")}
    assert [house.run(each).state for each in others] == ["PENDING", "SUCCESS"]


@pytest.fixture
def acting(house: House) -> Callable[[Callable[..., Any]], Any]:
    """Calls with a session of acme's that nobody else commits."""

    def act(do: Callable[..., Any]) -> Any:
        with new_session(house.people.acme, house.engine) as session:
            return do(session)

    return act


def test_a_count_that_has_changed_changes_nothing(house: House, acting: Callable[..., Any]) -> None:
    run_id = a_run(house)
    with pytest.raises(sweep.CountChangedError, match="There are 1 now") as refused:
        acting(lambda session: sweep.revoke_many(session, RunFilter(), expect=2))
    assert refused.value.count == 1
    assert house.run(run_id).state == "PENDING"
    letter = dead(house)
    for act in (sweep.replay_dead_letters, sweep.purge_dead_letters):
        with pytest.raises(sweep.CountChangedError):
            acting(lambda session, act=act: act(session, RunFilter(), expect=0))
    assert house.run(letter).dead_lettered_at is not None


@pytest.mark.parametrize(("states", "expected"), [([State.PENDING, State.RETRY], (1, 0)), ([State.STARTED], (0, 1)), ([], (1, 1))])
def test_waiting_or_running_or_both(house: House, acting: Callable[..., Any], states: list[State], expected: tuple[int, int]) -> None:
    a_run(house)
    a_run(house, **STARTED)
    done = acting(lambda session: sweep.revoke_many(session, RunFilter(states), expect=sum(expected), terminate=True))
    assert (done.revoked, done.marked) == expected


def test_another_tenants_runs_are_neither_counted_nor_swept(house: House, acting: Callable[..., Any]) -> None:
    theirs = [house.enqueue(house.toys.add, identity=house.people.globex, x=1) for _ in range(3)]
    house.set_run(theirs[1], **STARTED)
    house.set_run(theirs[2], **DEAD, dead_lettered_at=clock.now())
    tenant_id = house.people.globex.tenant_id
    for narrowed in (RunFilter(), RunFilter(tenant_id=tenant_id), RunFilter(ids=theirs)):
        assert acting(lambda session, narrowed=narrowed: sweep.count_live(session, narrowed)) == 0
        assert acting(lambda session, narrowed=narrowed: sweep.count_dead(session, narrowed)) == 0
        assert acting(lambda session, narrowed=narrowed: sweep.revoke_many(session, narrowed, expect=0)) == sweep.Revoked(0, 0)
        assert acting(lambda session, narrowed=narrowed: sweep.replay_dead_letters(session, narrowed, expect=0)) == sweep.Replayed(0, 0)
        assert acting(lambda session, narrowed=narrowed: sweep.purge_dead_letters(session, narrowed, expect=0)) == 0
    assert [house.run(each).state for each in theirs] == ["PENDING", "STARTED", "FAILURE"]
    assert house.run(theirs[1]).ending is None


# dead letters


@pytest.mark.usefixtures("small_batches")
def test_dead_letters_are_replayed_unless_another_run_holds_their_key(house: House, acting: Callable[..., Any]) -> None:
    plain = [dead(house) for _ in range(4)]
    keyed = [dead(house, unique_key="k") for _ in range(2)]
    other = dead(house, reason="permanent")
    revoked = a_run(house, state="REVOKED", waiting_for=None, publish_at=None)
    narrowed = RunFilter(reason="attempts_exhausted")
    assert acting(lambda session: sweep.replay_dead_letters(session, narrowed, expect=6)) == sweep.Replayed(5, 1)
    states = [house.run(each).state for each in (*plain, *keyed, other, revoked)]
    assert states == ["PENDING"] * 4 + ["PENDING", "FAILURE", "FAILURE", "REVOKED"]
    run = house.run(plain[0])
    assert (run.attempt, run.waiting_for, run.dead_lettered_at, run.reason) == (0, "broker", None, None)
    with pytest.raises(ConflictError, match="unique key"):
        acting(lambda session: control.replay(session, keyed[1]))


@pytest.mark.usefixtures("small_batches")
def test_purged_dead_letters_leave_the_list_and_stay_in_the_history(house: House, acting: Callable[..., Any]) -> None:
    letters = [dead(house) for _ in range(5)]
    kept = dead(house, queue="sync")
    assert acting(lambda session: sweep.purge_dead_letters(session, RunFilter(ids=letters), expect=5)) == 5
    listed = acting(lambda session: control.list_runs(session, RunFilter(dead_letters_only=True)).runs)
    assert [run.id for run in listed] == [kept]
    assert {house.run(each).state for each in letters} == {"FAILURE"}
    stats = acting(lambda session: {each.name: each for each in control.get_queue_stats(session)})
    assert (stats["default"].counts.get("FAILURE", 0), stats["sync"].counts["FAILURE"]) == (0, 1)


# counts


def test_waiting_runs_are_counted_whatever_they_wait_for(house: House) -> None:
    for columns in WAITING:
        a_run(house, **columns)
    a_run(house, **STARTED)
    dead(house)
    a_run(house, state="SUCCESS", waiting_for=None, publish_at=None)
    house.enqueue(house.toys.add, identity=house.people.globex, x=1)
    for identity, more in ((house.people.acme, 0), (None, 1)):
        with house.session(identity) if identity is not None else house.session() as session:
            stats = {each.name: each for each in control.get_queue_stats(session)}["default"]
        assert stats.counts == {"PENDING": len(WAITING) - 1 + more, "RETRY": 1, "STARTED": 1, "FAILURE": 1}
        assert (stats.waiting, stats.has_more, stats.recent["SUCCESS"], stats.looked_at) == (len(WAITING) + more, False, 1, 11 + more)


def test_above_the_cap_it_says_so(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.repositories.run_counts.CAPS", ((9, 2),))
    for _ in range(3):
        a_run(house)
    with house.session(house.people.acme) as session:
        stats = {each.name: each for each in control.get_queue_stats(session)}
    assert (stats["default"].waiting, stats["default"].has_more, stats["sync"].has_more) == (2, True, False)


@pytest.mark.parametrize("as_system", [True, False])
def test_the_longest_wait_is_that_of_a_due_run_published_or_held(house: House, as_system: bool) -> None:
    a_run(house, waiting_for="eta", created_at=clock.now().replace(year=2020))
    old = a_run(house, publish_at=None, created_at=clock.now().replace(year=2025))
    a_run(house)
    with house.session() if as_system else house.session(house.people.acme) as session:
        stats = {each.name: each for each in control.get_queue_stats(session)}
    expected = (clock.now() - house.run(old).created_at).total_seconds()
    assert stats["default"].oldest_seconds == pytest.approx(expected, abs=30)
