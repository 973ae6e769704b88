"""`./manage.py quickstart` on a machine that has nothing: an empty home, no settings, the usual port taken."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.settings import ROOT
from tests.acceptance.installation import Program, clean_environment, eventually, gone, processes_that_know, tell
from tests.servers.process import wait_until_gone

pytestmark = pytest.mark.acceptance

DEMO_RUNS = (
    "✔ acme    syncs its support mailbox: {new} new messages",
    "✔ globex  syncs its office mailbox: {new} new messages",
    "↻ acme    syncs a mailbox whose server is away at first: ",
    "✔ acme    syncs a mailbox whose server is away at first: 0 new messages, at attempt 2",
    "✔ acme    sends a mail to globex: accepted for 1 recipient",
    "✘ globex  syncs with a wrong password, which ends as a dead letter: ",
    "✔ globex  syncs again and finds the mail: 1 new message",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty home and, beside it, the data directory that two starts share."""
    home = tmp_path_factory.mktemp("quickstart") / "home"
    home.mkdir()
    return home


@pytest.fixture(scope="module")
def data(home: Path) -> Path:
    return home.parent / "data"


@pytest.fixture(scope="module")
def environment(home: Path, data: Path) -> dict[str, str]:
    return clean_environment(HOME=str(home), DATA_DIR=str(data), WORKER_PROCESSES="2", WORKER_THREADS="4")


@pytest.fixture(scope="module", autouse=True)
def port_8000_is_taken() -> Iterator[None]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", 8000))
            listener.listen()
        except OSError:  # by somebody else, which will do
            pass
        yield


@pytest.fixture(autouse=True)
def nothing_is_left(data: Path) -> Iterator[None]:
    yield
    left = processes_that_know(str(data))
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    wait_until_gone(left)
    assert left == []


def run_once(environment: dict[str, str]) -> tuple[subprocess.CompletedProcess[str], float]:
    began = time.monotonic()
    command = [sys.executable, "-m", "cli.main", "quickstart", "--once"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done, time.monotonic() - began


@pytest.fixture(scope="module")
def first_start(environment: dict[str, str]) -> tuple[subprocess.CompletedProcess[str], float]:
    return run_once(environment)


def test_the_first_start_runs_the_whole_demo_and_ends_well(
    first_start: tuple[subprocess.CompletedProcess[str], float], home: Path, data: Path
) -> None:
    done, seconds = first_start
    tell(f"first start: {seconds:.1f} s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "port 8000 is in use; taking 80" in done.stdout
    counted = re.sub(r"\d\d new messages", "{new} new messages", done.stdout)
    for line in DEMO_RUNS:
        assert line in counted, done.stdout
    assert done.stdout.splitlines()[-2:][0] == "Every demo run ended as it should."
    assert done.stderr == ""
    assert list(home.iterdir()) == []
    assert (data / "keys.env").stat().st_mode & 0o777 == 0o600
    assert data.stat().st_mode & 0o777 == 0o700


def test_its_logs_are_json_and_hold_no_error_but_the_intended(
    first_start: tuple[subprocess.CompletedProcess[str], float], data: Path
) -> None:
    lines = [json.loads(line) for name in ("worker", "api") for line in (data / f"logs/{name}.log").read_text().splitlines()]
    assert {line["message"] for line in lines if line["level"] in {"error", "critical"}} == {"run_failed"}
    assert [line["level"] for line in lines if line["message"] in {"redis_consume_failed", "record_unreachable"}] == []


def test_a_second_start_finds_its_data_and_is_no_slower(
    first_start: tuple[subprocess.CompletedProcess[str], float], environment: dict[str, str]
) -> None:
    done, seconds = run_once(environment)
    tell(f"second start: {seconds:.1f} s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "acme    syncs its support mailbox: 0 new messages" in done.stdout
    assert "Every demo run ended as it should." in done.stdout
    assert seconds < first_start[1] + 20  # it does not do everything again; how fast it is, is no fact of a busy machine


def test_the_printed_command_works_and_ctrl_c_stops_everything_in_order(environment: dict[str, str], data: Path, tmp_path: Path) -> None:
    program = Program([sys.executable, "-m", "cli.main", "quickstart"], log=tmp_path / "quickstart.log", env=environment)
    try:
        program.says("Ctrl-C stops everything", 60)
        everything = program.tree()
        assert len(everything) == 8  # itself, mail, Valkey, API, scheduler, what keeps two workers
        (command,) = re.findall(r"curl -X POST .*", program.output())
        answer = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=20, check=False)
        assert json.loads(answer.stdout)["status"] == "pending", answer.stderr
        run_id = json.loads(answer.stdout)["taskId"]
        eventually(lambda: run_id in (data / "logs/worker.log").read_text(), "the run reaches a worker")
        program.send(signal.SIGINT)
        assert program.wait(60) == 0
        assert gone(everything, timeout=15)
    finally:
        program.kill()
    said = program.output()
    assert "Traceback" not in said
    assert said.rstrip().endswith("stopped")
    worker_lines = [json.loads(line) for line in (data / "logs/worker.log").read_text().splitlines()]
    assert [line["message"] for line in worker_lines[-2:]] == ["worker_stopped"] * 2  # and no word of a broker that went first


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_during_the_start_leaves_nothing(environment: dict[str, str], tmp_path: Path, number: signal.Signals) -> None:
    program = Program([sys.executable, "-m", "cli.main", "quickstart"], log=tmp_path / "quickstart.log", env=environment)
    try:
        program.says("SQLite database", 30)
        program.send(number)
        assert program.wait(60) in {0, 130}
    finally:
        program.kill()
    assert "Traceback" not in program.output()


def test_a_killed_quickstart_leaves_nothing(environment: dict[str, str], data: Path, tmp_path: Path) -> None:
    program = Program([sys.executable, "-m", "cli.main", "quickstart"], log=tmp_path / "quickstart.log", env=environment)
    try:
        program.says("API and dashboard", 30)
        everything = program.tree()
        program.send(signal.SIGKILL)
        assert gone(everything, timeout=15)
    finally:
        program.kill()
