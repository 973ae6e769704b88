"""Child processes that read images for this one, within limits of memory, time and rights; what they read cannot touch this process.

A child is a fresh interpreter without our environment, our descriptors or our memory. It stays, since starting one takes a tenth of a
second and drawing a picture a fifth of that. It is replaced when it dies, when it was given up, and after some hundred images.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from core.errors import PermanentError, TransientError
from core.logging import get_logger

log = get_logger(__name__)
ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60.0
WAIT_FACTOR = 3
"""A machine that is busy gives a child less than a second of processor time in a second."""
JOBS = 500
LARGEST_ANSWER = 32 * 2**20
LENGTH = struct.Struct("!I")
KINDS = {"jpg", "png"}
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "1"}
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from files.drawing_child import main; main(int(sys.argv[2]))"
# The kernel ends a child with the *thread* that started it, so that thread has to stay.
_starter = ThreadPoolExecutor(1, thread_name_prefix="children")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one image may take: pixels to be decoded, megabytes of memory, seconds of processor time."""

    max_pixels: int = 50_000_000
    memory_mb: int = 768
    seconds: int = 20


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture as a child drew it; `kind` is `jpg` or `png`."""

    width: int
    height: int
    kind: str
    content: bytes


class ChildGoneError(Exception):
    """The child died while it drew, by this signal or exit code (as subprocess has it); `was_fresh`: it had drawn nothing before."""

    def __init__(self, code: int, *, was_fresh: bool) -> None:
        super().__init__(f"ended with {code}")
        self.code = code
        self.was_fresh = was_fresh


class LimitedChild:
    """One child; for one thread at a time."""

    def __init__(self, memory_mb: int) -> None:
        ours, theirs = socket.socketpair()
        self.jobs = 0
        self._channel = ours
        command = [sys.executable, "-I", "-c", PROGRAM, str(ROOT), str(memory_mb)]
        with theirs:
            self._process = _starter.submit(_started, command, theirs).result()
        try:
            self._until = time.monotonic() + START_SECONDS
            self.is_filtered = bool(self._answer().get("filtered"))
        except BaseException:  # an interrupt, too: nobody else knows of the child yet, and it would stay behind
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_usable(self) -> bool:
        """Whether it lives and is not worn out."""
        return self.jobs < JOBS and self._process.poll() is None

    def draw(self, descriptor: int, sizes: Sequence[tuple[int, int]], allowance: Allowance) -> list[Drawn]:
        """Pictures of the file. Raises PermanentError with the child's sentence, ChildGoneError, TransientError when it took too long."""
        was_fresh, self.jobs = self.jobs == 0, self.jobs + 1
        self._until = time.monotonic() + WAIT_FACTOR * allowance.seconds
        request = orjson.dumps({"sizes": list(sizes), "max_pixels": allowance.max_pixels, "seconds": allowance.seconds})
        try:
            socket.send_fds(self._channel, [LENGTH.pack(len(request)) + request], [descriptor])
            answer = self._answer()
            if "error" in answer:
                raise PermanentError(str(answer["error"])[:500])
            return [self._picture(facts) for facts in answer["pictures"]]
        except TimeoutError:
            self.close()
            raise TransientError(f"The image was given up after {WAIT_FACTOR * allowance.seconds} s: this machine is too busy.") from None
        except (OSError, ValueError, KeyError, TypeError):  # it is gone, or talks nonsense, which is as good as gone
            raise ChildGoneError(self.close(), was_fresh=was_fresh) from None
        except PermanentError:
            raise
        except BaseException:  # a time limit, which may strike anywhere: what the child still says would be taken for the next answer
            self.close()
            raise

    def close(self) -> int:
        """Ends it, whatever it does. Returns how it ended."""
        self._channel.close()
        try:
            self._process.wait(0.5)  # one that dies by itself says why
        except subprocess.TimeoutExpired:
            self._process.kill()
        return self._process.wait()

    def _picture(self, facts: dict[str, Any]) -> Drawn:
        width, height, kind, size = facts["width"], facts["height"], facts["kind"], facts["bytes"]
        if kind not in KINDS or not all(isinstance(each, int) and 0 < each <= LARGEST_ANSWER for each in (width, height, size)):
            raise ValueError(kind)
        return Drawn(width, height, kind, self._read(size))

    def _answer(self) -> dict[str, Any]:
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        answer = orjson.loads(self._read(min(length, LARGEST_ANSWER)))
        if not isinstance(answer, dict):
            raise TypeError("not an answer")
        return answer

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._channel.settimeout(max(0.001, self._until - time.monotonic()))
            piece = self._channel.recv(min(size - len(data), 2**18))
            if not piece:
                raise ConnectionResetError
            data += piece
        return bytes(data)


class Children:
    """At most so many children, started when they are needed and kept. For any number of threads."""

    def __init__(self, most: int) -> None:
        self._room = threading.BoundedSemaphore(most)
        self._idle: queue.LifoQueue[LimitedChild] = queue.LifoQueue()

    def draw(self, descriptor: int, sizes: Sequence[tuple[int, int]], allowance: Allowance) -> list[Drawn]:
        """As LimitedChild.draw. An image that kills a child is tried once more in a fresh one, since an image before it may be to blame.

        Raises PermanentError when it kills that too.
        """
        with self._room:
            try:
                return self._drawn(descriptor, sizes, allowance)
            except ChildGoneError as gone:
                log.warning("image_child_died", code=gone.code)
                if not gone.was_fresh and gone.code != -signal.SIGXCPU:
                    self._forget_idle()
                    try:
                        return self._drawn(descriptor, sizes, allowance)
                    except ChildGoneError as again:
                        raise _verdict(again, allowance) from None
                raise _verdict(gone, allowance) from None

    def close(self) -> None:
        """Ends those that wait."""
        self._forget_idle()

    def _drawn(self, descriptor: int, sizes: Sequence[tuple[int, int]], allowance: Allowance) -> list[Drawn]:
        child = self._take(allowance.memory_mb)
        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            return child.draw(descriptor, sizes, allowance)
        finally:
            if child.is_usable:
                self._idle.put(child)
            else:
                child.close()

    def _take(self, memory_mb: int) -> LimitedChild:
        while True:
            try:
                child = self._idle.get_nowait()
            except queue.Empty:
                return LimitedChild(memory_mb)
            if child.is_usable:
                return child
            child.close()

    def _forget_idle(self) -> None:
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return


def _started(command: list[str], channel: socket.socket) -> subprocess.Popen[bytes]:
    nothing = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=channel.fileno(), stdout=nothing, stderr=nothing, env=ENVIRONMENT, cwd="/")  # noqa: S603  (ours)


def _verdict(gone: ChildGoneError, allowance: Allowance) -> PermanentError | TransientError:
    if gone.code == -signal.SIGXCPU:
        return PermanentError(f"The image takes more than {allowance.seconds} s of processor time to be drawn.")
    if gone.code == -signal.SIGKILL:  # the kernel was short of memory, or an operator lost patience
        return TransientError("The process that drew the image was killed.")
    return PermanentError("The image crashes the program that reads it.")
