"""Two proving grounds side by side, so that the outages of one are not waited for by the other: half the time on the same machine."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from tests.faults.campaign import own_ground
from tests.faults.ground import Ground
from tests.faults.trial import Report

Job = Callable[[Ground], Report]


class Lanes:
    """Works off the jobs in their order; whoever wants to know what came of one waits for it."""

    def __init__(self, jobs: Mapping[str, Job], settings: Mapping[str, str], lanes: int = 2) -> None:
        self._settings = settings
        self._results: dict[str, Future[Report]] = {name: Future() for name in jobs}
        self._left: queue.SimpleQueue[tuple[str, Job]] = queue.SimpleQueue()
        for each in jobs.items():
            self._left.put(each)
        self._threads = [threading.Thread(target=self._work, name=f"lane-{number}") for number in range(min(lanes, len(jobs)))]
        for thread in self._threads:
            thread.start()

    def report(self, name: str, timeout: float = 900.0) -> Report:
        """What came of a job, once it is done. Raises what it raised."""
        return self._results[name].result(timeout)

    def close(self) -> None:
        """What has not begun is left undone; what has, is waited for."""
        while self._next() is not None:
            pass
        for thread in self._threads:
            thread.join()

    def _next(self) -> tuple[str, Job] | None:
        try:
            return self._left.get_nowait()
        except queue.Empty:
            return None

    def _work(self) -> None:
        try:
            with own_ground(self._settings) as ground:
                while (each := self._next()) is not None:
                    self._do(ground, *each)
        except BaseException as error:
            while (each := self._next()) is not None:  # no ground, no trial
                self._results[each[0]].set_exception(error)

    def _do(self, ground: Ground, name: str, job: Job) -> None:
        try:
            report = job(ground)
        except Exception as error:
            self._results[name].set_exception(error)
        else:
            self._results[name].set_result(report)
