"""Names a process so that others on its machine can tell for certain whether it still exists.

A worker that was killed is known at once by its neighbours, long before its missing heartbeats say so. The key is the boot, the
process namespace, the pid and the moment it was started: a pid that was given again is another process, and a container
or another machine with the same pids is not asked.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

PROC = Path("/proc")


@cache
def _home() -> str | None:
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{(PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:  # no Linux: then only the heart tells
        return None


def key_of(pid: int) -> str | None:
    """The key of a living process of this machine; None where there is no way to know one."""
    home, started = _home(), _started(pid)
    return f"{home}/{pid}/{started}" if home is not None and started is not None else None


def is_gone(key: str) -> bool:
    """Whether the process certainly no longer exists. False for one of another machine: only its heart can tell."""
    home, _, rest = key.rpartition("/")
    home, _, pid = home.rpartition("/")
    return home == _home() and pid.isdigit() and _started(int(pid)) != rest


def _started(pid: int) -> str | None:
    """Its start in clock ticks after the boot (proc(5), field 22); None when it is gone or a zombie, whose threads have ended."""
    try:
        after_name = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in {"Z", "X"} else after_name[19]
