"""Time limits of a run.

The soft limit raises SoftTimeLimitExceeded in the worker thread, so that the actor can tidy up. CPython delivers such an
exception only between bytecodes: a blocking call is not interrupted, which is why every socket has a time-out below it.

The limit is armed and disarmed inside the actor's call. An exception that arrived after it would end the worker thread itself
(dramatiq #445); disarming withdraws one that is on its way.
"""

from __future__ import annotations

import ctypes
import heapq
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import TransientError

_RAISE = ctypes.pythonapi.PyThreadState_SetAsyncExc
_RAISE.argtypes = (ctypes.c_ulong, ctypes.py_object)


class SoftTimeLimitExceeded(TransientError):  # noqa: N818  (the callers know Celery's name)
    """The run took longer than its soft limit; it is retried by its task's policy."""

    code = "soft_time_limit"

    def __init__(self, message: str = "The run took longer than its soft time limit.") -> None:
        super().__init__(message)


class _Withdrawn(BaseException):  # noqa: N818  (it never leaves this module)
    """Takes the place of an exception that was not delivered yet."""


def _withdraw(thread_id: int) -> None:
    """Nothing is on its way to this thread any more.

    By another exception and not by NULL: CPython 3.11 then leaves the interpreter's "something is pending" set until the next
    one is delivered. All threads run slower, and under a tracer (coverage, a debugger) the next call never begins.
    """
    try:
        _RAISE(thread_id, _Withdrawn)
        while True:
            time.sleep(0)
    except _Withdrawn:
        return


class _Deadline:
    __slots__ = ("fired", "is_over", "thread_id")

    def __init__(self, thread_id: int) -> None:
        self.thread_id = thread_id
        self.fired = self.is_over = False


class Watch:
    """One thread for all deadlines of a process, started with the first."""

    def __init__(self) -> None:
        # A plain lock, taken as such: an exception that arrives in Python code between a Condition's lock and the block it guards
        # would leave it locked for ever.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._heap: list[tuple[float, int, _Deadline]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None

    @contextmanager
    def soft_limit(self, seconds: float) -> Iterator[None]:
        """Raises SoftTimeLimitExceeded in the block when it takes longer."""
        deadline = _Deadline(threading.get_ident())
        self._arm(time.monotonic() + seconds, deadline)
        try:
            yield
        finally:
            self._disarm(deadline)

    def _arm(self, when: float, deadline: _Deadline) -> None:
        with self._lock:
            heapq.heappush(self._heap, (when, next(self._order), deadline))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="limits", daemon=True)
                self._thread.start()
            elif self._heap[0][2] is deadline:
                self._changed.notify()

    def _disarm(self, deadline: _Deadline) -> None:
        with self._lock:
            deadline.is_over = True
        if deadline.fired:
            _withdraw(deadline.thread_id)

    def _run(self) -> None:
        with self._changed:
            while True:
                self._fire_due()
                self._changed.wait(self._heap[0][0] - time.monotonic() if self._heap else None)

    def _fire_due(self) -> None:
        while self._heap and (self._heap[0][2].is_over or self._heap[0][0] <= time.monotonic()):
            deadline = heapq.heappop(self._heap)[2]
            if not deadline.is_over:
                deadline.fired = True
                _RAISE(deadline.thread_id, SoftTimeLimitExceeded)


watch = Watch()
