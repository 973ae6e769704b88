"""The worker processes of one command: `python -m cli.workers`. What they need is imported once; each is forked from that, and kept alive.

Two that are forked take half the memory of two that are started, and one that crashed or wants to be replaced is there again
without the seconds of processor time that the imports cost.
"""

from __future__ import annotations

import argparse
import gc
import sys
import threading
from collections.abc import Callable

from cli.processes import split_queues, start_logging
from cli.supervisor import Child, Supervisor
from core.settings import get_settings


def main() -> int:
    """Runs until SIGTERM; then the processes finish or hand back every run within STOP_GRACE."""
    settings = get_settings()
    parser = argparse.ArgumentParser(prog="workers")
    parser.add_argument("--processes", type=int, default=settings.worker_processes)
    parser.add_argument("--threads", type=int, default=settings.worker_threads)
    parser.add_argument("--queues", action="append", default=[])
    options = parser.parse_args()
    queues = split_queues(options.queues)
    start_logging(settings)

    import actors  # noqa: F401  (all of it: what is imported here is shared)
    from cli.worker_process import serve

    return keep_alive(options.processes, lambda: serve(options.threads, queues))


def keep_alive(processes: int, serve: Callable[[], int]) -> int:
    """So many processes that do this, each restarted on its own."""
    assert threading.active_count() == 1, "a lock that another thread holds would stay locked in the forked processes"
    gc.collect()
    gc.freeze()  # a collection in a child would write to every page it shares
    grace = get_settings().stop_grace + 5  # and a little more before it is killed
    supervisor = Supervisor([Child(f"worker-{number}", main=serve, grace=grace) for number in range(1, processes + 1)])
    supervisor.handle_signals()
    supervisor.start()
    supervisor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
