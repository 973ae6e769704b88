"""The brokers alone: plain dramatiq actors on `brokers/`, nothing recorded, against stock dramatiq on the same RabbitMQ.

Each round fills and drains every kind in turn. A drain's rate is taken from the starts that the actors note, from the first tenth to
the last. Both run the stock Worker with dramatiq's standard middleware.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.machine import busy_seconds, cpu_seconds
from bench.marks import DIRECTORY, Marks
from bench.workbench import PROCESSES, THREADS, names, parser_of, spread, table
from core.settings import ROOT
from tests.servers.process import Process, server_directory
from tests.servers.rabbitmq import RabbitMq


@dataclass
class Drained:
    """Messages a second; CPU in microseconds a message; cores that anybody else used meanwhile."""

    rate: float
    workers_us: float
    server_us: float
    others: float


@dataclass
class Ground:
    """A RabbitMQ and where the actors leave their marks."""

    rabbitmq: RabbitMq
    marks: Marks
    directory: Path

    def start(self, what: str, kind: str, count: int) -> Process:
        """`kind` is `stock`, or `ours-PREFETCH`."""
        name, _, prefetch = kind.partition("-")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), DIRECTORY: str(self.marks.directory), "LOG_LEVEL": "WARNING"}
        command = [sys.executable, "-m", "bench.transport_app", what, name, self.rabbitmq.url, str(count), prefetch or "64"]
        return Process(command, log=self.directory / f"{what}.log", env=environment, cwd=ROOT)

    def drain(self, kind: str, messages: int, processes: int, threads: int) -> Drained:
        """Fill, start, watch, stop."""
        self.marks.clear()
        filling = self.start("fill", kind, messages)
        while filling.running:
            time.sleep(0.05)
        time.sleep(1)
        workers = [self.start("work", kind, threads) for _ in range(processes)]
        self._wait_for(messages // 10, workers)
        before = self._clocks(workers)
        self._wait_for(messages, workers)
        runs, seconds, busy, used, server, own = (after - first for after, first in zip(self._clocks(workers), before, strict=True))
        for worker in workers:
            worker.terminate()
        started = sorted(self.marks.started)
        first = messages // 10
        rate = (messages - 1 - first) / (started[messages - 1] - started[first])
        return Drained(rate, 1e6 * used / max(1, runs), 1e6 * server / max(1, runs), max(0.0, busy - used - server - own) / seconds)

    def _clocks(self, workers: list[Process]) -> tuple[float, ...]:
        used = cpu_seconds([worker.pid for worker in workers])
        return self.marks.read(), time.monotonic(), busy_seconds(), used, cpu_seconds(self.rabbitmq.pids()), time.process_time()

    def _wait_for(self, count: int, workers: list[Process]) -> None:
        deadline = time.monotonic() + 300
        while self.marks.read() < count:
            assert all(worker.running for worker in workers), (self.directory / "work.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)


@contextmanager
def ground() -> Iterator[Ground]:
    """Everything is gone at the end."""
    with server_directory("bench-rabbitmq") as data, server_directory("bench") as directory, RabbitMq(data) as rabbitmq:
        (directory / "marks").mkdir()
        yield Ground(rabbitmq, Marks(directory / "marks"), directory)


def main() -> None:
    parser = parser_of("The brokers alone against stock dramatiq.", messages=20_000, rounds=5, processes=PROCESSES, threads=THREADS)
    parser.add_argument("--kinds", type=names, default=["ours-16", "ours-32", "ours-64", "stock"], help="stock, ours-PREFETCH")
    chosen = parser.parse_args()
    found: dict[str, list[Drained]] = {kind: [] for kind in chosen.kinds}
    with ground() as bench:
        for number in range(1, chosen.rounds + 1):
            for kind in chosen.kinds:
                drained = bench.drain(kind, chosen.messages, chosen.processes, chosen.threads)
                found[kind].append(drained)
                print(f"  round {number}  {kind:<10}{drained.rate:10,.0f}/s  others {drained.others:.1f} cores", flush=True)
    report(found, f"Drain of {chosen.messages} messages, {chosen.processes} processes x {chosen.threads} threads, {chosen.rounds} rounds")


def report(found: dict[str, list[Drained]], title: str) -> None:
    """Medians, and how many times as fast as stock dramatiq each kind is, round by round."""
    rows = []
    for kind, drained in found.items():
        times = [mine.rate / stock.rate for mine, stock in zip(drained, found.get("stock", drained), strict=True)]
        workers, server = (statistics.median(getattr(each, name) for each in drained) for name in ("workers_us", "server_us"))
        rate = spread([each.rate for each in drained], "/s", 0)
        rows.append((kind, f"{rate:<36} x{spread(times, '', 2):<24} CPU us: {workers:.0f} workers + {server:.0f} RabbitMQ"))
    others = spread([each.others for each in [each for drained in found.values() for each in drained]], "cores")
    table(f"{title}; used by others meanwhile: {others}", rows)


if __name__ == "__main__":
    main()
