"""One worker process: `python -m cli.worker_process`. Started by `./manage.py worker`, which keeps it alive."""

from __future__ import annotations

import argparse
import gc
import sys

from cli.processes import split_queues, start_logging
from cli.signals import stop_signal
from core.settings import get_settings


def main() -> int:
    """Runs until SIGTERM; then finishes or hands back every run within STOP_GRACE."""
    told_to_stop = stop_signal()  # before the first run can be claimed: a default SIGTERM would take it down with the process
    settings = get_settings()
    parser = argparse.ArgumentParser(prog="worker")
    parser.add_argument("--threads", type=int, default=settings.worker_threads)
    parser.add_argument("--queues", action="append", default=[])
    options = parser.parse_args()
    start_logging(settings)

    import dramatiq

    import actors

    worker = dramatiq.Worker(actors.broker, queues=split_queues(options.queues), worker_threads=options.threads)
    worker.start()
    gc.freeze()  # what was imported stays: later collections need not look at it
    told_to_stop.wait()
    worker.stop(timeout=int(settings.stop_grace * 1000))
    actors.broker.close()
    return 0  # all threads are daemons: one that did not end in time, whose run was handed back, ends with the process


if __name__ == "__main__":
    sys.exit(main())
