"""What is measured, all in one shape: Mailroom and the peers are emptied, filled, started and stopped by the same words."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pika
import psycopg2
import redis

from bench.machine import cpu_seconds
from bench.marks import DIRECTORY, Marks
from bench.peers.catalogue import PEERS, Peer
from bench.peers.environments import prepared
from bench.workbench import PROCESSES, THREADS, Workbench
from brokers.queues import Queue, dead_letter_queue
from core.settings import ROOT
from tests.acceptance.installation import Program, clean_environment, eventually

TEXT = "hello world 0123456789"
OURS = "ours"  # the queue of `Brokers`, by which its program knows what it is to measure
START_SECONDS = 60.0
PRODUCE_SECONDS = 600.0
POOL = "32"
"""Database connections of a producer: one for each of its threads."""


@dataclass
class Workers:
    """The running processes of one system."""

    programs: Sequence[Program]

    def pids(self) -> list[int]:
        """All of them, children included."""
        return [pid for program in self.programs for pid in program.tree()]

    def cpu_seconds(self) -> float:
        """So far."""
        return cpu_seconds(self.pids())

    def check(self) -> None:
        """Raises AssertionError with its last words when one has ended."""
        for program in self.programs:
            assert program.running, f"a worker has ended:\n{program.output()[-3000:]}"


class System(Protocol):
    """One way to run tasks. A task is `noop` or `nap` (sleeps as many seconds as its text says), with three strings."""

    name: str
    bench: Workbench

    def reset(self) -> None:
        """No messages, no rows, no marks."""

    def start(self, processes: int, threads: int, queues: int) -> list[Program]:
        """Start the workers; they need not be ready yet. `queues`: how many they consume, at least."""

    def produce(self, word: str, *words: str) -> dict[str, Any]:
        """See bench/peers/produce.py."""


def fill(system: System, runs: int, task: str = "noop", text: str = TEXT) -> float:
    """Enqueue as fast as the system can; the seconds until all were accepted and, where it confirms, confirmed."""
    return float(system.produce("fill", task, text, str(runs))["seconds"])


@contextmanager
def working(system: System, processes: int = PROCESSES, threads: int = THREADS, queues: int = 1) -> Iterator[Workers]:
    """The system's workers, stopped at the end."""
    programs = system.start(processes, threads, queues)
    try:
        yield Workers(programs)
    finally:
        for program in programs:
            program.terminate(timeout=15)
            system.bench.installation.programs.remove(program)


def wait_for_marks(marks: Marks, workers: Workers, runs: int, *, patience: float = 30.0, pause: float = 0.05) -> None:
    """Wait until so many runs have started. Raises AssertionError when none does for as long as the patience."""
    seen, deadline = -1, 0.0
    while (count := marks.read()) < runs:
        workers.check()
        now = time.monotonic()
        if count > seen:
            seen, deadline = count, now + patience + START_SECONDS * (seen <= 0)
        assert now < deadline, f"{count} of {runs} runs started, then none for {patience} s:\n{workers.programs[0].output()[-2000:]}"
        time.sleep(pause)


def warm_up(system: System, marks: Marks, workers: Workers, processes: int) -> None:
    """Give the workers something to do until each process has done some, then forget it."""

    def all_have() -> bool:
        before = marks.read()
        fill(system, 20 * processes)
        wait_for_marks(marks, workers, before + 20 * processes)
        return marks.processes >= processes

    eventually(all_have, f"all processes of {system.name} have started a run", START_SECONDS)
    time.sleep(1)


@dataclass
class Mailroom:
    """Our own processes, all with the same settings."""

    name: str
    bench: Workbench
    settings: dict[str, str]

    def reset(self) -> None:
        """The tables of runs are made empty, the queues deleted."""
        self.bench.installation.query("TRUNCATE task_runs CASCADE")
        delete_queues(self.bench.rabbitmq.url, [name for queue in Queue for name in (str(queue), dead_letter_queue(queue))])
        self.bench.marks.clear()

    def start(self, processes: int, threads: int, queues: int) -> list[Program]:
        """As `./manage.py worker` does."""
        return self.bench.workers(processes, threads, BENCH_QUEUES=str(queues), **self.settings)

    def produce(self, word: str, *words: str) -> dict[str, Any]:
        """In a process of `bench.noop`."""
        return answer_of(self.bench.noop(word, self.bench.tenant_id, *words, name=word, DB_POOL_SIZE=POOL, **self.settings), self.bench)


