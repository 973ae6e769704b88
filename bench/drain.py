"""How fast a waiting backlog of no-op runs is drained: Mailroom and its peers in turn, the same machine, the same minutes.

A rate is taken from the starts that the tasks tell themselves, from the first tenth of the backlog to its end: the workers' boot is not in
it. Every round measures every system once; the first one is measured again at each round's end, against itself.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from bench.machine import busy_seconds
from bench.marks import Marks
from bench.systems import AGAIN, System, Workers, fill, known_systems, system, wait_for_marks, working
from bench.workbench import PROCESSES, THREADS, Workbench, names, parser_of, spread, table, workbench

SYSTEMS = "mailroom,mailroom-ahead,dramatiq,dramatiq-results,celery-threads,celery-prefork,taskiq,huey,procrastinate,bullmq"


@dataclass
class Drained:
    """One measurement. `rate` in runs a second; CPU in microseconds a run; `others`: cores that anybody else used meanwhile."""

    system: str
    round: int
    rate: float
    enqueued: float
    workers_us: float
    servers_us: dict[str, float] = field(default_factory=dict)
    others: float = 0.0


@dataclass
class Snapshot:
    """What everybody has used so far."""

    runs: int
    at: float
    busy: float
    workers: float
    servers: dict[str, float]
    own: float

    @classmethod
    def of(cls, bench: Workbench, workers: Workers) -> Snapshot:
        servers = bench.server_seconds()
        return cls(bench.marks.read(), time.monotonic(), busy_seconds(), workers.cpu_seconds(), servers, time.process_time())


def main() -> None:
    parser = parser_of("Drain rates of Mailroom and its peers.", runs=20_000, rounds=5, processes=PROCESSES, threads=THREADS)
    parser.add_argument("--systems", type=names, default=names(SYSTEMS), help=f"of {', '.join(known_systems())}")
    parser.add_argument("--json", type=Path, help="write every measurement to this file")
    chosen = parser.parse_args()
    taken: list[Drained] = []
    with workbench() as bench:
        measured = [system(name, bench) for name in [*chosen.systems, chosen.systems[0] + AGAIN]]
        for number in range(1, chosen.rounds + 1):
            for each in measured:
                drained = tried(each, number, chosen)
                taken += [drained] if drained else []
                if chosen.json:  # each time: who stops a long run keeps what was measured
                    chosen.json.write_text(json.dumps({"runs": chosen.runs, "measured": [asdict(each) for each in taken]}, indent=1))
    order = [each.name for each in measured if any(drained.system == each.name for drained in taken)]
    if order:
        size = f"{chosen.processes} processes x {chosen.threads} threads, {chosen.rounds} rounds"
        report(taken, order, f"Drain of {chosen.runs} no-op runs, {size}")


def tried(measured: System, number: int, chosen: argparse.Namespace) -> Drained | None:
    """A system that fails is told, and left out of that round."""
    try:
        drained = drain(measured, number, chosen.runs, chosen.processes, chosen.threads)
    except AssertionError as error:
        print(f"  round {number}  {measured.name:<24}{error}", flush=True)
        return None
    print(f"  round {number}  {measured.name:<24}{drained.rate:10,.0f}/s  others {drained.others:.1f} cores", flush=True)
    return drained


def drain(measured: System, number: int, runs: int, processes: int, threads: int) -> Drained:
    """Fill, start, watch, stop."""
    bench = measured.bench
    measured.reset()
    enqueued = runs / fill(measured, runs)
    with working(measured, processes, threads) as workers:
        wait_for_marks(bench.marks, workers, runs // 10)
        before = Snapshot.of(bench, workers)
        wait_for_marks(bench.marks, workers, runs)
        after = Snapshot.of(bench, workers)
    return between(before, after, Drained(measured.name, number, rate(bench.marks, runs), enqueued, 0.0))


def rate(marks: Marks, runs: int) -> float:
    """Starts a second between the tenth part and the last of so many."""
    started = sorted(marks.started)[:runs]
    first = runs // 10
    return (runs - 1 - first) / (started[-1] - started[first])


def between(before: Snapshot, after: Snapshot, drained: Drained) -> Drained:
    """What the runs between two looks have cost. A fast system's looks are close together, and the kernel counts in 10 ms."""
    runs = max(1, after.runs - before.runs)
    workers = after.workers - before.workers
    servers = {name: after.servers[name] - before.servers[name] for name in after.servers}
    others = after.busy - before.busy - workers - sum(servers.values()) - (after.own - before.own)
    drained.workers_us = 1e6 * workers / runs
    drained.servers_us = {name: 1e6 * seconds / runs for name, seconds in servers.items()}
    drained.others = max(0.0, others / (after.at - before.at))
    return drained


def report(taken: list[Drained], order: list[str], title: str) -> None:
    """Medians, and how many times as fast the first system is as each."""
    of = {name: {each.round: each for each in taken if each.system == name} for name in order}
    first = of[order[0]]
    rows = [("", f"{'runs/s':<34}{order[0] + ' is':>18} {'(by round)':>14}   enqueued/s   CPU us a run: workers + servers")]
    for name, its in of.items():
        rates = [each.rate for each in its.values()]
        times = [first[number].rate / its[number].rate for number in its if number in first]
        ratio = f"{median(each.rate for each in first.values()) / median(rates):.2f}x"
        by_round = f"{min(times):.2f}-{max(times):.2f}" if times else ""
        enqueued = f"{median(each.enqueued for each in its.values()):,.0f}"
        cpu = f"{median(each.workers_us for each in its.values()):6.0f} + {servers(list(its.values()))}"
        rows.append((name, f"{spread(rates, '', 0):<34}{ratio:>18} {by_round:>14}   {enqueued:>10}   {cpu}"))
    others = spread([each.others for each in taken], "cores")
    table(f"{title}; used by others meanwhile: {others} of {os.cpu_count()}", rows)


def servers(taken: list[Drained]) -> str:
    """Those that did anything."""
    figures = {name: median(each.servers_us[name] for each in taken) for name in taken[0].servers_us}
    return ", ".join(f"{name} {figure:.0f}" for name, figure in figures.items() if figure >= 1)


if __name__ == "__main__":
    main()
