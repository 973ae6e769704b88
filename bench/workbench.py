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
from dataclasses import dataclass, field
from functools import cached_property

import httpx

from bench.machine import cpu_seconds
from bench.marks import DIRECTORY, Marks
from tests.acceptance.installation import Installation, Program, Tenant, eventually, installed
from tests.servers.postgres import Postgres
from tests.servers.process import server_directory
from tests.servers.rabbitmq import RabbitMq
from tests.servers.redis import Redis

PROCESSES, THREADS = 2, 8


@dataclass
class Workbench:
    """RabbitMQ, PostgreSQL and a migrated installation on them; Redis beside them for the peers; where the tasks leave their marks."""

    rabbitmq: RabbitMq
    postgres: Postgres
    redis: Redis
    installation: Installation
    marks: Marks
    set_up: set[str] = field(default_factory=set)
    """Peers whose tables are there."""
    _databases: dict[str, str] = field(default_factory=dict)

    @cached_property
    def _tenant(self) -> Tenant:
        return self.installation.new_tenant("bench")

    @property
    def tenant_id(self) -> str:
        """The tenant that owns the runs."""
        return self._tenant.id

    @property
    def http(self) -> httpx.Client:
        """A caller of that tenant."""
        return self._tenant.http

    def noop(self, *words: str, name: str, **settings: str) -> Program:
        """A process of `bench.noop`, which knows the tasks that do nothing."""
        return self.installation.start_command([sys.executable, "-m", "bench.noop", *words], name=name, LOG_LEVEL="WARNING", **settings)

    def workers(self, processes: int = PROCESSES, threads: int = THREADS, **settings: str) -> list[Program]:
        """What keeps so many worker processes alive; returns when each has said that it lives."""
        before = self._alive()
        started = self.noop("workers", f"--processes={processes}", f"--threads={threads}", name="workers", **settings)
        eventually(lambda: self._alive() == before + processes, "the workers live", 30)
        return [started]

    def database_of(self, name: str) -> str:
        """A peer's own database, made on first use; its URL as libpq reads it."""
        if name not in self._databases:
            self._databases[name] = self.postgres.create_database(name).replace("+psycopg2", "")
        return self._databases[name]

    def server_seconds(self) -> dict[str, float]:
        """CPU time of each server so far."""
        servers = {"rabbitmq": self.rabbitmq, "postgres": self.postgres, "redis": self.redis}
        return {name: cpu_seconds(server.pids()) for name, server in servers.items()}

    def _alive(self) -> int:
        return int(self.installation.query("SELECT count(*) FROM workers")[0][0])


@contextmanager
def workbench(**settings: str) -> Iterator[Workbench]:
    """Everything is gone at the end. `settings` are the installation's."""
    with ExitStack() as stack:
        rabbitmq = RabbitMq(stack.enter_context(server_directory("bench-rabbitmq")))
        postgres = Postgres(stack.enter_context(server_directory("bench-postgres")), fsync=True)
        redis = Redis(stack.enter_context(server_directory("bench-redis")))
        for server in (rabbitmq, postgres, redis):
            stack.enter_context(server)
        directory = stack.enter_context(server_directory("bench"))
        marks = directory / "marks"
        marks.mkdir()
        standard = {
            "RABBITMQ_URL": rabbitmq.url,
            "LOG_LEVEL": "WARNING",
            "WORKER_MAX_TASKS_PER_CHILD": "1000000000",
            DIRECTORY: str(marks),
        }
        installation = stack.enter_context(installed(directory, postgres, "bench", **{**standard, **settings}))
        yield Workbench(rabbitmq, postgres, redis, installation, Marks(marks))


def parser_of(description: str, **numbers: int) -> argparse.ArgumentParser:
    """Whole-number options with their defaults."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    return parser


def options(description: str, **numbers: int) -> argparse.Namespace:
    """The command line's, for a benchmark that has no others."""
    return parser_of(description, **numbers).parse_args()


def names(text: str) -> list[str]:
    """An option that is a list with commas."""
    return [name for name in text.split(",") if name]


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
        print(f"  {name:<{width}}  {value}", flush=True)
