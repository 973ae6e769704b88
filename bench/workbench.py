"""What the benchmarks stand on: private servers, an installation on them, and tables of medians with their ranges.

Figures are printed for people. None is asserted: a shared machine is noisy, and a benchmark is not a test.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.acceptance.installation import Installation, Program, eventually, installed
from tests.servers.postgres import Postgres
from tests.servers.process import server_directory
from tests.servers.rabbitmq import RabbitMq

PROCESSES, THREADS = 2, 8


@dataclass
class Workbench:
    """RabbitMQ, PostgreSQL and a migrated installation on them."""

    installation: Installation

    def noop(self, *words: str, name: str) -> Program:
        """A process of `bench.noop`, which knows the task that does nothing."""
        return self.installation.start_command([sys.executable, "-m", "bench.noop", *words], name=name, LOG_LEVEL="WARNING")

    def workers(self, processes: int = PROCESSES, threads: int = THREADS) -> list[Program]:
        """Worker processes; returns when each has said that it lives."""
        before = self._alive()
        started = [self.noop("worker", "--threads", str(threads), name="worker") for _ in range(processes)]
        eventually(lambda: self._alive() == before + processes, "the workers live", 30)
        return started

    def _alive(self) -> int:
        return int(self.installation.query("SELECT count(*) FROM workers")[0][0])


@contextmanager
def workbench() -> Iterator[Workbench]:
    """Everything is gone at the end."""
    with ExitStack() as stack:
        rabbitmq = RabbitMq(stack.enter_context(server_directory("bench-rabbitmq")))
        postgres = Postgres(stack.enter_context(server_directory("bench-postgres")))
        for server in (rabbitmq, postgres):
            stack.enter_context(server)
        directory = stack.enter_context(server_directory("bench"))
        installation = stack.enter_context(installed(directory, postgres, "bench", RABBITMQ_URL=rabbitmq.url, LOG_LEVEL="WARNING"))
        yield Workbench(installation)


def options(description: str, **numbers: int) -> argparse.Namespace:
    """Whole-number options with their defaults."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    return parser.parse_args()


def spread(values: Sequence[float], unit: str = "", digits: int = 1) -> str:
    """The median and, of several, the range."""
    middle = f"{statistics.median(values):,.{digits}f}"
    return f"{middle} {unit}".strip() if len(values) == 1 else f"{middle} {unit} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many per cent do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print the figures and the machine they were measured on."""
    width = max(len(name) for name, _ in rows)
    load = os.getloadavg()[0]
    print(f"\n{title}  [{os.cpu_count()} CPUs, load {load:.1f}, Python {platform.python_version()}]")
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
