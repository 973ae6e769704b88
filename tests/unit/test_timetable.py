"""When a schedule fires: crontab(5) on the clock of a time zone, the days included on which that clock is changed."""

from __future__ import annotations

import itertools
import random
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from periodiq import cron

from core.errors import ConfigurationError
from runs.timetable import MINUTE, Timetable

SUNDAY = datetime(2026, 3, 1, tzinfo=UTC)
assert SUNDAY.isoweekday() == 7
BERLIN = "Europe/Berlin"
SPRING = datetime(2026, 3, 29, tzinfo=UTC)  # Berlin: 02:00 becomes 03:00 at 01:00 UTC
AUTUMN = datetime(2026, 10, 25, tzinfo=UTC)  # Berlin: 03:00 becomes 02:00 at 01:00 UTC


def at(expression: str, zone: str = "UTC") -> Timetable:
    return Timetable.of(cron(expression), zone)


def times(expression: str, zone: str, day: datetime, hours: int = 24) -> list[str]:
    """The times in UTC of the hours from a moment on."""
    found = at(expression, zone).between(day - timedelta(microseconds=1), day + timedelta(hours=hours, microseconds=-1), 10_000)
    return [f"{moment:%H:%M}" for moment in found]


@pytest.mark.parametrize("expression", ["0 0 * * 0", "0 0 * * 7", "0 0 * * sun", "@weekly"])
def test_sunday_has_many_names(expression: str) -> None:
    week = [SUNDAY + timedelta(days=day) for day in range(7)]
    assert [at(expression).matches(day) for day in week] == [True] + [False] * 6


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
    assert at(expression).matches(moment) is expected


@pytest.mark.parametrize(
    "expression", ["*/7 * * * *", "3 */5 * * *", "0 0 29 2 *", "*/20 4-6 1,15 * mon", "59 23 31 * *", "0 12 * 2,7 sun", "30 0 * * 7"]
)
def test_next_previous_and_between_agree_with_looking_at_every_minute(expression: str) -> None:
    spec, table = cron(expression), at(expression)
    begin = datetime(2028, 2, 20, tzinfo=UTC)
    minutes = [begin + each * MINUTE for each in range(20 * 24 * 60)]
    either = spec.is_dom_restricted and len({day % 7 for day in spec.dow}) < 7

    def fires(minute: datetime) -> bool:
        in_week, in_month = minute.isoweekday() % 7 in {day % 7 for day in spec.dow}, minute.day in spec.dom
        on_day = in_week or in_month if either else in_week and in_month
        return on_day and minute.month in spec.month and minute.hour in spec.hour and minute.minute in spec.minute

    expected = [minute for minute in minutes if fires(minute)]
    assert table.between(begin - MINUTE, minutes[-1], len(minutes)) == expected
    for moment in random.Random(5).sample(minutes, 40):
        assert table.next_after(moment) == next((each for each in expected if each > moment), table.next_after(minutes[-1]))
        if expected and moment >= expected[0]:
            assert table.previous(moment) == max(each for each in expected if each <= moment)


def test_between_gives_the_newest_of_many() -> None:
    now = datetime(2026, 3, 10, 12, 3, 30, tzinfo=UTC)
    found = at("*/5 * * * *").between(now - timedelta(days=60), now, 3)
    assert found == [datetime(2026, 3, 10, 11, 50, tzinfo=UTC) + each * 5 * MINUTE for each in range(3)]
    assert at("*/5 * * * *").between(datetime(2026, 3, 10, 12, 0, tzinfo=UTC), now, 3) == []


def test_the_rarest_days_are_found_at_once() -> None:
    leap_day, began = at("0 0 29 2 *"), time.process_time()
    assert leap_day.next_after(datetime(2096, 3, 1, tzinfo=UTC)) == datetime(2104, 2, 29, tzinfo=UTC)  # 2100 has none
    assert leap_day.previous(datetime(2104, 2, 28, tzinfo=UTC)) == datetime(2096, 2, 29, tzinfo=UTC)
    assert time.process_time() - began < 1.0  # a look at every minute of eight years takes ten


