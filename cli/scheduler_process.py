"""One scheduler process: `python -m cli.scheduler_process`. Any number of them may run."""

from __future__ import annotations

import signal
import sys

from cli.processes import start_logging
from core.settings import get_settings


def main() -> int:
    """Runs until SIGTERM."""
    start_logging(get_settings())

    import actors
    from scheduler.loop import Scheduler
    from storage.engine import get_engine

    scheduler = Scheduler(actors.broker, get_engine())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: scheduler.stop())
    scheduler.run()
    actors.broker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
