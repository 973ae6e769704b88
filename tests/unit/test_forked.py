"""Forked children: they hear what comes before they listen, are replaced alone, and never outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli import workers
from core.settings import ROOT

PROGRAM = """
import os, signal, sys, time
from cli.signals import stop_signal
from cli.supervisor import Child, Supervisor

def listens():
    told = stop_signal()
    print("ready", os.getpid(), flush=True)
    told.wait()
    print("told", os.getpid(), flush=True)
    return 0

def listens_late():
    print("begun", os.getpid(), flush=True)
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
    return listens()

def is_deaf():
    stop_signal()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", os.getpid(), flush=True)
    time.sleep(600)

grace = 0.3 if sys.argv[1] == "is_deaf" else 60
supervisor = Supervisor([Child(f"worker-{number}", main=globals()[sys.argv[1]], grace=grace) for number in (1, 2)])
supervisor.handle_signals()
supervisor.start()
supervisor.run()
print("over", flush=True)
"""


class Family:
    """A parent with two such children, and what all of them say."""

    def __init__(self, directory: Path, children: str) -> None:
        self.gate = directory / "gate"
        self._said = directory / "said"
        with self._said.open("ab") as output:  # what two say at the same moment is not written over each other
            command = [sys.executable, "-c", PROGRAM, children, str(self.gate)]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)

    def pids(self, word: str) -> list[int]:
        lines = [line.split() for line in self._said.read_text().splitlines()]
        return [int(line[1]) for line in lines if line[:1] == [word] and len(line) == 2]

    def says(self, word: str, number: int) -> list[int]:
        assert until(lambda: len(self.pids(word)) >= number), self._said.read_text()
        return self.pids(word)

    @property
    def is_over(self) -> bool:
        return "over" in self._said.read_text().split()


def until(holds: Callable[[], object], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def family(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Family]:
    made = Family(tmp_path, request.param)
    yield made
    made.process.kill()
    made.process.wait()


@pytest.mark.parametrize("family", ["listens"], indirect=True)
def test_one_that_is_killed_is_replaced_and_all_stop_in_order(family: Family) -> None:
    victim, neighbour = family.says("ready", 2)
    os.kill(victim, signal.SIGKILL)
    *_, successor = family.says("ready", 3)
    assert os.getsid(successor) == successor != os.getsid(0)
    family.process.terminate()
    assert family.process.wait(60) == 0
    assert set(family.pids("told")) == {neighbour, successor}
    assert family.is_over


@pytest.mark.parametrize("family", ["listens"], indirect=True)
def test_they_are_told_when_their_parent_is_killed(family: Family) -> None:
    children = set(family.says("ready", 2))
    family.process.kill()
    assert set(family.says("told", 2)) == children
    assert not family.is_over


@pytest.mark.parametrize("family", ["listens_late"], indirect=True)
def test_a_signal_that_comes_early_is_heard_later(family: Family) -> None:
    children = set(family.says("begun", 2))
    family.process.terminate()
    time.sleep(0.3)  # not waited for: it must not be heard before they listen
    assert family.pids("told") == []
    family.gate.touch()
    assert set(family.says("told", 2)) == children


@pytest.mark.parametrize("family", ["is_deaf"], indirect=True)
def test_who_does_not_listen_is_killed(family: Family) -> None:
    family.says("ready", 2)
    family.process.terminate()
    assert family.process.wait(60) == 0
    assert family.is_over


ASKED = """
import subprocess, time
from cli.forked import Forked

ends = Forked(lambda: 7)
assert ends.wait(60) == ends.poll() == ends.returncode == 7
goes_on = Forked(lambda: time.sleep(600))
assert goes_on.poll() is None
try:
    goes_on.wait(0.05)
except subprocess.TimeoutExpired:
    print("goes on")
goes_on.kill()
assert goes_on.wait(60) == -9
"""


def test_it_is_asked_like_a_command() -> None:  # in a process of its own: pytest's has other threads
    done = subprocess.run([sys.executable, "-c", ASKED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "goes on\n"), done.stderr


def test_nothing_is_forked_beside_other_threads() -> None:
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait)
    thread.start()
    try:
        with pytest.raises(AssertionError, match="another thread"):
            workers.keep_alive(1, lambda: 0)
    finally:
        gate.set()
        thread.join()
