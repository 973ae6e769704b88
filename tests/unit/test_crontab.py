"""Whether a minute matches, as crontab(5) has it; and the scheduler's own loop."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from periodiq import cron

from scheduler.crontab import last_match, matches, next_match
from scheduler.loop import Scheduler, periodic_tasks
from storage.models import Schedule, TaskRun
from storage.repositories.schedules import Schedules
from tests.toys import wait_until
from tests.unit.conftest import House

SUNDAY = datetime(2026, 3, 1, tzinfo=UTC)
assert SUNDAY.isoweekday() == 7


def fires(expression: str, moment: datetime) -> bool:
    return matches(cron(expression), moment)


@pytest.mark.parametrize("expression", ["0 0 * * 0", "0 0 * * 7", "0 0 * * sun", "@weekly"])
def test_sunday_has_many_names(expression: str) -> None:
    week = [SUNDAY + timedelta(days=day) for day in range(7)]
    assert [fires(expression, day) for day in week] == [True] + [False] * 6


@pytest.mark.parametrize(
    ("expression", "moment", "expected"),
    [
        ("*/5 * * * *", datetime(2026, 3, 2, 10, 55, tzinfo=UTC), True),
        ("*/5 * * * *", datetime(2026, 3, 2, 10, 56, tzinfo=UTC), False),
        ("10-20/5 * * * *", datetime(2026, 3, 2, 10, 15, tzinfo=UTC), True),
        ("10-20/5 * * * *", datetime(2026, 3, 2, 10, 25, tzinfo=UTC), False),
        ("0 2 * * *", datetime(2026, 3, 2, 2, 0, tzinfo=UTC), True),
        ("0 2 * * *", datetime(2026, 3, 2, 3, 0, tzinfo=UTC), False),
        ("0 0 * 4 *", datetime(2026, 3, 2, tzinfo=UTC), False),
        ("0 0 1 * *", SUNDAY, True),
        ("0 0 2 * *", SUNDAY, False),
        ("0 0 * * 1-5", SUNDAY, False),
        ("0 0 15 * 0", SUNDAY, True),  # both restricted: either will do
        ("0 0 1 * 3", SUNDAY, True),
        ("0 0 15 * 3", SUNDAY, False),
        ("@hourly", datetime(2026, 3, 2, 7, 0, tzinfo=UTC), True),
        ("@daily", datetime(2026, 3, 2, 7, 0, tzinfo=UTC), False),
    ],
)
def test_a_minute_matches_as_in_crontab(expression: str, moment: datetime, expected: bool) -> None:
    assert fires(expression, moment) is expected


def test_the_newest_missed_minute_is_found_a_week_back_and_no_further() -> None:
    now = datetime(2026, 3, 10, 12, 3, 30, tzinfo=UTC)
    assert last_match(cron("*/5 * * * *"), now - timedelta(hours=2), now) == datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
    assert last_match(cron("*/5 * * * *"), datetime(2026, 3, 10, 12, 0, tzinfo=UTC), now) is None
    assert last_match(cron("0 0 1 * *"), now - timedelta(days=30), now) is None
    assert last_match(cron("0 0 4 * *"), now - timedelta(days=30), now) == datetime(2026, 3, 4, tzinfo=UTC)


def test_the_next_minute_is_found_within_a_year_or_not_at_all() -> None:
    now = datetime(2026, 3, 10, 12, 3, 30, tzinfo=UTC)
    assert next_match(cron("*/5 * * * *"), now) == datetime(2026, 3, 10, 12, 5, tzinfo=UTC)
    assert next_match(cron("3 12 * * *"), now) == datetime(2026, 3, 11, 12, 3, tzinfo=UTC)
    assert next_match(cron("0 0 30 2 *"), now) is None


def test_only_tasks_with_a_schedule_are_scheduled(house: House) -> None:
    assert list(periodic_tasks(house.broker)) == ["tick"]


def test_the_rows_follow_what_the_actors_declare(house: House) -> None:
    with house.session() as session:
        session.add(Schedule(task="gone", cron="* * * * *", checked_until=SUNDAY))
        session.add(Schedule(task="tick", cron="0 0 * * *", checked_until=SUNDAY, is_paused=True))
    Scheduler(house.broker, house.engine).declare()
    with house.session() as session:
        (schedule,) = Schedules(session).all()
    assert (schedule.task, schedule.cron, schedule.is_paused, schedule.checked_until) == ("tick", "* * * * *", True, SUNDAY)


def test_the_loop_waits_for_the_database_fires_and_stops(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.loop.BROKEN_SECONDS", 0.02)
    scheduler = Scheduler(house.broker, house.engine)
    declare, failures = scheduler.declare, iter([RuntimeError("away"), RuntimeError("away")])

    def sometimes() -> None:
        for failure in failures:
            raise failure
        declare()
        with house.session() as session:
            for schedule in Schedules(session).all():
                schedule.checked_until -= timedelta(minutes=5)

    monkeypatch.setattr(scheduler, "declare", sometimes)
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    wait_until(lambda: house.count(TaskRun) == 1)
    scheduler.stop()
    thread.join(30)
    assert not thread.is_alive()
    with house.session() as session:
        assert list(Schedules(session).last_ticks()) == ["tick"]
        Schedules(session).forget_old_ticks()
        assert list(Schedules(session).last_ticks()) == ["tick"]
