"""The scheduler: wakes at every full minute of the database's clock and turns what is due into runs.

Any number of them may run. A schedule is locked while it is looked at and every firing is a row whose key is (task, minute), so
none is doubled; minutes that passed while no scheduler could fire them are made up for as the schedule says (runs/schedule.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from core.errors import UnavailableError
from core.logging import get_logger
from runs.broker import RunBroker
from runs.relay import Relay
from runs.schedule import Schedule
from runs.task import Task
from runs.ticks import Untold, fire
from storage.engine import session_scope
from storage.repositories.schedules import Declared, Schedules

log = get_logger(__name__)
BROKEN_SECONDS = 2.0
AGAIN_SECONDS = 1.0
"""Until a schedule is looked at again that another scheduler had locked (it may have died), or whose run had to end first."""
DECLARED_EVERY = timedelta(hours=1)


@dataclass(frozen=True)
class Clock:
    """The database's time, read in a transaction. Where tests cannot wait for minutes it goes `speed` times as fast."""

    read: Callable[[Session], datetime] = lambda session: Schedules(session).database_time()
    speed: float = 1.0


def periodic_tasks(broker: RunBroker) -> dict[str, tuple[Task[Any, Any], Schedule]]:
    """Name to task and schedule, of every task that declares one."""
    found = {name: broker.task(name) for name in sorted(broker.actors)}
    return {name: (task, task.schedule) for name, task in found.items() if task.schedule is not None}


class Scheduler:
    """One scheduler process."""

    def __init__(self, broker: RunBroker, engine: Engine, clock: Clock = Clock()) -> None:
        self._broker = broker
        self._engine = engine
        self._clock = clock
        self._tasks = periodic_tasks(broker)
        self._declared_at: datetime | None = None
        self._seen_until: datetime | None = None  # every tick up to here was seen to, by us or by others
        self._stopping = threading.Event()

    def run(self) -> None:
        """Until stopped. A database that is away is waited for."""
        relay = Relay(self._engine, self._broker.publisher, self._broker.window, self._broker.relay_hooks(self._engine))
        housekeepers = relay.housekeepers()
        for housekeeper in housekeepers:
            housekeeper.start()
        log.info("scheduler_started", schedules=len(self._tasks))
        while not self._stopping.is_set():
            self._stopping.wait(self._turn())
        for housekeeper in housekeepers:
            housekeeper.stop()
        relay.close()
        self._broker.signals.close()
        log.info("scheduler_stopped")

    def stop(self) -> None:
        """Ends `run`; callable from a signal handler."""
        self._stopping.set()

    def declare(self) -> None:
        """Makes the rows match what the actors declare; later only says that they still do, for another release may have changed them.

        A schedule whose row has gone missing goes on where it was seen to last.
        """
        declared = {name: _declared(each) for name, (_, each) in self._tasks.items()}
        with session_scope(system=True, engine=self._engine) as session:
            moment = self._clock.read(session)
            Schedules(session).declare(declared, self._seen_until or moment, change=self._declared_at is None)
        self._declared_at = moment

    def tick(self) -> float:
        """Starts every run that is due by the database's clock. Returns in how many seconds to look again."""
        with session_scope(system=True, engine=self._engine) as session:
            moment = self._clock.read(session)
            checked = {row.task: row.checked_until for row in Schedules(session).all()}
        if self._declared_at is None or moment - self._declared_at > DECLARED_EVERY or self._tasks.keys() - checked.keys():
            self.declare()
        minute = moment.replace(second=0, microsecond=0)
        late = [name for name in self._tasks if checked.get(name, minute) < minute]
        if [name for name in late if not self._is_seen_to(name, moment)]:
            return AGAIN_SECONDS / self._clock.speed
        self._seen_until = minute
        return (60.0 - moment.second - moment.microsecond / 1e6 + 0.05) / self._clock.speed

    def _turn(self) -> float:
        try:
            return self.tick()
        except Exception as error:
            log.warning("scheduler_waits", error=type(error).__name__)
            return BROKEN_SECONDS

    def _is_seen_to(self, name: str, moment: datetime) -> bool:
        """One schedule that cannot be fired does not keep the others from it."""
        try:
            return self._fire_if_due(name, moment)
        except UnavailableError:
            raise
        except Exception as error:
            log.error("schedule_not_fired", task_name=name, error=type(error).__name__)
            return False

    def _fire_if_due(self, name: str, moment: datetime) -> bool:
        """Whether nothing is left to do for the schedule in this minute."""
        task, schedule = self._tasks[name]
        minute = moment.replace(second=0, microsecond=0)
        started: list[tuple[datetime, str]] = []
        with session_scope(system=True, engine=self._engine) as session:
            row = Schedules(session).take(name)
            if row is None:
                return False
            if row.checked_until >= minute or (row.cron, row.timezone) != (schedule.timetable.cron, schedule.timetable.zone):
                return True  # the latter: another release has declared it otherwise, and sees to it
            due = [] if row.is_paused else schedule.due(row.checked_until, moment)
            row.checked_until, is_done = self._fire(session, task, due, minute, row.checked_until, started)
        for tick, run_id in started:
            log.info("schedule_fired", task_name=name, task_id=run_id, late_seconds=int((moment - tick) / timedelta(seconds=1)))
        return is_done

    @staticmethod
    def _fire(
        session: Session,
        task: Task[Any, Any],
        due: list[datetime],
        minute: datetime,
        checked_until: datetime,
        started: list[tuple[datetime, str]],
    ) -> tuple[datetime, bool]:
        """Until when the schedule is seen to now, and whether that is all."""
        for tick in due:
            fired = fire(session, task, tick)
            if fired is Untold.WAITS:
                return checked_until, False
            if isinstance(fired, str):
                started.append((tick, fired))
            checked_until = tick
        return minute, True


def _declared(schedule: Schedule) -> Declared:
    timetable = schedule.timetable
    return Declared(timetable.cron, timetable.zone, str(schedule.catch_up), str(schedule.overlap), schedule.jitter)
