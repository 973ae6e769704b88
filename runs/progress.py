"""What a long run has done so far, for whoever is waiting for it."""

from __future__ import annotations

import time
from threading import local

from runs.current import checkpoint, current_run
from storage.engine import session_scope
from storage.repositories.runs import TaskRuns

EVERY_SECONDS = 0.5
_told = local()


def progress(done: int, total: int, note: str = "") -> None:
    """Stores the progress of the current run, at most twice a second (and its end always). Nothing outside a worker.

    A checkpoint too: raises RunRevoked when somebody has revoked the run.
    """
    run = current_run()
    if run is None:
        return
    checkpoint()
    recently = getattr(_told, "run_id", None) == run.run_id and time.monotonic() - _told.at < EVERY_SECONDS
    if recently and done < total:
        return
    _told.run_id, _told.at = run.run_id, time.monotonic()
    with session_scope() as session:
        TaskRuns(session).set_progress(run.run_id, {"done": done, "total": total, "note": note})
