"""From the call to the start of the work, on an idle system: enqueued in a process of ours, over HTTP, and by the peers. Targets: 3 ms
for half of them and 10 ms for 99 of 100; the call itself 1 ms."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import httpx

from bench.systems import System, known_systems, system, wait_for_marks, warm_up, working
from bench.workbench import PROCESSES, Workbench, names, parser_of, percentile, spread, table, workbench
from tests.acceptance.installation import eventually

SYSTEMS = "mailroom,dramatiq,procrastinate"


@dataclass
class Timed:
    """Milliseconds, a list for each round."""

    to_start: list[list[float]] = field(default_factory=list)
    calls: list[list[float]] = field(default_factory=list)


def main() -> None:
    parser = parser_of("Latency from call to start.", runs=250, rate=50, rounds=5)
    parser.add_argument("--systems", type=names, default=names(SYSTEMS), help=f"of {', '.join(known_systems())}")
    chosen = parser.parse_args()
    with workbench() as bench:
        measured = [system(name, bench) for name in chosen.systems]
        timed = {name: Timed() for name in [*chosen.systems, "mailroom, POST /api/tasks"]}
        for _ in range(chosen.rounds):
            for each in measured:
                in_process(each, timed[each.name], chosen.runs, chosen.rate)
            over_http(bench, timed["mailroom, POST /api/tasks"], chosen.runs, chosen.rate)
    rows = []
    for name, figures in timed.items():
        for what, rounds in (("call to start", figures.to_start), ("the call itself", figures.calls)):
            p50, p99 = ([percentile(each, percent) for each in rounds] for percent in (50, 99))
            rows.append((f"{name}: {what}", f"p50 {spread(p50, 'ms', 2):<28} p99 {spread(p99, 'ms', 2)}"))
    table(f"{chosen.rounds} x {chosen.runs} runs, {chosen.rate} a second, {PROCESSES} idle processes of 8 threads", rows)


def in_process(measured: System, timed: Timed, runs: int, rate: int) -> None:
    """One round of a system by its own call."""
    marks = measured.bench.marks
    measured.reset()
    with working(measured) as workers:
        warm_up(measured, marks, workers, PROCESSES)
        began, before = time.time(), marks.read()
        calls = measured.produce("trickle", str(runs), str(rate))["calls"]
        wait_for_marks(marks, workers, before + runs + 1)
    timed.calls.append([1000 * seconds for seconds in calls])
    timed.to_start.append(to_start(measured.bench, began)[-runs:])


def over_http(bench: Workbench, timed: Timed, runs: int, rate: int) -> None:
    """One round of one client over one connection."""
    mailroom = system("mailroom", bench)
    mailroom.reset()
    client = bench.http
    api = bench.noop("api", name="api")
    try:
        eventually(lambda: is_up(bench.installation.url), "the API answers", 30)
        with working(mailroom) as workers:
            warm_up(mailroom, bench.marks, workers, PROCESSES)
            began, before = time.time(), bench.marks.read()
            timed.calls.append(trickle(client, runs, rate)[1:])
            wait_for_marks(bench.marks, workers, before + runs + 1)
        timed.to_start.append(to_start(bench, began)[-runs:])
    finally:
        api.terminate()


def trickle(client: httpx.Client, runs: int, rate: int) -> list[float]:
    """Milliseconds of each POST; the first one opens the connection."""
    began = time.perf_counter()
    calls = []
    for number in range(runs + 1):
        time.sleep(max(0.0, began + number / rate - time.perf_counter()))
        asked = time.time()
        arguments = {"tenant": "tenant-0042", "text": "hello world 0123456789", "asked": repr(asked)}
        client.post("/api/tasks", json={"task": "noop", "args": arguments}).raise_for_status()
        calls.append(1000 * (time.time() - asked))
    return calls


def to_start(bench: Workbench, since: float) -> list[float]:
    """Milliseconds of every run asked for since then, in the order of asking."""
    pairs = sorted(zip(bench.marks.asked, bench.marks.started, strict=True))
    return [1000 * (started - asked) for asked, started in pairs if asked >= since]


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    main()
