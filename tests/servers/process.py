"""What all private test servers share: a free loopback port, one supervised process, and the verbs that break it on purpose.

A server's own process is the root of a small tree (RabbitMQ's port programs, PostgreSQL's backends, Dovecot's services). Faults
and the final clean-up reach the whole tree; a "leash" kills the root even when the test run itself is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Protocol, Self, TypeVar

FIRST_PORT, LAST_PORT = 20_000, 32_000  # below Linux's ephemeral range, so that no outgoing connection takes one
LANE = int(os.environ.get("PYTEST_XDIST_WORKER", "gw3").removeprefix("gw")) % 4
"""Test processes side by side pick from ports of their own: between finding a free one and taking it another could."""
_given: set[int] = set()


class MissingServerError(Exception):
    """The server's program is not installed here; the sentence names the Debian package that brings it."""


class ServerStartError(Exception):
    """The server did not come up; the sentence ends with the tail of its log."""


def free_port() -> int:
    """A loopback TCP port that nobody listens on and that this process has not handed out before."""
    while True:
        port = random.randint(FIRST_PORT, LAST_PORT) // 4 * 4 + LANE
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port


@contextlib.contextmanager
def server_directory(name: str) -> Iterator[Path]:
    """A short directory that other users may enter: PostgreSQL and Dovecot drop root, and Unix socket paths end at 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix=f"mailroom-{name}-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def wait_until_gone(pids: Sequence[int], timeout: float = 30.0) -> list[int]:
    """Wait until none of the processes is alive; answer those that still are."""
    deadline = time.monotonic() + timeout
    while (left := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    return _stat(pid)[0] not in {"", "Z", "X"}


def _stat(pid: int) -> tuple[str, int]:
    """State letter and parent of a process (proc(5)); ("", 0) when there is none."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0
    return after_name[0], int(after_name[1])


def process_tree(root: int) -> list[int]:
    """The process and all its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            children.setdefault(_stat(int(entry.name))[1], []).append(int(entry.name))
    tree = [root]
    for pid in tree:  # grows while it is walked
        tree.extend(children.get(pid, []))
    return tree


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Process:
    """One program in its own session, its output in a log file, its tree never outliving this run."""

    def __init__(self, command: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd or log.parent,
                start_new_session=True,
            )
        self.pid = self._process.pid
        # The read ends when the last holder of the pipe is gone, however it died; then the program's whole group goes.
        self._leash = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; kill -KILL "-$0"', str(self.pid)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        atexit.register(self.kill)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def tree(self) -> list[int]:
        return process_tree(self.pid) if self.running else []

    def terminate(self, number: signal.Signals = signal.SIGTERM, timeout: float = 30.0) -> None:
        """End gracefully: the signal to the root alone, then SIGKILL for whatever is left."""
        tree = self.tree()
        _signal(tree, signal.SIGCONT)
        if tree:
            _signal([self.pid], number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        self._reap(tree)

    def kill(self) -> None:
        """SIGKILL for the whole tree, the root first so that it starts nothing new."""
        self._reap(self.tree())

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        _signal(self.tree(), signal.SIGSTOP)

    def thaw(self) -> None:
        _signal(self.tree(), signal.SIGCONT)

    def _reap(self, tree: Sequence[int]) -> None:
        atexit.unregister(self.kill)
        if tree:
            _signal([self.pid], signal.SIGKILL)
            self._process.wait(10)
        wait_until_gone(tree, timeout=0.5)  # most servers' children see their parent's end
        _signal([pid for pid in tree if is_alive(pid)], signal.SIGKILL)
        wait_until_gone(tree)
        self._leash.kill()
        self._leash.wait(10)
        if self._leash.stdin is not None:
            self._leash.stdin.close()


class Server(ABC):
    """A real server on loopback with its data in one directory. `start()` returns when it answers.

    The port is picked at the first start and kept, so clients find the server again after `restart()` or `kill()` and `start()`.
    """

    package: ClassVar[str]
    """The Debian package that brings it."""
    start_timeout: ClassVar[float] = 30.0

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = 0
        self._process: Process | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect."""

    @abstractmethod
    def _spawn(self) -> Process:
        """Write the configuration and start the program."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server greets a client; OSError counts as no."""

    @property
    def log(self) -> Path:
        """The program's output."""
        return self.directory / f"{type(self).__name__.lower()}.log"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def pids(self) -> list[int]:
        """All processes of the server, empty when it is stopped."""
        return self._process.tree() if self._process else []

    def start(self) -> None:
        if self.running:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        self._process = self._spawn()
        deadline = time.monotonic() + self.start_timeout
        while not self._ready():
            if not self.running or time.monotonic() > deadline:
                self.kill()
                tail = self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""
                raise ServerStartError(f"{type(self).__name__} did not start on port {self.port}:\n{tail}")
            time.sleep(0.02)

    def _ready(self) -> bool:
        try:
            return self._answers()
        except OSError:
            return False

    def stop(self) -> None:
        """End gracefully; the data stays. No process is left."""
        if self._process is not None:
            self._process.terminate()
            self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL for the whole server; `start()` brings it back on the same port with what it had saved."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, new ones are accepted by the kernel, nothing answers."""
        if self._process is not None:
            self._process.freeze()

    def thaw(self) -> None:
        if self._process is not None:
            self._process.thaw()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


S = TypeVar("S", bound=Server)


class ServerFactory(Protocol):
    """`own_server(RabbitMq)`: a server that is one test's alone, not started yet, gone at its end (fixture `own_server`)."""

    def __call__(self, kind: type[S]) -> S: ...


def talk(port: int, request: bytes = b"", timeout: float = 2.0) -> bytes:
    """Connect, send, and answer with the first bytes that come back."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        if request:
            connection.sendall(request)
        return connection.recv(4096)


def find_program(package: str, *candidates: str) -> Path:
    """The first candidate (a name on PATH or a glob of absolute paths, newest last) that exists, else `MissingServerError`."""
    for candidate in candidates:
        if candidate.startswith("/"):
            found = sorted(Path("/").glob(candidate[1:]), key=lambda path: [int(n) if n.isdigit() else 0 for n in path.parts])
            if found:
                return found[-1]
        elif path := shutil.which(candidate, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin", "/usr/local/bin"])):
            return Path(path)
    raise MissingServerError(f"{candidates[0]} is not installed: apt-get install {package}")