def test_a_local_time_is_kept_through_the_year() -> None:
    daily = at("30 8 * * *", BERLIN)
    assert daily.next_after(datetime(2026, 1, 10, tzinfo=UTC)) == datetime(2026, 1, 10, 7, 30, tzinfo=UTC)
    assert daily.next_after(datetime(2026, 7, 10, tzinfo=UTC)) == datetime(2026, 7, 10, 6, 30, tzinfo=UTC)
    midnight = at("0 0 1 * *", "Pacific/Auckland")  # there it is tomorrow already
    assert midnight.next_after(datetime(2026, 6, 30, 11, 0, tzinfo=UTC)) == datetime(2026, 6, 30, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["01:00"]),  # it does not exist that day: right after the gap
        ("0,15,30 2 * * *", ["01:00"]),  # and once for all of them
        ("0 2,3 * * *", ["01:00"]),  # 03:00 is that moment
        ("30 1,3 * * *", ["00:30", "01:30", "23:30"]),  # the last is the next morning's
        ("0 */6 * * *", ["04:00", "10:00", "16:00", "22:00"]),
    ],
)
def test_a_fixed_time_in_a_gap_fires_once_right_after_it(expression: str, expected: list[str]) -> None:
    assert times(expression, BERLIN, SPRING) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["00:30"]),  # 02:30 comes at 00:30 and again at 01:30 UTC
        ("30 1-3 * * *", ["00:30", "02:30"]),  # 01:30 was the evening before in UTC
        ("0 3 * * *", ["02:00"]),
    ],
)
def test_a_fixed_time_that_comes_twice_fires_once(expression: str, expected: list[str]) -> None:
    assert times(expression, BERLIN, AUTUMN) == expected


@pytest.mark.parametrize("day", [SPRING, AUTUMN])
def test_a_schedule_of_every_hour_goes_by_the_minutes_that_pass(day: datetime) -> None:
    every = [f"{minute // 60:02}:{minute % 60:02}" for minute in range(0, 6 * 60, 20)]
    assert times("*/20 * * * *", BERLIN, day, hours=6) == every
    assert times("0 * * * *", BERLIN, day, hours=6) == every[::3]


def test_half_an_hour_of_change_and_a_day_that_never_was() -> None:
    lord_howe = datetime(2026, 4, 4, 14, 0, tzinfo=UTC)  # 02:00 becomes 01:30 at 15:00 UTC
    assert times("45 * * * *", "Australia/Lord_Howe", lord_howe, hours=2) == ["14:45", "15:15"]
    samoa = at("0 9 30 12 *", "Pacific/Apia")  # which went to bed on the 29th of December 2011 and woke up on the 31st
    assert samoa.next_after(datetime(2011, 6, 1, tzinfo=UTC)) == datetime(2011, 12, 30, 10, 0, tzinfo=UTC)
    assert datetime(2011, 12, 30, 10, 0, tzinfo=UTC).astimezone(ZoneInfo("Pacific/Apia")).isoformat() == "2011-12-31T00:00:00+14:00"


@pytest.mark.parametrize("zone", [BERLIN, "America/New_York", "America/Santiago", "Africa/Cairo", "Australia/Lord_Howe"])
@pytest.mark.parametrize("expression", ["30 2 * * *", "*/15 * * * *", "0 0 * * *", "15 0-3 * * *"])
def test_times_only_go_forward_whatever_clocks_do(zone: str, expression: str) -> None:
    table = at(expression, zone)
    begin, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    every = table.between(begin, end, 100_000)
    assert every == sorted(set(every))
    for before, after in random.Random(1).sample(list(itertools.pairwise(every)), 30):
        assert (table.next_after(before), table.previous(after - MINUTE)) == (after, before)
    if expression == "*/15 * * * *":
        assert len(every) == 365 * 96
    elif "-" not in expression:
        assert len(every) == 365


@pytest.mark.parametrize(
    ("expression", "zone", "sentence"),
    [
        ("0 0 30 2 *", "UTC", "The cron expression '0 0 30 2 *' never fires: no month that it names has such a day."),
        ("0 0 31 4,6 *", "UTC", "The cron expression '0 0 31 4,6 *' never fires: no month that it names has such a day."),
        ("0 24 * * *", "UTC", "The cron expression '0 24 * * *' has no hour 24; mend it."),
        ("5-70 * * * *", "UTC", "The cron expression '5-70 * * * *' has no minute 60; mend it."),
        ("0 0 0 * *", "UTC", "The cron expression '0 0 0 * *' has no day of the month 0; mend it."),
        ("0 0 * * *", "Europe/Bielefeld", "There is no time zone named 'Europe/Bielefeld'; write it as Europe/Berlin or UTC."),
        ("0 0 * * *", "../etc/passwd", "There is no time zone named '../etc/passwd'; write it as Europe/Berlin or UTC."),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(expression: str, zone: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        at(expression, zone)
    assert str(refused.value) == sentence


def test_text_is_no_cron() -> None:
    with pytest.raises(ConfigurationError, match="declared with periodiq"):
        Timetable.of("* * * * *", "UTC")
