"""A child that goes on with what this process has imported: it is there at once, and shares those pages with its equals."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
_prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)  # Linux only; elsewhere the supervisor's own TERM has to do
_context = multiprocessing.get_context("fork")


class Forked:
    """Forks at once and runs `main`, whose result is the exit code; asked and told like a subprocess.Popen.

    Only for a process without other threads, and with SIGTERM and SIGINT blocked: they stay so in the child until `main` asks for its
    `stop_signal`.
    """

    def __init__(self, main: Callable[[], int]) -> None:
        self._process = _context.Process(target=_in_child, args=(main, os.getpid()))
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the signal's number when one ended it, or None."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return self._process.exitcode

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()


def die_with(parent: int) -> None:
    """The kernel sends SIGTERM when the parent is gone, however it went; if it is gone already, this process ends."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)


def _in_child(main: Callable[[], int], parent: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the supervisor's (cli/supervisor.py) is of no use here
    os.setsid()  # Ctrl-C reaches the supervisor alone, which stops in order
    die_with(parent)
    sys.exit(main())
