"""What the chores really did: one file, each line appended in one write by the process that does the work.

`B` begins an execution, `L` is a sign of life of a long one, `E` is its end and `F` an end that is meant to fail. Then come the
run's id, attempt and fence, the process, the execution's own token, and the moment (CLOCK_MONOTONIC: the same for all processes,
untouched by a false wall clock).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

EFFECTS = "effects"
POISON_ATTEMPTS = 3


@dataclass
class Execution:
    """One execution as the task wrote it down. `seen` is its last sign of life; when it neither `ended` nor `failed`, it was cut short."""

    run_id: str
    attempt: int
    fence: int
    pid: int
    token: str
    began: float = 0.0
    seen: float = 0.0
    ended: bool = False
    failed: bool = False

    def write(self, what: str, directory: Path) -> None:
        """Append one line about it."""
        moment = f"{time.monotonic():.4f}"
        line = f"{what} {self.run_id} {self.attempt} {self.fence} {self.pid} {self.token} {moment}\n"
        descriptor = os.open(directory / EFFECTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def read_effects(lines: Iterable[str]) -> list[Execution]:
    """The executions that the lines tell of. A line that is being written right now is left for the next reader."""
    found: dict[str, Execution] = {}
    for line in lines:
        if not line.endswith("\n"):
            continue
        what, run_id, attempt, fence, pid, token, moment = line.split()
        if what == "B":
            found[token] = Execution(run_id, int(attempt), int(fence), int(pid), token, float(moment), float(moment))
        elif token in found:
            found[token].seen = float(moment)
            found[token].ended, found[token].failed = what == "E", what == "F"
    return list(found.values())
