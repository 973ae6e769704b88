"""The scheduler: wakes at every full minute of the database's clock and turns what is due into runs.

Any number of them may run. A schedule is locked while it is looked at and every firing is a row whose key is (task, minute), so
none is doubled; a minute that passed while no scheduler ran is made up for once, by the newest one that matched.
"""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import Any

from periodiq import CronSpec
from sqlalchemy import Engine

from core.logging import get_logger
from runs.broker import RunBroker
from runs.relay import Relay
from runs.task import Task
from runs.ticks import enqueue_tick
from scheduler.crontab import last_match
from storage.engine import session_scope
from storage.repositories.schedules import Schedules

log = get_logger(__name__)
BROKEN_SECONDS = 2.0


def periodic_tasks(broker: RunBroker) -> dict[str, tuple[Task[Any, Any], CronSpec]]:
    """Name to task and schedule, of every task that declares one."""
    found = {name: broker.task(name) for name in sorted(broker.actors)}
    return {name: (task, task.options["periodic"]) for name, task in found.items() if "periodic" in task.options}


class Scheduler:
    """One scheduler process."""

    def __init__(self, broker: RunBroker, engine: Engine) -> None:
        self._broker = broker
        self._engine = engine
        self._tasks = periodic_tasks(broker)
        self._stopping = threading.Event()

    def run(self) -> None:
        """Until stopped. A database that is away is waited for."""
        relay = Relay(self._engine, self._broker.publisher, self._broker.window)
        housekeepers = relay.housekeepers()
        for housekeeper in housekeepers:
            housekeeper.start()
        log.info("scheduler_started", schedules=len(self._tasks))
        is_declared = False
        while not self._stopping.is_set():
            try:
                if not is_declared:
                    self.declare()
                    is_declared = True
                wait = self._until_next_minute(self.tick())
            except Exception as error:
                log.warning("scheduler_waits", error=type(error).__name__)
                wait = BROKEN_SECONDS
            self._stopping.wait(wait)
        for housekeeper in housekeepers:
            housekeeper.stop()
        relay.close()
        log.info("scheduler_stopped")

    def stop(self) -> None:
        """Ends `run`; callable from a signal handler."""
        self._stopping.set()

    def declare(self) -> None:
        """Makes the rows match what the actors declare."""
        with session_scope(system=True, engine=self._engine) as session:
            schedules = Schedules(session)
            schedules.declare({name: str(spec) for name, (_, spec) in self._tasks.items()}, schedules.database_time())

    def tick(self) -> datetime:
        """Starts every run that is due by the database's clock, and returns that clock's time."""
        with session_scope(system=True, engine=self._engine) as session:
            moment = Schedules(session).database_time()
        for name in self._tasks:
            self._fire_if_due(name, moment)
        return moment

    def _fire_if_due(self, name: str, moment: datetime) -> None:
        task, spec = self._tasks[name]
        with session_scope(system=True, engine=self._engine) as session:
            schedules = Schedules(session)
            schedule = schedules.take(name)
            if schedule is None or schedule.checked_until >= moment.replace(second=0, microsecond=0):
                return
            minute = last_match(spec, schedule.checked_until, moment)
            schedule.checked_until = moment.replace(second=0, microsecond=0)
            if minute is None or schedule.is_paused:
                return
            run_id = enqueue_tick(session, task, minute)
        if run_id is not None:
            late = moment - minute
            log.info("schedule_fired", task_name=name, task_id=run_id, late_seconds=int(late / timedelta(seconds=1)))

    @staticmethod
    def _until_next_minute(moment: datetime) -> float:
        return 60.0 - moment.second - moment.microsecond / 1e6 + 0.05
