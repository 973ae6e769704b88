"""A task that is due every minute; the real schedules are five minutes apart, which no test waits for.

`python -m tests.acceptance.ticking` is Mailroom's scheduler with it, `periodiq actors tests.acceptance.ticking` the stock one. With
TICKING_SPEED its minutes are so many times as short, from TICKING_SINCE on: it reads the database's clock, as ever, and multiplies.
"""

from __future__ import annotations

import os
import select
import sys
import time
from datetime import datetime

from periodiq import cron
from sqlalchemy.orm import Session

import actors  # declares the broker that the settings describe
from brokers.queues import Queue
from runs.task import task
from scheduler import loop
from storage.repositories.schedules import Schedules


@task(queue=Queue.PERIODIC, periodic=cron("* * * * *"), catch_up="all")
def every_minute() -> None:
    """Do nothing, once a minute."""


def main() -> int:
    """Mailroom's own scheduler process."""
    from cli import scheduler_process

    assert "every_minute" in actors.broker.actors
    if "FAKETIME" in os.environ:  # under libfaketime Python's own sleep, until a moment of the monotonic clock, fails with EINVAL
        time.sleep = lambda seconds: select.select([], [], [], float(seconds)) and None
    if "TICKING_SPEED" in os.environ:
        hurry(float(os.environ["TICKING_SPEED"]), datetime.fromisoformat(os.environ["TICKING_SINCE"]))
    return scheduler_process.main()


def hurry(speed: float, since: datetime) -> None:
    """Schedulers of this process live faster, and have no schedule but the one here: the real ones would start real work."""
    for name in set(loop.periodic_tasks(actors.broker)) - {"every_minute"}:
        del actors.broker.actors[name]

    def read(session: Session) -> datetime:
        return since + (Schedules(session).database_time() - since) * speed

    loop.Scheduler.__init__.__defaults__ = (loop.Clock(read, speed),)


if __name__ == "__main__":
    sys.exit(main())
