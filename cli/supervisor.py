"""Keeps a set of processes alive: starts them in order, restarts each on its own with back-off, stops them in the reverse order.

A child that dies takes no other with it. Children are told by the kernel (PR_SET_PDEATHSIG) when the supervisor itself is killed,
so that nothing is left behind.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cli.forked import Forked, die_with
from cli.signals import STOP_SIGNALS, Told
from core.logging import get_logger
from core.settings import ROOT

log = get_logger(__name__)
POLL_SECONDS = 0.1
TOLD_SECONDS = 5.0
"""How often to look where the kernel tells of an end anyway."""
FIRST_BACKOFF, MAX_BACKOFF = 0.5, 30.0
STEADY_SECONDS = 30.0
RETIRED = 75
"""The exit code of a process that wants to be replaced (EX_TEMPFAIL; runs/life.py)."""


@dataclass
class Child:
    """One supervised process: a command, or `main`, for which this process is forked.

    `log` is where a command's output goes (None: with ours); `grace` how long TERM may take, in seconds; `inherited` the sockets it
    gets besides; held here, because they must be open at every restart.
    """

    name: str
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    main: Callable[[], int] | None = None
    log: Path | None = None
    grace: float = 10.0
    inherited: tuple[socket.socket, ...] = ()
    process: subprocess.Popen[bytes] | Forked | None = None
    started_at: float = 0.0
    restarts: int = 0
    backoff: float = FIRST_BACKOFF
    due_at: float = field(default=0.0)

    def spawn(self) -> None:
        """Starts the process."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # a Ctrl-C between the fork and our knowing of it would lose the child
        try:
            self.process = Forked(self.main) if self.main is not None else self._executed()
        finally:
            self.started_at = time.monotonic()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _executed(self) -> subprocess.Popen[bytes]:
        output = self.log.open("ab") if self.log is not None else None
        parent = os.getpid()

        def prepare() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            die_with(parent)

        try:
            return subprocess.Popen(  # noqa: S603  (our own commands)
                self.command,
                cwd=ROOT,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output or sys.stderr,
                stderr=output or sys.stderr,
                preexec_fn=prepare,  # noqa: PLW1509  (a system call and a comparison; no lock is taken)
                pass_fds=[each.fileno() for each in self.inherited],
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops in order
            )
        finally:
            if output is not None:
                output.close()

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """TERM, and KILL when the grace is over."""
        if self.process is None:
            return
        if self.is_alive:
            self.process.terminate()
        try:
            self.process.wait(self.grace)
        except subprocess.TimeoutExpired:
            log.warning("child_killed", child=self.name, grace=self.grace)
            self.process.kill()
            self.process.wait()
        self.process = None


class Supervisor:
    """The children in the order of their start."""

    def __init__(self, children: Sequence[Child]) -> None:
        self.children = list(children)
        self._stopping = Told()
        self._hears_of_ends = False

    def start(self) -> None:
        """Starts all of them."""
        for child in self.children:
            child.spawn()

    def run(self) -> None:
        """Watches until `stop_soon`, then stops all. Raises nothing a child does."""
        try:
            while not self._stopping.wait(self._pause()):
                self.poll()
        finally:
            self.stop()

    def poll(self) -> None:
        """Restarts what has ended and is due."""
        for child in self.children:
            if child.is_alive:
                if child.restarts and time.monotonic() - child.started_at > STEADY_SECONDS:
                    child.restarts, child.backoff = 0, FIRST_BACKOFF
            elif child.due_at == 0.0:
                self._schedule_restart(child)
            elif time.monotonic() >= child.due_at:
                child.due_at = 0.0
                child.spawn()

    def stop_soon(self) -> None:
        """Ends `run`; callable from a signal handler."""
        self._stopping.set()

    def stop(self) -> None:
        """Stops the children, the last started first. Equals (the worker processes) are told together."""
        self._stopping.set()
        for child in reversed(self.children):
            if child.is_alive and child.process is not None and child.name.startswith("worker"):
                child.process.terminate()
        for child in reversed(self.children):
            child.stop()

    def handle_signals(self) -> None:
        """SIGTERM and SIGINT stop in order; a second one is no reason to leave children behind. SIGCHLD tells of a child's end."""
        for number in STOP_SIGNALS:
            signal.signal(number, lambda _number, _frame: self.stop_soon())
        signal.signal(signal.SIGCHLD, lambda _number, _frame: self._stopping.wake())
        self._hears_of_ends = True

    def _pause(self) -> float:
        """How long there is nothing to do, unless a child ends."""
        if not self._hears_of_ends:
            return POLL_SECONDS
        restarts = [child.due_at - time.monotonic() for child in self.children if child.due_at]
        return max(0.0, min([TOLD_SECONDS, *restarts]))

    @staticmethod
    def _schedule_restart(child: Child) -> None:
        code = child.process.returncode if child.process is not None else None
        is_planned = code in {0, RETIRED}
        log.log(20 if is_planned else 40, "child_ended", child=child.name, exit_code=code, restart_in=0.0 if is_planned else child.backoff)
        child.due_at = time.monotonic() + (0.0 if is_planned else child.backoff)
        if not is_planned:
            child.restarts += 1
            child.backoff = min(MAX_BACKOFF, child.backoff * 2)
