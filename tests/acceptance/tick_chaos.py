"""Schedulers whose clocks are wrong and that are killed at random, and an auditor that counts ticks and runs.

`python -m tests.acceptance.tick_chaos --ticks 2000` does it at any size. Real processes over a real PostgreSQL; a minute takes a
tenth of a second, so that thousands of them can be waited for.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.acceptance.installation import Installation, Program, eventually, installed, tell
from tests.servers.postgres import Postgres
from tests.servers.process import find_program, server_directory
from tests.servers.redis import Redis

SPEED = 600.0
CLOCKS = ("-5", "+0", "+5")
"""Seconds by which each scheduler's own clock is wrong."""
PAUSE = (0.6, 2.4)
"""Seconds between two kills."""


@dataclass(frozen=True)
class Books:
    """What was found: ticks and runs there are, minutes without a tick between the first and the last, runs too many."""

    ticks: int
    kills: int
    seconds: float
    missing: int
    double: int
    without_run: int

    def __str__(self) -> str:
        found = f"{self.missing} missing, {self.double} double, {self.without_run} without their run"
        return f"{self.ticks} ticks in {self.seconds:.0f} s, {len(CLOCKS)} schedulers 5 s apart, {self.kills} kills: {found}"


def campaign(installation: Installation, ticks: int, seed: int) -> Books:
    """Kills until there were so many ticks, then lets everybody stop in order and counts.

    One of the three is always up: more than the 100 newest missed ticks are not made up for, and that many pass in ten seconds here.
    """
    chance, kills, began = random.Random(seed), 0, time.monotonic()
    settings = {"TICKING_SPEED": str(SPEED), "TICKING_SINCE": datetime.now(UTC).isoformat()}
    schedulers = [_start(installation, offset, settings) for offset in CLOCKS]
    eventually(lambda: _ticks(installation), "the first tick", 60)
    while _ticks(installation) < ticks:
        time.sleep(chance.uniform(*PAUSE))
        place = chance.randrange(len(CLOCKS))
        others = [each for each in schedulers if each is not schedulers[place]]
        if not any("scheduler_started" in each.output() for each in others):
            continue
        schedulers[place].send(signal.SIGKILL)
        schedulers[place].wait(10)
        schedulers[place] = _start(installation, CLOCKS[place], settings)
        kills += 1
    before = _ticks(installation)
    eventually(lambda: _ticks(installation) > before + 2, "they go on ticking", 60)
    for scheduler in schedulers:
        scheduler.terminate(timeout=20)
    return _audit(installation, kills, time.monotonic() - began)


def _start(installation: Installation, offset: str, settings: dict[str, str]) -> Program:
    library = find_program("libfaketime", "/usr/lib/*/faketime/libfaketimeMT.so.1")
    false_clock = {"LD_PRELOAD": str(library), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    command = [sys.executable, "-m", "tests.acceptance.ticking"]
    return installation.start_command(command, name=f"ticking{offset}", **settings, **false_clock)


def _ticks(installation: Installation) -> int:
    return int(installation.query("SELECT count(*) FROM schedule_ticks WHERE task = 'every_minute'")[0][0])


def _audit(installation: Installation, kills: int, seconds: float) -> Books:
    minutes = [row[0] for row in installation.query("SELECT minute FROM schedule_ticks WHERE task = 'every_minute' ORDER BY minute")]
    expected = round((minutes[-1] - minutes[0]) / timedelta(minutes=1)) + 1
    runs = {row[0] for row in installation.query("SELECT id::text FROM task_runs WHERE task = 'every_minute'")}
    started = [row[0] for row in installation.query("SELECT run_id::text FROM schedule_ticks WHERE task = 'every_minute'")]
    double = len(runs - set(started)) + len(started) - len(set(started))
    return Books(len(minutes), kills, seconds, expected - len(minutes), double, len(set(started) - runs))


@contextmanager
def servers() -> Iterator[tuple[Postgres, Redis]]:
    """Private ones."""
    with ExitStack() as stack:
        postgres = Postgres(stack.enter_context(server_directory("postgres")))
        redis = Redis(stack.enter_context(server_directory("redis")))
        for server in (postgres, redis):
            stack.callback(server.stop)
            server.start()
        yield postgres, redis


def main() -> int:
    """Any number of ticks; the exit code says whether the books balance."""
    parser = argparse.ArgumentParser(prog="tick_chaos")
    parser.add_argument("--ticks", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ticks-")))
        postgres, redis = stack.enter_context(servers())
        installation = stack.enter_context(installed(directory, postgres, "chaos", REDIS_URL=redis.url))
        books = campaign(installation, options.ticks, options.seed)
    tell(str(books))
    return 0 if books.missing == books.double == books.without_run == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
