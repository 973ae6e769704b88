"""What a task says of its schedule: when it fires, what becomes of times that were missed, whether its runs may overlap, how they spread.

Pure: everything is computed from the time that fires, so that every scheduler comes to the same answer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

from core.errors import ConfigurationError
from runs.timetable import Timetable

MOST_MISSED = 100
"""So many missed times are made up for, the newest, where all are wanted."""
GRACE = timedelta(seconds=60)
"""A time that is noticed later than this has been missed."""
LONGEST_JITTER = 86_400.0
OPTIONS = {"timezone", "catch_up", "overlap", "jitter"}
E = TypeVar("E", bound=StrEnum)


class CatchUp(StrEnum):
    """What becomes of times that passed while no scheduler could fire them."""

    SKIP = "skip"  # nothing
    ONCE = "once"  # one run, for the newest
    ALL = "all"  # a run for each, up to MOST_MISSED


class Overlap(StrEnum):
    """What becomes of a time that comes while a run of the schedule waits or runs."""

    ALLOW = "allow"  # another run
    SKIP = "skip"  # none: the one that is there stands for it
    QUEUE = "queue"  # it is missed until that run has ended, and then made up for


@dataclass(frozen=True)
class Schedule:
    """Declared on a task; `jitter` in seconds."""

    timetable: Timetable
    catch_up: CatchUp = CatchUp.ONCE
    overlap: Overlap = Overlap.ALLOW
    jitter: float = 0.0

    @classmethod
    def of(cls, task: str, options: dict[str, Any]) -> Schedule | None:
        """From the options of an actor; None without `periodic`. Raises ConfigurationError with the task's name."""
        if "periodic" not in options:
            if OPTIONS & options.keys():
                raise ConfigurationError(f"{task}: {min(OPTIONS & options.keys())} is an option of tasks with periodic=cron(...) only.")
            return None
        try:
            return cls(
                Timetable.of(options["periodic"], options.get("timezone", "UTC")),
                _one_of(CatchUp, "catch_up", options.get("catch_up", CatchUp.ONCE)),
                _one_of(Overlap, "overlap", options.get("overlap", Overlap.ALLOW)),
                _jitter(options.get("jitter", 0.0)),
            )
        except ConfigurationError as error:
            raise ConfigurationError(f"{task}: {error}") from None

    @property
    def key(self) -> str | None:
        """The unique key of its runs where only one may be live."""
        return None if self.overlap is Overlap.ALLOW else "schedule"

    def due(self, after: datetime, moment: datetime) -> list[datetime]:
        """Which of the times in (after, moment] get a run, the first first."""
        if self.catch_up is CatchUp.ALL:
            return self.timetable.between(after, moment, MOST_MISSED)
        newest = self.timetable.between(after, moment, 1)
        if self.catch_up is CatchUp.ONCE:
            return newest
        return [each for each in newest if moment - each <= GRACE]

    def delay_of(self, task: str, tick: datetime) -> timedelta:
        """How much later than its time a run starts: the same whoever asks, another for each time."""
        if not self.jitter:
            return timedelta()
        digest = hashlib.blake2b(f"{task} {tick.isoformat()}".encode(), digest_size=8).digest()
        return timedelta(milliseconds=round(self.jitter * 1000 * int.from_bytes(digest) / 2**64))


def _one_of(kind: type[E], option: str, given: object) -> E:
    try:
        return kind(given)  # type: ignore[arg-type]  # whatever else it is, it is refused
    except ValueError:
        raise ConfigurationError(f"{option} is one of {', '.join(kind)}.") from None


def _jitter(given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= LONGEST_JITTER:
        raise ConfigurationError(f"jitter is a number of seconds from 0 to {LONGEST_JITTER:.0f}.")
    return float(given)
