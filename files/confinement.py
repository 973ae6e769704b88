"""What a process that reads hostile images gives up before it reads the first one (Linux).

Memory, processor time and files are limited by setrlimit(2). Then a seccomp(2) filter takes away every call that opens, changes,
connects or executes anything: what is left is to compute on what was handed over. Elsewhere than on x86-64 and ARM64 Linux only the
limits hold.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import resource
import signal
import struct

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
OPEN_FILES = 32

# linux/filter.h, linux/seccomp.h and linux/audit.h
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
_X32 = 0x40000000

# Linux' numbers of what is refused: open, openat, openat2, creat; unlink, rename, link, symlink, mkdir, rmdir, truncate, chmod, chown and
# their younger kin; socket, connect, bind, listen, accept; execve, fork, vfork; ptrace, process_vm_*, kill, mount, bpf, io_uring...
_REFUSED = {
    "x86_64": (
        0xC000003E,
        (
            "2 257 437 85 87 263 82 264 316 86 265 88 266 83 258 84 76 90 268 92 94 260 133 259 132 235 261 280 41 42 49 50 43 288 53"
            " 59 322 57 58 101 310 311 62 129 165 155 161 321 323 298 250 248 249 425 426 427 272 308 304 424 438 434"
        ),
    ),
    "aarch64": (
        0xC00000B7,
        (
            "56 437 35 38 276 37 36 34 45 53 54 33 88 198 203 200 201 202 242 199 221 281 117 270 271 129 138 40 41 51 280 282 241 219 217"
            " 218 425 426 427 97 268 265 424 438 434"
        ),
    ),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def die_with_parent() -> None:
    """The kernel kills this process when the thread that started it is gone."""
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def limit(memory_mb: int) -> None:
    """For good: so much address space, few descriptors, not one byte into any file, no core dump."""
    size = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_processor(seconds: int) -> None:
    """From now on; SIGXCPU ends the process when they are spent. To be renewed for every job."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + seconds, resource.RLIM_INFINITY))


def give_up_system_calls() -> bool:
    """Installs the filter: the refused calls fail with EPERM from now on. Returns whether this machine can."""
    machine = _REFUSED.get(platform.machine())
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if machine is None or prctl is None:
        return False
    code = _program(*machine)
    program = _Program(len(code) // 8, code)
    if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def _program(architecture: int, refused: str) -> bytes:
    """The filter's instructions (struct sock_filter: code, jump if true, jump if false, value)."""
    checks = [(_EQUAL, int(number)) for number in refused.split()]
    if architecture == _REFUSED["x86_64"][0]:
        checks.append((_AT_LEAST, _X32))  # the same calls by other numbers
    lines = [(_LOAD, 0, 0, _ARCHITECTURE_AT), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER_AT)]
    lines += [(code, len(checks) - place, 0, value) for place, (code, value) in enumerate(checks)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)
