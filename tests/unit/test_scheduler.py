"""The scheduler: what is due, what was missed, what overlaps; and its own loop. The clock is the test's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from periodiq import cron

from brokers.queues import Queue
from core.errors import ConfigurationError, NotFoundError
from core.tenancy import SYSTEM, acting_as
from runs.schedule import MOST_MISSED, CatchUp, Overlap
from runs.schedule import Schedule as Declaration
from runs.task import Task, task
from runs.ticks import fire
from runs.timetable import MINUTE, Timetable
from scheduler.control import get_schedules, run_now, set_paused
from scheduler.loop import Clock, Scheduler, periodic_tasks
from storage.models import Schedule, ScheduleTick, TaskRun
from storage.repositories.schedules import Declared, Schedules
from tests.toys import wait_until
from tests.unit.conftest import House

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
Declare = Callable[..., Task[..., None]]


class Ticking:
    """A scheduler over a clock that the test sets."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.now = NOON
        self.scheduler = self.another()

    def another(self) -> Scheduler:
        return Scheduler(self.house.broker, self.house.engine, Clock(lambda _session: self.now))

    def tick(self, at: datetime) -> float:
        self.now = at
        return self.scheduler.tick()

    def fired(self, name: str) -> list[str]:
        with self.house.session() as session:
            ticks = session.query(ScheduleTick).filter_by(task=name).order_by(ScheduleTick.minute)
            return [f"{tick.minute:%H:%M}{' skipped' if tick.is_skipped else ''}" for tick in ticks]

    def runs(self, name: str) -> list[TaskRun]:
        with self.house.session() as session:
            return session.query(TaskRun).filter_by(task=name).order_by(TaskRun.id).all()

    def end(self, run_id: str) -> None:
        self.house.set_run(run_id, state="SUCCESS")


@pytest.fixture
def declare(house: House) -> Declare:
    """A task of a test's own, every five minutes unless it says otherwise; the toys' own is not in the way."""
    del house.broker.actors["tick"]

    def made(name: str = "often", expression: str = "*/5 * * * *", **options: Any) -> Task[..., None]:
        def run() -> None: ...

        run.__name__ = name
        return task(queue=Queue.PERIODIC, periodic=cron(expression), **options)(run)

    return made


def test_only_tasks_with_a_schedule_are_scheduled(house: House) -> None:
    assert list(periodic_tasks(house.broker)) == ["tick"]


# What a task may say.


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"periodic": cron("0 0 30 2 *")}, "odd: The cron expression '0 0 30 2 *' never fires: no month that it names has such a day."),
        ({"periodic": cron("* * * * *"), "timezone": "Mars"}, "odd: There is no time zone named 'Mars'; write it as Europe/Berlin or UTC."),
        ({"periodic": cron("* * * * *"), "catch_up": "some"}, "odd: catch_up is one of skip, once, all."),
        ({"periodic": cron("* * * * *"), "overlap": True}, "odd: overlap is one of allow, skip, queue."),
        ({"periodic": cron("* * * * *"), "jitter": -1}, "odd: jitter is a number of seconds from 0 to 86400."),
        ({"periodic": cron("* * * * *"), "jitter": "5"}, "odd: jitter is a number of seconds from 0 to 86400."),
        ({"overlap": "skip"}, "odd: overlap is an option of tasks with periodic=cron(...) only."),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_when_it_is_declared(house: House, options: dict[str, Any], sentence: str) -> None:
    def odd() -> None: ...

    with pytest.raises(ConfigurationError) as refused:
        task(queue=Queue.PERIODIC, **options)(odd)
    assert str(refused.value) == sentence
    assert "odd" not in house.broker.actors