@dataclass
class Brokers:
    """`brokers/` alone under the stock Worker: nothing is recorded. See bench/transport_app.py."""

    name: str
    bench: Workbench

    def reset(self) -> None:
        """No messages, no marks."""
        delete_queues(self.bench.rabbitmq.url, [OURS, dead_letter_queue(OURS)])
        self.bench.marks.clear()

    def start(self, processes: int, threads: int, queues: int) -> list[Program]:
        """One queue, whatever is asked for."""
        return [self._run("work", str(threads)) for _ in range(processes)]

    def produce(self, word: str, *words: str) -> dict[str, Any]:
        """Only `fill`, and only with the no-op."""
        assert (word, *words[:1]) == ("fill", "noop")
        return answer_of(self._run(word, words[-1]), self.bench)

    def _run(self, word: str, count: str) -> Program:
        log = self.bench.installation.directory / f"{self.name}-{word}-{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "bench.transport_app", word, OURS, self.bench.rabbitmq.url, count]
        environment = clean_environment(LOG_LEVEL="WARNING", **{DIRECTORY: str(self.bench.marks.directory)})
        program = Program(command, log=log, env=environment)
        self.bench.installation.programs.append(program)
        return program


@dataclass
class Other:
    """A peer, in its own environment."""

    name: str
    bench: Workbench
    peer: Peer

    def __post_init__(self) -> None:
        directory = prepared(self.peer.environment)
        self._words = {
            "bin": directory / "bin",
            "apps": ROOT / "bench" / "peers" / "apps",
            "app": self.peer.app,
            "module": self.peer.module,
        }
        self._environment = clean_environment(
            BENCH_RABBITMQ=self.bench.rabbitmq.url,
            BENCH_REDIS=self.bench.redis.url,
            BENCH_POSTGRES=self.bench.database_of(self.peer.environment) if self.peer.set_up else "",
            NODE_PATH=str(directory / "node_modules"),
            **{DIRECTORY: str(self.bench.marks.directory), **self.peer.settings},
        )
        if self.peer.set_up and self.peer.environment not in self.bench.set_up:
            assert self._run(self.peer.set_up, "set-up").wait(60) == 0
            self.bench.set_up.add(self.peer.environment)

    def reset(self) -> None:
        """Whatever a peer could have left behind is removed from all three servers."""
        delete_queues(self.bench.rabbitmq.url, self.peer.queues)
        with redis.Redis.from_url(self.bench.redis.url) as server:
            server.flushall()
        if self.peer.set_up:
            with psycopg2.connect(self._environment["BENCH_POSTGRES"]) as connection, connection.cursor() as cursor:
                cursor.execute("TRUNCATE procrastinate_jobs CASCADE")
            connection.close()
        self.bench.marks.clear()

    def start(self, processes: int, threads: int, queues: int) -> list[Program]:
        """By the peer's own command."""
        facts = {"processes": processes, "threads": threads}
        numbers = range(processes if self.peer.once_each else 1)
        return [self._run(self.peer.worker, "worker", {"BENCH_QUEUES": str(queues)}, number=number, **facts) for number in numbers]

    def produce(self, word: str, *words: str) -> dict[str, Any]:
        """By bench/peers/produce.py or its likeness."""
        return answer_of(self._run(" ".join([self.peer.producer, word, *map(shlex.quote, words)]), word), self.bench)

    def _run(self, command: str, name: str, settings: dict[str, str] | None = None, **facts: int) -> Program:
        words = [word.format(**self._words, **facts) for word in shlex.split(command)]
        log = self.bench.installation.directory / f"{self.name}-{name}-{time.monotonic_ns()}.log"
        program = Program(words, log=log, env={**self._environment, **(settings or {})})
        self.bench.installation.programs.append(program)
        return program


def answer_of(program: Program, bench: Workbench) -> dict[str, Any]:
    """What a producer says in the end."""
    code = program.wait(PRODUCE_SECONDS)
    program.terminate()
    bench.installation.programs.remove(program)
    assert code == 0, program.output()[-3000:]
    return dict(json.loads(program.output().splitlines()[-1]))


def delete_queues(url: str, names: Sequence[str]) -> None:
    """With everything in them; RabbitMQ does not mind those that are not there."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    for name in names:
        channel.queue_delete(name)
    connection.close()


MAILROOM: dict[str, dict[str, str]] = {
    "mailroom": {"CLAIM_AHEAD": "0"},
    "mailroom-ahead": {"CLAIM_AHEAD": "8"},
    "mailroom-broker": {"CLAIM_AHEAD": "0", "TENANT_WINDOW": "1000000000"},
}
"""`-broker`: every run has its message; else what is behind a lone tenant's window is claimed straight from the record."""
BROKERS = "brokers"
AGAIN = "-again"
"""Appended to a name: the same once more, for a control that shows the noise."""


def known_systems() -> list[str]:
    """All names."""
    return [*MAILROOM, BROKERS, *PEERS]


def system(name: str, bench: Workbench) -> System:
    """By name. Raises KeyError."""
    plain = name.removesuffix(AGAIN)
    if plain in MAILROOM:
        return Mailroom(name, bench, MAILROOM[plain])
    return Brokers(name, bench) if plain == BROKERS else Other(name, bench, PEERS[plain])
