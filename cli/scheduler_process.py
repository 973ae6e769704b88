"""One scheduler process: `python -m cli.scheduler_process`. Any number of them may run."""

from __future__ import annotations

import sys
import threading

from cli.processes import start_logging
from cli.signals import stop_signal
from core.settings import get_settings


def main() -> int:
    """Runs until SIGTERM."""
    told_to_stop = stop_signal()
    start_logging(get_settings())

    import actors
    from scheduler.loop import Scheduler
    from storage.engine import get_engine

    scheduler = Scheduler(actors.broker, get_engine())
    loop = threading.Thread(target=scheduler.run, name="scheduler", daemon=True)  # its Event must not be set by a signal handler
    loop.start()
    while loop.is_alive() and not told_to_stop.wait(1.0):
        pass
    has_failed = not loop.is_alive()
    scheduler.stop()
    loop.join(10)
    actors.broker.close()
    return 1 if has_failed else 0


if __name__ == "__main__":
    sys.exit(main())
