"""Runs that wait for something: many short ones at once, and a few long ones that have to be shared out well.

200 sleeps of 50 ms at a time can be 4,000 a second; 40 of 2 s on sixteen threads need three turns, 6 s, when no process holds on to
what another could start.
"""

from __future__ import annotations

import math

from bench.drain import rate
from bench.systems import System, fill, known_systems, system, wait_for_marks, warm_up, working
from bench.workbench import PROCESSES, THREADS, names, parser_of, spread, table, workbench

SHORT, LONG = 0.05, 2.0
CROWD = 100
"""Threads of each process for the short ones."""


def main() -> None:
    parser = parser_of("Runs that sleep.", runs=12_000, long_runs=40, rounds=5)
    parser.add_argument("--systems", type=names, default=["mailroom", "dramatiq"], help=f"of {', '.join(known_systems())}")
    chosen = parser.parse_args()
    short: dict[str, list[float]] = {name: [] for name in chosen.systems}
    long: dict[str, list[float]] = {name: [] for name in chosen.systems}
    with workbench() as bench:
        measured = [system(name, bench) for name in chosen.systems]
        for _ in range(chosen.rounds):
            for each in measured:
                short[each.name].append(many_short(each, chosen.runs))
                long[each.name].append(few_long(each, chosen.long_runs))
    ideal = PROCESSES * CROWD / SHORT
    rows = [
        (name, f"{spread(values, 'runs/s', 0)}; {spread([100 * each / ideal for each in values], '% of the ideal')}")
        for name, values in short.items()
    ]
    table(f"{chosen.runs} sleeps of {SHORT} s, {PROCESSES} processes x {CROWD} threads; {ideal:,.0f}/s would be ideal", rows)
    turns = math.ceil(chosen.long_runs / (PROCESSES * THREADS))
    rows = [(name, spread(values, "s", 2)) for name, values in long.items()]
    table(f"{chosen.long_runs} sleeps of {LONG} s, {PROCESSES} processes x {THREADS} threads; {turns * LONG} s would be ideal", rows)


def many_short(measured: System, runs: int) -> float:
    """Starts a second, of a backlog that waits when the workers come."""
    measured.reset()
    fill(measured, runs, "nap", str(SHORT))
    with working(measured, PROCESSES, CROWD) as workers:
        wait_for_marks(measured.bench.marks, workers, runs)
    return rate(measured.bench.marks, runs)


def few_long(measured: System, runs: int) -> float:
    """Seconds from the first start to the last end, enqueued at once for workers that idle."""
    marks = measured.bench.marks
    measured.reset()
    with working(measured) as workers:
        warm_up(measured, marks, workers, PROCESSES)
        before = marks.read()
        fill(measured, runs, "nap", str(LONG))
        wait_for_marks(marks, workers, before + runs)
    started = sorted(marks.started)[before:]
    return started[-1] + LONG - started[0]


if __name__ == "__main__":
    main()