@pytest.mark.parametrize(
    ("policy", "minutes_late", "expected"),
    [
        (CatchUp.ONCE, 0, [0]),
        (CatchUp.ONCE, 12, [10]),
        (CatchUp.ALL, 12, [0, 5, 10]),
        (CatchUp.SKIP, 0.9, [0]),
        (CatchUp.SKIP, 3, []),
        (CatchUp.SKIP, 10.5, [10]),  # the newest is no missed one
    ],
)
def test_missed_times_are_made_up_for_as_the_schedule_says(policy: CatchUp, minutes_late: float, expected: list[int]) -> None:
    schedule = Declaration(Timetable("*/5 * * * *"), policy)
    assert schedule.due(NOON - MINUTE, NOON + minutes_late * MINUTE) == [NOON + minute * MINUTE for minute in expected]


def test_of_very_many_missed_times_the_newest_are_made_up_for() -> None:
    due = Declaration(Timetable("* * * * *"), CatchUp.ALL).due(NOON - timedelta(days=30), NOON)
    assert (len(due), due[-1]) == (MOST_MISSED, NOON)


def test_jitter_is_the_same_for_everybody_and_another_for_each_time() -> None:
    ticks = [NOON + each * MINUTE for each in range(200)]
    delays = [Declaration(Timetable("* * * * *"), jitter=30.0).delay_of("t", tick) for tick in ticks]
    assert delays == [Declaration(Timetable("* * * * *"), jitter=30.0).delay_of("t", tick) for tick in ticks]
    assert all(timedelta() <= delay <= timedelta(seconds=30) for delay in delays)
    assert len(set(delays)) > 190
    assert timedelta(seconds=12) < sum(delays, timedelta()) / 200 < timedelta(seconds=18)
    assert Declaration(Timetable("* * * * *")).delay_of("t", NOON) == timedelta()


# What the loop does.


def test_a_time_that_comes_is_one_run_however_often_anybody_looks(house: House, declare: Declare) -> None:
    declare()
    ticking = Ticking(house)
    assert 59 < ticking.tick(NOON) < 61
    other = ticking.another()
    assert ticking.fired("often") == []  # it begins with the time after
    for seconds in (299.9, 300, 300, 301, 330):
        ticking.tick(NOON + timedelta(seconds=seconds))
        other.tick()
    assert ticking.fired("often") == ["12:05"]
    assert len(ticking.runs("often")) == 1


def test_each_schedule_makes_up_for_its_own_way(house: House, declare: Declare) -> None:
    for policy in CatchUp:
        declare(policy, catch_up=policy)
    ticking = Ticking(house)
    ticking.tick(NOON)
    ticking.tick(NOON + 17 * MINUTE)
    assert [ticking.fired(policy) for policy in CatchUp] == [[], ["12:15"], ["12:05", "12:10", "12:15"]]
    ticking.tick(NOON + 20 * MINUTE)
    assert [len(ticking.runs(policy)) for policy in CatchUp] == [1, 2, 4]


def test_a_run_starts_by_its_jitter_later(house: House, declare: Declare) -> None:
    often = declare(jitter=60.0)
    ticking = Ticking(house)
    ticking.tick(NOON)
    ticking.tick(NOON + 5 * MINUTE)
    (run,) = ticking.runs("often")
    assert often.schedule is not None
    assert run.eta == NOON + 5 * MINUTE + often.schedule.delay_of("often", NOON + 5 * MINUTE)


def test_a_schedule_that_skips_has_one_live_run(house: House, declare: Declare) -> None:
    often = declare(overlap="skip")
    ticking = Ticking(house)
    ticking.tick(NOON)
    for minute in (5, 10):
        assert ticking.tick(NOON + minute * MINUTE) > 59
    (run,) = ticking.runs("often")
    assert ticking.fired("often") == ["12:05", "12:10 skipped"]
    with house.session() as session:
        assert run_now(session, "often").id == run.id
        (info,) = get_schedules(session)
    assert (info.last_task_id, info.last_state, info.last_is_skipped) == (run.id, "PENDING", True)
    ticking.end(run.id)
    ticking.tick(NOON + 15 * MINUTE)
    assert ticking.fired("often")[2:] == ["12:15"]
    assert often.schedule is not None
    assert often.schedule.overlap is Overlap.SKIP


