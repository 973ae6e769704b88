"""What worker processes cost while they have nothing to do, with eight queues: memory, CPU, connections to RabbitMQ.

Targets for two processes: 110 MiB, 0.5 % of a core, and 2 connections of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bench.machine import connections, cpu_seconds, mebibytes
from bench.systems import System, known_systems, system, warm_up, working
from bench.workbench import PROCESSES, THREADS, Workbench, names, parser_of, spread, table, workbench
from brokers.queues import Queue

SETTLE_SECONDS = 5


def main() -> None:
    parser = parser_of("Memory, idle CPU and connections of worker processes.", seconds=30, rounds=3)
    systems = ["mailroom", "dramatiq", "celery-threads", "celery-prefork"]
    parser.add_argument("--systems", type=names, default=systems, help=f"of {', '.join(known_systems())}")
    chosen = parser.parse_args()
    rows: list[tuple[str, str]] = []
    with workbench() as bench:
        for name in chosen.systems:
            rows += [(f"{name}, {what}", figure) for what, figure in at_rest(system(name, bench), chosen.seconds, chosen.rounds)]
        rows += [(f"mailroom's supervisor, {what}", figure) for what, figure in supervisor(bench, chosen.seconds, chosen.rounds)]
    table(f"{PROCESSES} processes x {THREADS} threads, {len(Queue)} queues, at rest; {chosen.rounds} x {chosen.seconds} s", rows)


def at_rest(measured: System, seconds: int, rounds: int) -> list[tuple[str, str]]:
    """Of all processes together, after each has worked a little."""
    measured.reset()
    with working(measured, queues=len(Queue)) as workers:
        warm_up(measured, measured.bench.marks, workers, PROCESSES)
        return figures(workers.pids, seconds, rounds, measured.bench.rabbitmq.port)


def supervisor(bench: Workbench, seconds: int, rounds: int) -> list[tuple[str, str]]:
    """The process that `./manage.py worker` adds."""
    started = bench.installation.start_worker(processes=PROCESSES, threads=THREADS, LOG_LEVEL="INFO")
    return figures(lambda: [started.pid], seconds, rounds, bench.rabbitmq.port)


def figures(pids: Callable[[], Sequence[int]], seconds: int, rounds: int, port: int) -> list[tuple[str, str]]:
    """What the kernel says of the processes while they idle."""
    time.sleep(SETTLE_SECONDS)
    idle = []
    for _ in range(rounds):
        before = cpu_seconds(pids())
        time.sleep(seconds)
        idle.append(100 * (cpu_seconds(pids()) - before) / seconds)
    each = [f"{mebibytes(pid, 'Pss'):.0f}" for pid in pids()]
    return [
        ("PSS", f"{sum(mebibytes(pid, 'Pss') for pid in pids()):.1f} MiB ({' + '.join(each)})"),
        ("RSS", f"{sum(mebibytes(pid, 'Rss') for pid in pids()):.1f} MiB"),
        ("idle CPU", spread(idle, "% of a core", 2)),
        ("connections to RabbitMQ", " + ".join(str(connections(pid, port)) for pid in pids())),
    ]


if __name__ == "__main__":
    main()
