"""When a schedule fires: a cron expression on the clock of a time zone, as crontab(5) has it, with every change of the clock decided.

periodiq parses the expression and is what the actors declare; its own matching is not used, because it counts Sunday as 7 in one
place and 0 in the other, so that `0`, `sun` and `@weekly` never fire, and knows only the zone of its process.

When clocks change: a schedule with hours of its own is one of fixed times. One that does not exist that day fires once, right after
the gap; one that exists twice fires the first time. A schedule of every hour goes by the minutes that really pass: it has no
times in a gap, and fires in both passes of an hour that comes twice.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property, lru_cache
from zoneinfo import ZoneInfo

from periodiq import CronSpec, cron

from core.errors import ConfigurationError

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
YEARS = 9
"""The rarest date there is: from 29 February 2096 to that of 2104."""
RANGES = {"minute": range(60), "hour": range(24), "dom": range(1, 32), "month": range(1, 13), "dow": range(8)}
NAMES = {"minute": "minute", "hour": "hour", "dom": "day of the month", "month": "month", "dow": "day of the week"}


@dataclass(frozen=True)
class Timetable:
    """An expression and its zone; both as text, so that a row of the record says it all. Moments are in UTC, of whole minutes."""

    cron: str
    zone: str = "UTC"

    @classmethod
    def of(cls, spec: CronSpec, zone: str = "UTC") -> Timetable:
        """What a task declares. Raises ConfigurationError for a zone that is unknown and an expression that never fires."""
        if not isinstance(spec, CronSpec):
            raise ConfigurationError('A schedule is declared with periodiq: periodic=cron("*/5 * * * *").')
        found = cls(str(spec), zone)
        for field, allowed in RANGES.items():
            wrong = [value for value in getattr(found._spec, field) if value not in allowed]
            if wrong:
                raise ConfigurationError(f"The cron expression {found.cron!r} has no {NAMES[field]} {wrong[0]}; mend it.")
        found._zone  # noqa: B018  (raises for one that is unknown)
        if found.next_after(datetime(2095, 1, 1, tzinfo=UTC)) is None:
            raise ConfigurationError(f"The cron expression {found.cron!r} never fires: no month that it names has such a day.")
        return found

    def next_after(self, moment: datetime) -> datetime | None:
        """The first time after the moment; None: never."""
        for day in self._days(moment, 1):
            times = _times_of(self, day)
            place = bisect_right(times, moment)
            if place < len(times):
                return times[place]
        return None

    def previous(self, moment: datetime) -> datetime | None:
        """The last time not after the moment; None: never."""
        return next(self._backwards(moment), None)

    def between(self, after: datetime, until: datetime, most: int) -> list[datetime]:
        """The newest times in (after, until], in order, and at most so many."""
        found: list[datetime] = []
        for moment in self._backwards(until):
            if moment <= after or len(found) == most:
                break
            found.append(moment)
        return found[::-1]

    def matches(self, minute: datetime) -> bool:
        """Whether it fires in that minute."""
        return self.previous(minute) == minute

    def _backwards(self, moment: datetime) -> Iterator[datetime]:
        for day in self._days(moment, -1):
            times = _times_of(self, day)
            yield from reversed(times[: bisect_right(times, moment)])

    def _days(self, moment: datetime, step: int) -> Iterator[date]:
        """The local days that may have times from the moment on, in either direction."""
        day = moment.astimezone(self._zone).date()
        last = date(day.year + step * YEARS, 6, 1)
        while (last - day).days * step > 0:
            if day.month not in self._months:
                day = (day.replace(day=1) + 32 * DAY).replace(day=1) if step > 0 else day.replace(day=1) - DAY
                continue
            if self._has(day):
                yield day
            day += step * DAY

    def _has(self, day: date) -> bool:
        in_week, in_month = day.isoweekday() % 7 in self._weekdays, day.day in self._spec.dom
        if len(self._weekdays) < 7 and self._spec.is_dom_restricted:
            return in_week or in_month  # crontab(5): when both are restricted, either will do
        return in_week and in_month

    def times_on(self, day: date) -> list[datetime]:
        """All times of a local day that matches, in order."""
        midnight = datetime.combine(day, time(0), self._zone)
        began, offset = midnight.astimezone(UTC), midnight.utcoffset()
        if (began + DAY).astimezone(self._zone).utcoffset() == (began - DAY).astimezone(self._zone).utcoffset() == offset:
            return [began + timedelta(hours=hour, minutes=minute) for hour in self._spec.hour for minute in self._spec.minute]
        local = [datetime.combine(day, time(hour, minute)) for hour in self._spec.hour for minute in self._spec.minute]
        if self.has_fixed_times:
            found = {self._moment_of(each) for each in local}
        else:
            found = {moment for each in local for moment in self._moments_of(each)}
        return sorted(found)

    @cached_property
    def has_fixed_times(self) -> bool:
        """Whether it names hours; otherwise it goes by the minutes that really pass."""
        return len(self._spec.hour) < 24

    def _moment_of(self, local: datetime) -> datetime:
        """Of a local time that comes twice the first, of one that does not come the end of the gap."""
        first = local.replace(tzinfo=self._zone).astimezone(UTC)
        if first.astimezone(self._zone).replace(tzinfo=None) == local:
            return first
        return self._change_between(local.replace(tzinfo=self._zone, fold=1).astimezone(UTC), first)

    def _moments_of(self, local: datetime) -> set[datetime]:
        """The one, two or no moments of a local time."""
        both = {local.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1)}
        return {moment for moment in both if moment.astimezone(self._zone).replace(tzinfo=None) == local}

    def _change_between(self, before: datetime, after: datetime) -> datetime:
        """The minute in which the clock changed."""
        offset = before.astimezone(self._zone).utcoffset()
        minutes = range(int((after - before) / MINUTE) + 1)
        place = bisect_left(minutes, True, key=lambda each: (before + each * MINUTE).astimezone(self._zone).utcoffset() != offset)
        return before + place * MINUTE

    @cached_property
    def _spec(self) -> CronSpec:
        return cron(self.cron)

    @cached_property
    def _months(self) -> frozenset[int]:
        return frozenset(self._spec.month)

    @cached_property
    def _weekdays(self) -> frozenset[int]:
        return frozenset(day % 7 for day in self._spec.dow)

    @cached_property
    def _zone(self) -> ZoneInfo:
        try:
            return ZoneInfo(self.zone)
        except (KeyError, ValueError, OSError):
            raise ConfigurationError(f"There is no time zone named {self.zone!r}; write it as Europe/Berlin or UTC.") from None


@lru_cache(maxsize=256)
def _times_of(timetable: Timetable, day: date) -> list[datetime]:
    """Looked at every minute for a day, and made once."""
    return timetable.times_on(day)