@pytest.mark.parametrize(("catch_up", "expected"), [("once", ["12:05", "12:15"]), ("all", ["12:05", "12:10", "12:15"])])
def test_a_schedule_that_queues_fires_once_its_run_has_ended(house: House, declare: Declare, catch_up: str, expected: list[str]) -> None:
    declare(overlap="queue", catch_up=catch_up)
    ticking = Ticking(house)
    ticking.tick(NOON)
    ticking.tick(NOON + 5 * MINUTE)
    for seconds in (0, 20, 300):
        assert ticking.tick(NOON + 10 * MINUTE + timedelta(seconds=seconds)) < 2  # it looks again soon
        assert ticking.fired("often") == ["12:05"]
    while ticking.fired("often") != expected:
        (live,) = [run for run in ticking.runs("often") if run.state == "PENDING"]
        ticking.end(live.id)
        ticking.tick(ticking.now + timedelta(seconds=1))
    assert len(ticking.runs("often")) == len(expected)


def test_what_passed_while_it_was_paused_is_not_made_up_for(house: House, declare: Declare) -> None:
    declare(catch_up="all")
    ticking = Ticking(house)
    real = datetime.now(UTC).replace(second=0, microsecond=0)
    ticking.tick(real - timedelta(hours=2))
    with house.session() as session:
        set_paused(session, "often", paused=True)
        assert get_schedules(session)[0].next_tick_at is None
    ticking.tick(real - timedelta(hours=1))
    with house.session() as session:
        set_paused(session, "often", paused=False)  # and no scheduler has looked for an hour
    ticking.tick(real + timedelta(minutes=10))
    assert 1 <= len(ticking.fired("often")) <= 3


def test_a_changed_expression_has_no_past(house: House, declare: Declare) -> None:
    declare(catch_up="all")
    ticking = Ticking(house)
    ticking.tick(NOON)
    del house.broker.actors["often"]
    declare(expression="* * * * *", catch_up="all", timezone="Europe/Berlin")
    ticking.scheduler, old = ticking.another(), ticking.scheduler
    ticking.tick(NOON + 50 * MINUTE)
    assert ticking.fired("often") == []
    ticking.tick(NOON + 52 * MINUTE)
    old.tick()  # an older release beside it leaves it alone
    ticking.tick(NOON + 180 * MINUTE)
    old.tick()  # also when it says again what it knows
    assert ticking.fired("often")[:2] == ["12:51", "12:52"]
    assert len(ticking.fired("often")) == MOST_MISSED + 2


def test_the_rows_follow_what_the_actors_declare(house: House) -> None:
    with house.session() as session:
        session.add(Schedule(task="gone", cron="* * * * *", checked_until=NOON, declared_at=datetime.now(UTC) - timedelta(days=2)))
        session.add(Schedule(task="newer", cron="* * * * *", checked_until=NOON, declared_at=datetime.now(UTC)))
        session.add(Schedule(task="tick", cron="0 0 * * *", checked_until=NOON, is_paused=True, timezone="Asia/Tokyo"))
    scheduler = Scheduler(house.broker, house.engine)
    scheduler.declare()
    with house.session() as session:
        newer, tick = Schedules(session).all()
    assert newer.task == "newer"  # another release's, while that runs
    assert (tick.task, tick.cron, tick.timezone, tick.is_paused) == ("tick", "* * * * *", "UTC", True)
    assert tick.checked_until > NOON


def test_a_row_that_went_missing_comes_back_without_a_gap(house: House, declare: Declare) -> None:
    declare(expression="* * * * *")
    ticking = Ticking(house)
    ticking.tick(NOON)
    ticking.tick(NOON + MINUTE)
    with house.session() as session:
        session.query(Schedule).delete()
    ticking.tick(NOON + 2 * MINUTE)
    ticking.tick(NOON + 2 * MINUTE + timedelta(seconds=1))
    assert ticking.fired("often") == ["12:01", "12:02"]


