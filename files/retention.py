"""Old files are removed, whatever the tree holds: nothing is followed out of it, nothing that somebody uses or that is new is taken.

A file is in use when a process holds a lock on it (flock(2)) or, as far as the file system can tell, has it open (a lease that only
a file without users gets, fcntl(2) F_SETLEASE). What vanishes meanwhile is nobody's error.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import NotFoundError
from files.thumbnails import PART
from files.tree import enter, opened_directory

BATCH = 500
"""So many files are looked up and removed at a time."""
DEEPEST = 64
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
Kept = Callable[[Sequence[str]], Collection[str]]
"""Which of these names (without their directories) somebody still needs."""


@dataclass
class Cleaned:
    """What was removed, or on a dry run would be; `looked_at` counts files, too."""

    deleted_count: int = 0
    freed_bytes: int = 0
    looked_at: int = 0
    in_use: int = 0


@dataclass(frozen=True)
class Rule:
    """Which files go: those older than so many seconds that `is_meant` and that nobody keeps. `on_batch` is told how far it is and may
    raise to end it. `removes_empty`: empty directories go, too, once they are as old."""

    older_than: float
    kept: Kept = field(default=lambda _names: ())
    is_meant: Callable[[str], bool] = field(default=lambda _name: True)
    on_batch: Callable[[Cleaned], None] = field(default=lambda _cleaned: None)
    removes_empty: bool = True
    dry_run: bool = False


def clean(root: Path, parts: Sequence[str], rule: Rule, what: str) -> Cleaned:
    """Applies the rule below a directory, which itself stays. Raises NotFoundError, InvalidInputError for a path over a link."""
    with opened_directory(root, parts, what) as top:
        sweep = _Sweep(rule, time.time() - rule.older_than)
        sweep.descend(top, 0)
        return sweep.cleaned


def clean_parts(root: Path, parts: Sequence[str], rule: Rule) -> Cleaned:
    """Removes only what a write that never ended has left; nothing when the directory is not there."""
    try:
        only_parts = Rule(rule.older_than, rule.kept, lambda name: name.endswith(PART), rule.on_batch, False, rule.dry_run)
        return clean(root, parts, only_parts, "directory")
    except NotFoundError:
        return Cleaned()


class _Sweep:
    """One walk, the deepest directories first. Memory and descriptors are bounded by the depth, not by the number of files."""

    def __init__(self, rule: Rule, before: float) -> None:
        self.cleaned = Cleaned()
        self._rule = rule
        self._before = before

    def descend(self, directory: int, depth: int) -> None:
        found: list[str] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if depth < DEEPEST:
                        self._descend_into(directory, entry.name, depth)
                elif self._is_old(entry):
                    found.append(entry.name)
                if len(found) == BATCH:
                    self._remove(directory, found)
                    found = []
        self._remove(directory, found)

    def _descend_into(self, directory: int, name: str, depth: int) -> None:
        try:
            inner = enter(directory, name)
        except OSError:  # it vanished, or is not ours to read
            return
        try:
            was_old = os.fstat(inner).st_mtime < self._before
            before = self.cleaned.deleted_count
            self.descend(inner, depth + 1)
        finally:
            os.close(inner)
        may_go = was_old or self.cleaned.deleted_count > before
        if self._rule.removes_empty and not self._rule.dry_run and may_go:
            try:
                os.rmdir(name, dir_fd=directory)
            except OSError:  # not empty
                pass

    def _is_old(self, entry: os.DirEntry[str]) -> bool:
        """Whether it is an old file; links, pipes and devices are nobody's old files."""
        try:
            found = entry.stat(follow_symlinks=False)
        except OSError:
            return False
        if not stat.S_ISREG(found.st_mode):
            return False
        self.cleaned.looked_at += 1
        if self.cleaned.looked_at % BATCH == 0:
            self._rule.on_batch(self.cleaned)
        return found.st_mtime < self._before and self._rule.is_meant(entry.name)

    def _remove(self, directory: int, names: Sequence[str]) -> None:
        if not names:
            return
        kept = set(self._rule.kept(names))
        for name in names:
            if name not in kept:
                self._remove_one(directory, name)
        self._rule.on_batch(self.cleaned)

    def _remove_one(self, directory: int, name: str) -> None:
        try:
            with _unused(directory, name) as found:
                if found is None:
                    self.cleaned.in_use += 1
                    return
                if found.st_mtime >= self._before or not stat.S_ISREG(found.st_mode):
                    return
                if not self._rule.dry_run:
                    os.unlink(name, dir_fd=directory)
        except OSError:  # it vanished, or is not ours to remove
            return
        self.cleaned.deleted_count += 1
        self.cleaned.freed_bytes += found.st_size if found.st_nlink == 1 else 0


@contextmanager
def _unused(directory: int, name: str) -> Iterator[os.stat_result | None]:
    """The file's facts while nobody else can begin to use it; None when somebody does. Raises OSError."""
    descriptor = os.open(name, _LOOK, dir_fd=directory)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield None if _is_open_elsewhere(descriptor) else os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _is_open_elsewhere(descriptor: int) -> bool:
    """Whether another descriptor of the file is open anywhere on this machine. False where the file system or our rights do not tell."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)  # the usual signal of a lease, SIGIO, would end us; nobody minds this one
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
