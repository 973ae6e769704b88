"""What keeps one worker process honest: its heart, the marks on its runs, its age.

A run that is marked to end is asked to (a checkpoint), interrupted (terminate), or its process ends (a hard limit, or one that
does not yield). A process ends gently: it claims nothing more, its other runs end or are handed back, and the run that
would not end stays its own until the process is gone, so that it never runs beside its own retry.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dramatiq import Worker
from sqlalchemy import Engine

from core.logging import get_logger
from runs.current import forget_revoked, revoke_here
from runs.limits import watch
from runs.message import RunMessage
from runs.process_key import key_of
from runs.recorder import Recorder
from runs.relay import Chore
from storage import lives
from storage.engine import relay_connection, untenanted_connection
from storage.states import Ending

log = get_logger(__name__)
HEARTBEAT_SECONDS = 3.0
MARKS_SECONDS = 0.5
YIELD_SECONDS = 2.0
"""How long an interrupted run may take to end before its process does."""
OVERRUN_GRACE_SECONDS = 10.0
"""How long the other runs of a process may take that has to end because of one."""
SPREAD = 0.1
"""Processes of one start are not all replaced at once: each ends up to a tenth before its limit."""
Retire = Callable[[float | None], None]
"""Ends the process within so many seconds (None: within its ordinary grace)."""
RETIRED = 75
"""The exit code of a process that ended to be replaced (EX_TEMPFAIL)."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Lifespan:
    """After how many runs, or from how many bytes of resident memory on, a process is replaced; None: never."""

    max_runs: int | None = None
    max_memory: int | None = None


class Life:
    """`retire` makes the process end; it is called once."""

    def __init__(self, engine: Engine, recorder: Recorder, worker: Worker, queues: list[str], lifespan: Lifespan, retire: Retire) -> None:
        self.state = "running"
        self._engine = engine
        self._recorder = recorder
        self._worker = worker
        self._queues = queues
        self._lifespan = lifespan
        self._last_run = round(lifespan.max_runs * random.uniform(1 - SPREAD, 1)) if lifespan.max_runs else None  # noqa: S311  (no secret)
        self._retire = retire
        self._is_retiring = False
        self._interrupted: dict[str, float] = {}

    def chores(self) -> list[Chore]:
        """For a Housekeeper of its own: what keeps the relay waiting must not stop the heart."""
        return [(self.beat, HEARTBEAT_SECONDS), (self.heed_marks, MARKS_SECONDS)]

    def beat(self) -> None:
        """Only while the recorder and every worker thread live: a worker that cannot work has no heart."""
        threads_live = all(thread.is_alive() for thread in self._worker.workers) or self.state == "stopping"
        recorder_lives = self._recorder.is_alive() or self.state == "stopping" or not self._worker.workers
        if not (threads_live and recorder_lives):
            log.critical("worker_is_broken", worker=self._recorder.worker_id, threads_live=threads_live, recorder_lives=recorder_lives)
            return
        state = lives.ALONE if self._recorder.is_alone else self.state
        beat = lives.Heartbeat(
            self._recorder.worker_id,
            socket.gethostname(),
            os.getpid(),
            self._worker.worker_threads,
            self._queues,
            state,
            key_of(os.getpid()),
        )
        with untenanted_connection(self._engine) as connection:
            lives.heartbeat(connection, beat)
        if self._lifespan.max_memory is not None and resident_bytes() > self._lifespan.max_memory:
            self.retire("max_memory")

    def heed_marks(self) -> None:
        """Does what the record says about this process' runs."""
        running = {message.run_id: message for message in self._recorder.runs()}
        if not running:
            return
        with relay_connection(self._engine) as connection:
            marks = lives.endings(connection, self._recorder.worker_id)
        for run_id, ending in marks.items():
            if run_id in running:
                self._end(running[run_id], ending)

    def run_ended(self, ended: list[RunMessage]) -> None:
        """The outcomes of these are written (on the recorder's thread)."""
        for message in ended:
            self._interrupted.pop(message.run_id, None)
            if message.claim is not None:
                forget_revoked(message.claim)
        if self._last_run is not None and self._recorder.ended >= self._last_run:
            self.retire("max_tasks")

    def retire(self, why: str, grace: float | None = None) -> None:
        """Ends the process gently, so that another takes its place."""
        if not self._is_retiring:
            self._is_retiring = True
            self._recorder.stop_claiming()
            log.info("worker_retires", worker=self._recorder.worker_id, why=why, runs=self._recorder.ended)
            self._retire(grace)

    def _end(self, message: RunMessage, ending: Ending) -> None:
        claim = message.claim
        if claim is None:
            return
        if ending is not Ending.HARD_LIMIT:
            revoke_here(claim)
        if ending is Ending.TERMINATE:
            first_asked = self._interrupted.setdefault(message.run_id, time.monotonic())
            watch.terminate((claim.run_id, claim.fence))
            ending = Ending.HARD_LIMIT if time.monotonic() - first_asked > YIELD_SECONDS else ending
        if ending is Ending.HARD_LIMIT:
            self._recorder.abandon(message.run_id)
            self.retire("run_would_not_end", OVERRUN_GRACE_SECONDS)


def end_process(grace: float | None) -> None:
    """What retiring means where nobody has said: SIGTERM to ourselves, and the end when the grace is over."""
    os.kill(os.getpid(), signal.SIGTERM)
    if grace is not None:
        timer = threading.Timer(grace, os._exit, (RETIRED,))
        timer.daemon = True
        timer.start()


def resident_bytes() -> int:
    """The resident memory of this process (proc(5), statm); 0 where it is not told."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0
