"""Whether a minute matches a cron expression, as crontab(5) has it.

periodiq parses the expression and is what the actors declare; its own matching is not used, because it counts Sunday as 7 in one
place and 0 in the other, so that `0`, `sun` and `@weekly` never fire.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from periodiq import CronSpec

MINUTE = timedelta(minutes=1)


def matches(spec: CronSpec, minute: datetime) -> bool:
    """Whether the schedule fires in that minute (UTC)."""
    if minute.minute not in spec.minute or minute.hour not in spec.hour or minute.month not in spec.month:
        return False
    weekdays = {day % 7 for day in spec.dow}
    in_week = minute.isoweekday() % 7 in weekdays
    in_month = minute.day in spec.dom
    if len(weekdays) < 7 and spec.is_dom_restricted:
        return in_week or in_month  # crontab(5): when both are restricted, either will do
    return in_week and in_month


def last_match(spec: CronSpec, after: datetime, until: datetime) -> datetime | None:
    """The newest matching minute in (after, until], at most a week back: what a scheduler that was away has missed."""
    minute = until.replace(second=0, microsecond=0)
    earliest = max(after, until - timedelta(days=7))
    while minute > earliest:
        if matches(spec, minute):
            return minute
        minute -= MINUTE
    return None


def next_match(spec: CronSpec, after: datetime) -> datetime | None:
    """The next matching minute within the coming year."""
    minute = after.replace(second=0, microsecond=0) + MINUTE
    for _ in range(366 * 24 * 60):
        if matches(spec, minute):
            return minute
        minute += MINUTE
    return None
