"""What the kernel knows of processes (proc(5)): CPU time, memory, connections; and how busy the machine is with other things."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
ESTABLISHED = "01"
SAMPLE_SECONDS = 0.25


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time so far, with that of children which have ended and been waited for."""
    return sum(_cpu_seconds(pid) for pid in pids)


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(each) for each in fields[11:15]) / TICKS


def busy_seconds() -> float:
    """CPU time the whole machine has spent on anything."""
    user, nice, system, _idle, _iowait, *interrupts_and_stolen = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    return sum(int(each) for each in (user, nice, system, *interrupts_and_stolen)) / TICKS


def mebibytes(pid: int, kind: str) -> float:
    """From smaps_rollup: Pss shares what processes have in common, Rss does not."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0  # it has ended meanwhile
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1024


class PeakMemory:
    """Looks again and again at the proportional set size of a process: what it shares with others counts in parts; in MiB.

    The kernel's own peak (VmHWM) is no use here: it is of the resident set, which counts all that a forked worker shares as its own.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.first = self.peak = mebibytes(pid, "Pss")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, mebibytes(self._pid, "Pss"))


def connections(pid: int, port: int) -> int:
    """How many TCP connections of the process lead to the port."""
    open_files = set()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                open_files.add(str(entry.readlink()))
    return len(open_files & {f"socket:[{inode}]" for inode in _connected_to(pid, port)})


def _connected_to(pid: int, port: int) -> set[str]:
    """The inodes of established connections to the port."""
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == ESTABLISHED and int(words[2].rpartition(":")[2], 16) == port:
                    found.add(words[9])
    return found
