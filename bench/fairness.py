"""How long does a quiet tenant wait beside one with a very long queue? Target: p95 at most twice what it is alone."""

from __future__ import annotations

import time
from statistics import median

from bench.backlog import fill_at_once
from bench.systems import answer_of, system, wait_for_marks, warm_up, working
from bench.workbench import PROCESSES, THREADS, Workbench, options, percentile, spread, table, workbench

BUSY_SECONDS = 10.0
"""The long queue is being worked on for so long before the quiet tenant comes."""


def main() -> None:
    chosen = options("A quiet tenant's wait.", backlog=100_000, runs=300, rate=10, milliseconds=50, rounds=3)
    alone, beside = [], []
    with workbench() as bench:
        quiet = bench.installation.new_tenant("quiet").id
        for _ in range(chosen.rounds):
            alone.append(waits(bench, quiet, chosen.runs, chosen.rate, backlog=0, nap=0.0))
            beside.append(waits(bench, quiet, chosen.runs, chosen.rate, backlog=chosen.backlog, nap=chosen.milliseconds / 1000))
    rows = []
    for name, rounds in (("alone", alone), (f"beside {chosen.backlog:,} runs of {chosen.milliseconds} ms of another", beside)):
        p50, p95, p99 = ([percentile(each, percent) for each in rounds] for percent in (50, 95, 99))
        rows.append((name, f"p50 {spread(p50, 'ms')}   p95 {spread(p95, 'ms')}   p99 {spread(p99, 'ms')}"))
    ratio = median(percentile(each, 95) for each in beside) / median(percentile(each, 95) for each in alone)
    rows.append(("ratio of p95", f"{ratio:.2f}"))
    table(f"Call to start, {chosen.rounds} x {chosen.runs} runs, {chosen.rate} a second, {PROCESSES} x {THREADS} threads", rows)


def waits(bench: Workbench, quiet: str, runs: int, rate: int, *, backlog: int, nap: float) -> list[float]:
    """Milliseconds from call to start of the quiet tenant's runs."""
    mailroom = system("mailroom", bench)
    mailroom.reset()
    if backlog:
        fill_at_once(mailroom, bench, backlog, task="nap", text=str(nap))
    with working(mailroom) as workers:
        if backlog:
            time.sleep(BUSY_SECONDS)
        else:
            warm_up(mailroom, bench.marks, workers, PROCESSES)
        began = time.time()
        answer_of(bench.noop("trickle", quiet, str(runs), str(rate), name="trickle"), bench)
        if not backlog:
            wait_for_marks(bench.marks, workers, runs)
        time.sleep(2)
        bench.marks.read()
    # The long queue's were asked for before; the first of the quiet tenant's opens what is opened late.
    pairs = sorted(zip(bench.marks.asked, bench.marks.started, strict=True))
    found = [1000 * (started - asked) for asked, started in pairs if asked >= began][1:]
    assert len(found) >= runs * 0.99, f"{len(found)} of {runs} runs of the quiet tenant have started"
    return found


if __name__ == "__main__":
    main()
