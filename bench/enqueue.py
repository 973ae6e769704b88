"""How fast runs are accepted: many in one call, and one at a time from many threads; and how long a lonely call takes.

Mailroom's "many" counts until the last message is confirmed by RabbitMQ, not only committed. No workers run.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from bench.systems import AGAIN, System, known_systems, system
from bench.workbench import names, parser_of, percentile, spread, table, workbench

SYSTEMS = "mailroom,dramatiq-confirm,celery-threads,procrastinate,bullmq"
LONELY = 500


def main() -> None:
    parser = parser_of("Enqueue rates of Mailroom and its peers.", runs=20_000, singles=5_000, threads=32, rounds=5)
    parser.add_argument("--systems", type=names, default=names(SYSTEMS), help=f"of {', '.join(known_systems())} (taskiq has no threads)")
    parser.add_argument("--json", type=Path, help="write every measurement to this file")
    chosen = parser.parse_args()
    with workbench() as bench:
        measured = [system(name, bench) for name in [*chosen.systems, chosen.systems[0] + AGAIN]]
        taken = [enqueue(each, chosen.runs, chosen.singles, chosen.threads) for _ in range(chosen.rounds) for each in measured]
    if chosen.json:
        chosen.json.write_text(json.dumps(taken, indent=1))
    report(taken, "many", f"{chosen.runs} runs, as many in a call as the system takes up to 1,000 (runs/s)")
    report(taken, "singles", f"{chosen.singles} runs one by one from {chosen.threads} threads of one process (runs/s)")
    for figure, title in (
        ("p50", "p50 of the lonely call (ms)"),
        ("p99", "p99 of the lonely call (ms)"),
        ("p50_crowded", "p50 of 32 threads' calls (ms)"),
    ):
        report(taken, figure, title, digits=2)


def enqueue(measured: System, runs: int, singles: int, threads: int) -> dict[str, Any]:
    """Each figure once, from nothing."""
    measured.reset()
    many = measured.produce("fill", "noop", "hello world 0123456789", str(runs))
    measured.reset()
    crowd = measured.produce("singles", str(singles), str(threads))
    measured.reset()
    lonely = measured.produce("singles", str(LONELY), "1")
    return {
        "system": measured.name,
        "many": runs / many["seconds"],
        "committed": runs / many.get("committed", many["seconds"]),
        "singles": singles / crowd["seconds"],
        "p50_crowded": 1000 * percentile(crowd["calls"], 50),
        "p50": 1000 * percentile(lonely["calls"], 50),
        "p99": 1000 * percentile(lonely["calls"], 99),
    }


def report(taken: list[dict[str, Any]], figure: str, title: str, digits: int = 0) -> None:
    """Medians, and the first system's beside each."""
    of: dict[str, list[float]] = {}
    for each in taken:
        of.setdefault(each["system"], []).append(each[figure])
    first = median(next(iter(of.values())))
    table(title, [(name, f"{spread(values, '', digits):<34} {first / median(values):6.2f}x") for name, values in of.items()])


if __name__ == "__main__":
    main()
