"""The demo's mail servers as their supervisor sees them: a child process that says where it listens."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from core.errors import UnavailableError
from demo.serve import read_state

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT = 20.0  # seconds


class DemoServers:
    """`start()` returns when all three ports listen. The state file stays, so that the next start takes the same ports."""

    host = "127.0.0.1"

    def __init__(self, state: Path, *, log: Path | None = None) -> None:
        """`state`: the JSON file shared with the child; `log`: where its output goes, nowhere by default."""
        self.imap_port = 0
        self.flaky_imap_port = 0
        self.smtp_port = 0
        self._state = state
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Raises `UnavailableError` when the child ends or does not listen within twenty seconds."""
        command = [sys.executable, "-m", "demo.serve", "--state", str(self._state.resolve()), "--parent", str(os.getpid())]
        with (self._log or Path(os.devnull)).open("ab") as output:
            self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)  # noqa: S603
        deadline = time.monotonic() + START_TIMEOUT
        while (state := read_state(self._state)).get("pid") != self._process.pid:
            if not self.running or time.monotonic() > deadline:
                self.stop()
                raise UnavailableError("the demo's mail servers did not start")
            time.sleep(0.01)
        self.imap_port, self.flaky_imap_port, self.smtp_port = (state[name] for name in ("imap_port", "flaky_imap_port", "smtp_port"))

    def stop(self) -> None:
        """End the child and wait for it; harmless when it is not running."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
