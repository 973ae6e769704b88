"""SIGTERM and SIGINT as something a process can wait for."""

from __future__ import annotations

import queue
import signal

from runs.inbox import Inbox

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Told:
    """Like threading.Event, but `set` may be called from a signal handler.

    An Event's lock is not reentrant: a handler that runs while its own thread is just inside `wait` would wait for ever.
    An Inbox has none.
    """

    def __init__(self) -> None:
        self._queue: Inbox[bool] = Inbox()

    def set(self) -> None:
        """From now on, whoever waits goes on."""
        self._queue.put(True)

    def wake(self) -> None:
        """Whoever waits goes on, once; it is not set by that."""
        self._queue.put(False)

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it was set within so many seconds. Stays set."""
        try:
            is_set = self._queue.get(timeout=timeout)
        except queue.Empty:
            return False
        if is_set:
            self._queue.put(True)
        return is_set


def stop_signal() -> Told:
    """Set by SIGTERM or SIGINT from now on. Asked for before anything starts that has to be stopped in order."""
    told = Told()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda _number, _frame: told.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # one that came before is heard now (cli/forked.py)
    return told
