"""A task that is due every minute; the real schedules are five minutes apart, which no test waits for.

`python -m tests.acceptance.ticking` is Mailroom's scheduler with it, `periodiq actors tests.acceptance.ticking` the stock one.
"""

from __future__ import annotations

import sys

from periodiq import cron

import actors  # declares the broker that the settings describe
from brokers.queues import Queue
from runs.task import task


@task(queue=Queue.PERIODIC, periodic=cron("* * * * *"))
def every_minute() -> None:
    """Do nothing, once a minute."""


def main() -> int:
    """Mailroom's own scheduler process."""
    from cli import scheduler_process

    assert "every_minute" in actors.broker.actors
    return scheduler_process.main()


if __name__ == "__main__":
    sys.exit(main())
