"""What a worker process costs while it has nothing to do. Targets: less than 100 MiB of memory and less than 1 % of a CPU."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.workbench import options, spread, table, workbench

TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    chosen = options("Memory and idle CPU of a worker process.", seconds=30, rounds=3, processes=2)
    with workbench() as bench:
        supervisor = bench.installation.start_worker(processes=chosen.processes, threads=8, LOG_LEVEL="INFO")
        time.sleep(5)
        workers = supervisor.children()
        busy: dict[int, list[float]] = {pid: [] for pid in [*workers, supervisor.pid]}
        for _ in range(chosen.rounds):
            before = {pid: cpu_seconds(pid) for pid in busy}
            time.sleep(chosen.seconds)
            for pid, seconds in before.items():
                busy[pid].append(100 * (cpu_seconds(pid) - seconds) / chosen.seconds)
        rows = [
            ("worker, PSS", spread([mebibytes(pid, "Pss") for pid in workers], "MiB")),
            ("worker, RSS", spread([mebibytes(pid, "Rss") for pid in workers], "MiB")),
            ("worker, idle CPU", spread([each for pid in workers for each in busy[pid]], "%", 2)),
            ("supervisor, PSS", spread([mebibytes(supervisor.pid, "Pss")], "MiB")),
            ("supervisor, idle CPU", spread(busy[supervisor.pid], "%", 2)),
        ]
    table(f"{chosen.processes} worker processes of 8 threads at rest, {chosen.rounds} x {chosen.seconds} s", rows)


def mebibytes(pid: int, kind: str) -> float:
    """From smaps_rollup (proc(5)): Pss shares what processes have in common, Rss does not."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1024


def cpu_seconds(pid: int) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


if __name__ == "__main__":
    main()