def test_a_schedule_that_cannot_be_fired_does_not_keep_others_from_it(
    house: House, declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare("broken")
    declare("sound")
    ticking = Ticking(house)
    ticking.tick(NOON)

    def sometimes(session: Any, task: Task[Any, Any], minute: datetime) -> Any:
        if task.actor_name == "broken":
            raise RuntimeError("odd")
        return fire(session, task, minute)

    monkeypatch.setattr("scheduler.loop.fire", sometimes)
    assert ticking.tick(NOON + 5 * MINUTE) < 2
    assert [ticking.fired(name) for name in ("broken", "sound")] == [[], ["12:05"]]
    monkeypatch.undo()
    ticking.tick(NOON + 6 * MINUTE)
    assert ticking.fired("broken") == ["12:05"]


def test_one_that_another_scheduler_has_locked_is_looked_at_again(house: House, declare: Declare, monkeypatch: pytest.MonkeyPatch) -> None:
    declare()
    ticking = Ticking(house)
    ticking.tick(NOON)
    monkeypatch.setattr(Schedules, "take", lambda *_: None)
    assert ticking.tick(NOON + 5 * MINUTE) < 2
    monkeypatch.undo()
    assert ticking.tick(NOON + 5 * MINUTE) > 59
    assert ticking.fired("often") == ["12:05"]


def test_the_loop_waits_for_the_database_fires_and_stops(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.loop.BROKEN_SECONDS", 0.02)
    clock = [NOON]
    scheduler = Scheduler(house.broker, house.engine, Clock(lambda _session: clock[0], speed=3000.0))
    tick, failures = scheduler.tick, iter([RuntimeError("away"), RuntimeError("away")])

    def sometimes() -> float:
        for failure in failures:
            raise failure
        wait = tick()
        clock[0] = NOON + MINUTE
        return wait

    monkeypatch.setattr(scheduler, "tick", sometimes)
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    wait_until(lambda: house.count(TaskRun) == 1)
    scheduler.stop()
    thread.join(20)
    assert not thread.is_alive()
    with house.session() as session:
        assert list(Schedules(session).last_ticks()) == ["tick"]
        Schedules(session).forget_old_ticks()
        assert list(Schedules(session).last_ticks()) == ["tick"]


# periodiq's own scheduler.


def test_a_tick_of_periodiq_s_is_ours_only_where_ours_would_fire(house: House, declare: Declare) -> None:
    berlin = declare("berlin", "0 2 * * *", timezone="Europe/Berlin")
    paused = declare("paused")
    with house.session() as session:
        Schedules(session).declare({"paused": Declared("*/5 * * * *")}, NOON)
        set_paused(session, "paused", paused=True)
    with acting_as(SYSTEM):
        for moment in ("2026-03-01T02:00:00+00:00", "2026-03-01T02:00:03+01:00", "2026-03-01T02:00:30+01:00"):
            berlin.send_with_options(scheduled_at=moment)
        paused.send_with_options(scheduled_at="2026-03-01T12:05:00+00:00")
    assert Ticking(house).fired("berlin") == ["01:00"]
    assert [house.count(TaskRun), Ticking(house).fired("paused")] == [1, []]


def test_a_tick_of_periodiq_s_that_has_to_wait_is_left_to_ours(house: House, declare: Declare) -> None:
    often = declare(overlap="queue")
    with acting_as(SYSTEM):
        for moment in ("2026-03-01T12:05:00+00:00", "2026-03-01T12:10:00+00:00"):
            often.send_with_options(scheduled_at=moment)
    assert Ticking(house).fired("often") == ["12:05"]


def test_run_now_is_for_schedules(house: House) -> None:
    with house.session() as session, pytest.raises(NotFoundError, match="no schedule named add"):
        run_now(session, "add")
