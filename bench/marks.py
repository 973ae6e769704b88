"""When each run was started, told by the tasks themselves: a file of (asked, started) for every process that runs them.

Writing one is neither a system call nor a lock: the file is mapped into memory. This module is imported by the peers' workers too,
so it needs nothing but the standard library.
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
import threading
import time
from array import array
from dataclasses import dataclass, field
from pathlib import Path

CAPACITY = 2_000_000
"""Runs of one process. The file is sparse: only what is written takes room."""
DIRECTORY = "BENCH_MARKS"
"""The environment variable with the directory of the files."""
PAIR = struct.Struct("dd")

_opening = threading.Lock()
_opened: list[tuple[mmap.mmap, itertools.count[int]]] = []


def mark(asked: str) -> None:
    """A run has started now that was asked for then (seconds since the epoch; 0: nobody wants to know)."""
    file, places = _opened[0] if _opened else _open()
    PAIR.pack_into(file, PAIR.size * next(places), float(asked), time.time())


def _open() -> tuple[mmap.mmap, itertools.count[int]]:
    with _opening:
        if not _opened:
            path = Path(os.environ[DIRECTORY]) / f"marks.{os.getpid()}"
            with path.open("xb+") as file:
                file.truncate(PAIR.size * CAPACITY)
                _opened.append((mmap.mmap(file.fileno(), PAIR.size * CAPACITY), itertools.count()))
        return _opened[0]


os.register_at_fork(after_in_child=_opened.clear)


@dataclass
class Marks:
    """The reader: `read` goes on where it stopped, so that looking often costs little."""

    directory: Path
    asked: array[float] = field(default_factory=lambda: array("d"))
    started: array[float] = field(default_factory=lambda: array("d"))
    _read_to: dict[Path, int] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget everything. Only while no worker runs."""
        for path in self.directory.glob("marks.*"):
            path.unlink()
        self.asked, self.started, self._read_to = array("d"), array("d"), {}

    def read(self) -> int:
        """How many runs have started so far."""
        for path in self.directory.glob("marks.*"):
            self._read_on(path)
        return len(self.started)

    @property
    def processes(self) -> int:
        """How many processes have started a run."""
        return len(self._read_to)

    def _read_on(self, path: Path) -> None:
        with path.open("rb") as file:
            file.seek(self._read_to.get(path, 0))
            found = array("d")
            found.frombytes(_whole_pairs(file.read(PAIR.size * 65_536)))
        count = next((place for place in range(0, len(found), 2) if not found[place + 1]), len(found))
        if count:
            self.asked.extend(found[0:count:2])
            self.started.extend(found[1:count:2])
            self._read_to[path] = self._read_to.get(path, 0) + 8 * count


def _whole_pairs(data: bytes) -> bytes:
    return data[: len(data) - len(data) % PAIR.size]
