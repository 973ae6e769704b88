"""Time limits of a run.

The soft limit raises SoftTimeLimitExceeded in the worker thread, so that the actor can tidy up. CPython delivers such an
exception only between bytecodes: a blocking call is not interrupted, which is why every socket has a time-out below it.

The limit is armed and disarmed inside the actor's call. An exception that arrived after it would end the worker thread itself
(dramatiq #445); disarming withdraws one that is on its way.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import queue
import threading
import time

from core.errors import TransientError
from runs.current import RunRevoked
from runs.inbox import Inbox

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
    __slots__ = ("fired", "is_due", "is_over", "key", "thread_id", "when")

    def __init__(self, thread_id: int, when: float, key: RunKey | None) -> None:
        self.thread_id = thread_id
        self.when = when
        self.key = key
        self.is_over = False  # the block was left
        self.is_due = False  # the exception will be raised
        self.fired = False  # and was


class _SoftLimit:
    """The block under a deadline: a class, for a generator costs a run more."""

    __slots__ = ("_deadline", "_watch")

    def __init__(self, watch: Watch, deadline: _Deadline) -> None:
        self._watch = watch
        self._deadline = deadline

    def __enter__(self) -> None:
        self._watch.arm(self._deadline)

    def __exit__(self, *_error: object) -> None:
        self._watch.disarm(self._deadline)


class Watch:
    """One thread for all deadlines of a process, started with the first. It holds those of running blocks only."""

    def __init__(self) -> None:
        # A plain lock, and nothing but C inside its blocks: an exception that arrives between a Condition's lock and the block it
        # guards would leave it locked for ever.
        self._lock = threading.Lock()
        self._earlier: Inbox[None] = Inbox()  # wakes the thread
        self._running: dict[int, _Deadline] = {}
        self._looks_at = math.inf  # when the thread looks again
        self._has_thread = False

    def soft_limit(self, seconds: float, key: RunKey | None = None) -> contextlib.AbstractContextManager[None]:
        """Raises SoftTimeLimitExceeded in the block when it takes longer; `terminate` finds it by its key."""
        return _SoftLimit(self, _Deadline(threading.get_ident(), time.monotonic() + seconds, key))

    def terminate(self, key: RunKey) -> bool:
        """Raises RunTerminated in the block with that key. False when there is none, or something else was raised in it already."""
        with self._lock:
            found = next((each for each in self._running.values() if each.key == key and not each.is_due), None)
            if found is not None:
                found.is_due = True
        if found is None:
            return False
        _RAISE(found.thread_id, RunTerminated)
        found.fired = True
        return True

    def arm(self, deadline: _Deadline) -> None:
        """The block is entered."""
        with self._lock:
            self._running[id(deadline)] = deadline
            is_earlier = deadline.when < self._looks_at
            if is_earlier:
                self._looks_at = deadline.when
            needs_thread, self._has_thread = not self._has_thread, True
        if needs_thread:
            threading.Thread(target=self._run, name="limits", daemon=True).start()
        elif is_earlier:
            self._earlier.put(None)

    def disarm(self, deadline: _Deadline) -> None:
        """The block is left: nothing is raised in its thread from now on."""
        with self._lock:
            deadline.is_over = True
            self._running.pop(id(deadline), None)
        if deadline.is_due:
            while not deadline.fired:
                time.sleep(0)
            _withdraw(deadline.thread_id)

    def _run(self) -> None:
        while True:
            now = time.monotonic()
            with self._lock:
                due = [each for each in self._running.values() if each.when <= now and not each.is_due]
                for deadline in due:
                    deadline.is_due = True
                self._looks_at = min((each.when for each in self._running.values() if not each.is_due), default=math.inf)
                wait = None if self._looks_at == math.inf else max(0.0, self._looks_at - now)
            for deadline in due:
                _RAISE(deadline.thread_id, SoftTimeLimitExceeded)  # without the lock: the thread may be waiting for it
                deadline.fired = True
            with contextlib.suppress(queue.Empty):
                self._earlier.get(timeout=wait)


watch = Watch()
