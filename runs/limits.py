"""Time limits of a run.

The soft limit raises SoftTimeLimitExceeded in the worker thread, so that the actor can tidy up. CPython delivers such an
exception only between bytecodes: a blocking call is not interrupted, which is why every socket has a time-out below it.

The limit is armed and disarmed inside the actor's call. An exception that arrived after it would end the worker thread itself
(dramatiq #445); disarming withdraws one that is on its way.
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import itertools
import queue
import threading
import time
from collections.abc import Iterator

from core.errors import TransientError
from runs.current import RunRevoked

RunKey = tuple[str, int]
"""A run's id and its fence."""
_RAISE = ctypes.pythonapi.PyThreadState_SetAsyncExc
_RAISE.argtypes = (ctypes.c_ulong, ctypes.py_object)


class SoftTimeLimitExceeded(TransientError):  # noqa: N818  (the callers know Celery's name)
    """The run took longer than its soft limit; it is retried by its task's policy."""

    code = "soft_time_limit"

    def __init__(self, message: str = "The run took longer than its soft time limit.") -> None:
        super().__init__(message)


class RunTerminated(RunRevoked):
    """Somebody ended the run by force; raised in its thread, wherever that is."""


class _Withdrawn(BaseException):
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
    __slots__ = ("fired", "is_due", "is_over", "key", "thread_id")

    def __init__(self, thread_id: int, key: RunKey | None) -> None:
        self.thread_id = thread_id
        self.key = key
        self.is_over = False  # the block was left
        self.is_due = False  # the exception will be raised
        self.fired = False  # and was


class Watch:
    """One thread for all deadlines of a process, started with the first."""

    def __init__(self) -> None:
        # A plain lock, and nothing but C inside its blocks: an exception that arrives between a Condition's lock and the block it
        # guards would leave it locked for ever.
        self._lock = threading.Lock()
        self._earlier: queue.SimpleQueue[None] = queue.SimpleQueue()  # wakes the thread
        self._heap: list[tuple[float, int, _Deadline]] = []
        self._order = itertools.count()
        self._has_thread = False

    @contextlib.contextmanager
    def soft_limit(self, seconds: float, key: RunKey | None = None) -> Iterator[None]:
        """Raises SoftTimeLimitExceeded in the block when it takes longer; `terminate` finds it by its key."""
        deadline = _Deadline(threading.get_ident(), key)
        self._arm(time.monotonic() + seconds, deadline)
        try:
            yield
        finally:
            self._disarm(deadline)

    def terminate(self, key: RunKey) -> bool:
        """Raises RunTerminated in the block with that key. False when there is none, or something else was raised in it already."""
        with self._lock:
            found = None
            for _, _, deadline in self._heap:
                if deadline.key == key and not deadline.is_over and not deadline.is_due:
                    deadline.is_due = True
                    found = deadline
        if found is None:
            return False
        _RAISE(found.thread_id, RunTerminated)
        found.fired = True
        return True

    def _arm(self, when: float, deadline: _Deadline) -> None:
        with self._lock:
            heapq.heappush(self._heap, (when, next(self._order), deadline))
            is_first = self._heap[0][2] is deadline
            needs_thread, self._has_thread = not self._has_thread, True
        if needs_thread:
            threading.Thread(target=self._run, name="limits", daemon=True).start()
        elif is_first:
            self._earlier.put(None)

    def _disarm(self, deadline: _Deadline) -> None:
        with self._lock:
            deadline.is_over = True
        if deadline.is_due:
            while not deadline.fired:
                time.sleep(0)
            _withdraw(deadline.thread_id)

    def _run(self) -> None:
        while True:
            due = []
            with self._lock:
                while self._heap and (self._heap[0][2].is_over or self._heap[0][0] <= time.monotonic()):
                    deadline = heapq.heappop(self._heap)[2]
                    if not (deadline.is_over or deadline.is_due):
                        deadline.is_due = True
                        due.append(deadline)
                wait = self._heap[0][0] - time.monotonic() if self._heap else None
            for deadline in due:
                _RAISE(deadline.thread_id, SoftTimeLimitExceeded)  # without the lock: the thread may be waiting for it
                deadline.fired = True
            with contextlib.suppress(queue.Empty):
                self._earlier.get(timeout=None if wait is None else max(0.0, wait))


watch = Watch()
