"""One worker process, forked by cli/workers.py, which keeps it alive; alone as `python -m cli.worker_process`."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import sys
import time

from cli.processes import split_queues, start_logging
from cli.signals import stop_signal
from core.logging import get_logger
from core.settings import get_settings

log = get_logger(__name__)
KEEP_QUIET_SECONDS = 1.0
WATCHDOG_SECONDS = 12.0
"""Less than a heart may pause (15 s)."""
POLL_SECONDS = 0.02
LEAVING_SECONDS = 0.8
"""Less than what is handed back waits until it is due (runs/recorder.py)."""


def main() -> int:
    """One without a supervisor."""
    settings = get_settings()
    parser = argparse.ArgumentParser(prog="worker")
    parser.add_argument("--threads", type=int, default=settings.worker_threads)
    parser.add_argument("--queues", action="append", default=[])
    options = parser.parse_args()
    start_logging(settings)
    return serve(options.threads, split_queues(options.queues))


def serve(threads: int, queues: set[str] | None) -> int:
    """Runs until SIGTERM, or until it is to be replaced; then finishes or hands back every run within STOP_GRACE. The exit code."""
    told_to_stop = stop_signal()  # before the first run can be claimed: a default SIGTERM would take it down with the process
    settings = get_settings()

    import dramatiq

    import actors
    from runs.life import RETIRED
    from runs.middleware.worker_process import BootError
    from runs.relay import Housekeeper

    grace: list[float] = []  # what is left once it retires, if that is not STOP_GRACE

    def retire(seconds: float | None) -> None:
        grace.append(settings.stop_grace if seconds is None else seconds)
        told_to_stop.set()

    actors.broker.on_retire = retire
    worker = dramatiq.Worker(actors.broker, queues=queues, worker_threads=threads)
    keep_watchdog_quiet()  # before the first run can start
    watchdog = Housekeeper((keep_watchdog_quiet, KEEP_QUIET_SECONDS))
    watchdog.start()
    try:
        worker.start()
    except BootError as error:
        log.error("worker_could_not_start", error=str(error))
        return 1
    gc.freeze()  # what was imported stays: later collections need not look at it
    told_to_stop.wait()
    end = time.monotonic() + (grace[0] if grace else settings.stop_grace)
    actors.broker.quiet()
    while grace and not actors.broker.recorder.is_empty and time.monotonic() < end:
        time.sleep(POLL_SECONDS)  # a run that will not end is not waited for longer than the others
    is_stuck = actors.broker.recorder.has_abandoned
    worker.stop(timeout=0 if is_stuck else max(0, int((end - time.monotonic()) * 1000)))
    watchdog.stop()
    faulthandler.cancel_dump_traceback_later()
    actors.broker.on_leaving = vanish_soon
    leaves_threads = is_stuck or not actors.broker.recorder.is_empty
    actors.broker.close()
    code = RETIRED if grace else 0
    if leaves_threads:
        sys.stdout.flush()
        os._exit(code)  # not by returning: they would go on beside the retry, and may hold a lock that the interpreter's own end waits for
    faulthandler.cancel_dump_traceback_later()
    let_go_of_unwritable_output()
    return code


def let_go_of_unwritable_output() -> None:
    """A full log volume must not turn a good end into exit code 120, which the interpreter gives when its last flush fails."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except OSError:
            setattr(sys, name, None)


def vanish_soon() -> None:
    """No run may go on here when it is due elsewhere, and the database's answer to the hand-back may never come."""
    faulthandler.dump_traceback_later(LEAVING_SECONDS, exit=True)


def keep_watchdog_quiet() -> None:
    """A C call that never gives the interpreter back stops every thread, the heart too. faulthandler's thread does not need the
    interpreter: unless it is put off in time it ends the process, before others take over its runs."""
    faulthandler.dump_traceback_later(WATCHDOG_SECONDS, exit=True)


if __name__ == "__main__":
    sys.exit(main())
