"""The supervisor over small shell programs: restarts with back-off, stops in the reverse order, and kills what does not listen."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.supervisor import FIRST_BACKOFF, MAX_BACKOFF, STEADY_SECONDS, Child, Supervisor
from core.settings import environment
from tests.servers.process import is_alive


def shell(name: str, script: str, log: Path, **options: float) -> Child:
    return Child(name, ["/bin/sh", "-c", script], environment(), log=log, **options)  # type: ignore[arg-type]


def until(holds: Callable[[], object], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def says_when_told(name: str, log: Path) -> Child:
    return shell(name, f"trap 'echo {name}; exit 0' TERM; echo ready; while :; do sleep 0.02; done", log)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "children.log"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time as the supervisor sees it; add to it to pass some."""
    passed = [0.0]
    real = time.monotonic
    monkeypatch.setattr("cli.supervisor.time.monotonic", lambda: real() + passed[0])
    return passed


def test_children_stop_in_the_reverse_order_of_their_start(log: Path) -> None:
    supervisor = Supervisor([says_when_told(name, log) for name in ("broker", "scheduler", "api")])
    supervisor.start()
    assert until(lambda: log.read_text().count("ready") == 3)
    supervisor.stop()
    assert log.read_text().split()[3:] == ["api", "scheduler", "broker"]
    assert all(child.process is None for child in supervisor.children)


def test_workers_are_told_together(log: Path) -> None:
    all_told = f"test $(grep -c told {log}) -ge 3"  # each waits for the others: told one after the other, the first would never end
    script = f"trap 'echo told; until {all_told}; do sleep 0.02; done; exit 0' TERM; echo ready; while :; do sleep 0.02; done"
    supervisor = Supervisor([shell(f"worker-{number}", script, log) for number in range(3)])
    supervisor.start()
    assert until(lambda: log.read_text().count("ready") == 3)
    began = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - began < 20


def test_a_child_that_does_not_listen_is_killed_after_its_grace(log: Path) -> None:
    child = shell("deaf", "trap '' TERM; echo ready; while :; do sleep 0.02; done", log, grace=0.2)
    supervisor = Supervisor([child])
    supervisor.start()
    assert until(lambda: "ready" in log.read_text())
    assert child.process is not None
    pid = child.process.pid
    supervisor.stop()
    assert not is_alive(pid)


def test_a_child_that_crashes_is_restarted_and_each_time_later(log: Path, clock: list[float]) -> None:
    child = shell("worker-1", "echo born; exit 3", log)
    supervisor = Supervisor([child])
    supervisor.start()
    waits = []
    for births in range(1, 9):
        assert until(lambda births=births: log.read_text().count("born") == births and not child.is_alive)  # type: ignore[misc]
        waits.append(child.backoff)
        supervisor.poll()  # notices the end
        supervisor.poll()
        assert log.read_text().count("born") == births  # not before its time
        clock[0] += waits[-1]
        supervisor.poll()
    supervisor.stop()
    assert waits == [FIRST_BACKOFF, 1.0, 2.0, 4.0, 8.0, 16.0, MAX_BACKOFF, MAX_BACKOFF]


def test_a_child_that_ends_as_planned_is_replaced_at_once(log: Path) -> None:
    child = shell("worker-1", "echo born; exit 0", log)
    supervisor = Supervisor([child])
    supervisor.start()
    assert until(lambda: not child.is_alive)
    supervisor.poll()
    supervisor.poll()
    assert until(lambda: log.read_text().count("born") == 2)
    assert (child.restarts, child.backoff) == (0, FIRST_BACKOFF)
    supervisor.stop()


def test_a_child_that_has_been_steady_is_forgiven(log: Path, clock: list[float]) -> None:
    child = shell("api", "exec sleep 60", log)
    child.restarts, child.backoff = 4, 8.0
    supervisor = Supervisor([child])
    supervisor.start()
    supervisor.poll()
    assert (child.restarts, child.backoff) == (4, 8.0)
    clock[0] += STEADY_SECONDS + 1
    supervisor.poll()
    supervisor.stop()
    assert (child.restarts, child.backoff) == (0, FIRST_BACKOFF)


def test_one_child_s_end_takes_no_other_with_it(log: Path) -> None:
    steady, crashing = shell("api", "exec sleep 60", log), shell("worker-1", "exit 1", log)
    supervisor = Supervisor([steady, crashing])
    supervisor.start()
    assert steady.process is not None
    pid = steady.process.pid
    assert until(lambda: not crashing.is_alive)
    supervisor.poll()
    assert (steady.process.pid, steady.is_alive) == (pid, True)
    supervisor.stop()


def test_run_ends_on_a_signal_and_hears_of_a_child_s_end_meanwhile(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells it: it would not look by itself for a minute."""
    monkeypatch.setattr("cli.supervisor.TOLD_SECONDS", 60.0)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)}
    supervisor = Supervisor([shell("worker-1", f"test -e {log}.again && exec sleep 60; echo born; sleep 0.2; touch {log}.again", log)])
    seen: list[bool] = []

    def end_when_born_again() -> None:
        seen.append(until(lambda: supervisor.children[0].is_alive and log.with_suffix(".log.again").exists()))
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        supervisor.handle_signals()
        supervisor.start()
        threading.Thread(target=end_when_born_again).start()
        supervisor.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert seen == [True]
    assert supervisor.children[0].process is None


def test_a_signal_during_the_start_of_a_child_loses_no_child(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child is known before the interruption gets through, and can be stopped by a signal itself."""
    before = signal.getsignal(signal.SIGTERM)

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # not to a thread of another test
            super().__init__(*args, **options)

    monkeypatch.setattr("cli.supervisor.subprocess.Popen", Interrupted)
    signal.signal(signal.SIGTERM, interrupt)
    child = shell("api", "exec sleep 60", log)
    try:
        with pytest.raises(KeyboardInterrupt):
            child.spawn()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert child.is_alive
    assert child.process is not None
    pid = child.process.pid
    began = time.monotonic()
    child.stop()
    assert time.monotonic() - began < 20
    assert not is_alive(pid)


def test_stopping_what_never_ran_is_harmless(log: Path) -> None:
    Supervisor([shell("api", "exit 0", log)]).stop()
    assert not log.exists()


def test_output_without_a_log_goes_to_ours(capfd: pytest.CaptureFixture[str]) -> None:
    child = Child("api", ["/bin/sh", "-c", "echo to the terminal"], environment())
    child.spawn()
    assert until(lambda: not child.is_alive)
    assert "to the terminal" in capfd.readouterr().err


def test_a_socket_stays_open_for_every_start_of_its_child(log: Path) -> None:
    child = shell("api", "exit 1", log)
    child.inherited = (socket.create_server(("127.0.0.1", 0)),)  # nobody else holds it
    number = child.inherited[0].fileno()
    child.command = ["/bin/sh", "-c", f"readlink /proc/self/fd/{number}; exit 1"]
    for _ in range(2):
        child.spawn()
        assert until(lambda: not child.is_alive)
    child.inherited[0].close()
    assert re.fullmatch(r"(socket:\[\d+\]\n)\1", log.read_text())
