"""From acceptance to start, on an idle system: enqueued in a process of ours, and over HTTP. Target: half of them within 20 ms."""

from __future__ import annotations

import json
import time

import httpx

from bench.workbench import Workbench, options, percentile, spread, table, workbench
from tests.acceptance.installation import eventually

PAUSE = 0.02
Told = list[tuple[str, float, float]]


def main() -> None:
    chosen = options("Latency from acceptance to start.", runs=300, rounds=3)
    with workbench() as bench:
        bench.workers()
        tenant = bench.installation.new_tenant("acme")
        bench.noop("api", name="api")
        eventually(lambda: is_up(bench.installation.url), "the API answers", 30)
        in_process: list[Told] = []
        over_http: list[Told] = []
        for _ in range(chosen.rounds + 1):
            program = bench.noop("trickle", tenant.id, str(chosen.runs), str(PAUSE), name="trickle")
            assert program.wait(120) == 0, program.output()
            in_process.append([(run_id, asked, accepted) for run_id, asked, accepted in json.loads(program.output().splitlines()[-1])])
            over_http.append(trickle(tenant.http, chosen.runs))
        for kind, rounds in (("enqueue() in a process", in_process[1:]), ("POST /api/tasks", over_http[1:])):
            report(bench, kind, rounds)


def trickle(http: httpx.Client, runs: int) -> Told:
    """One POST at a time over one connection."""
    told = []
    for _ in range(runs):
        asked = time.time()
        run_id = http.post("/api/tasks", json={"task": "noop"}).raise_for_status().json()["taskId"]
        told.append((run_id, asked, time.time()))
        time.sleep(PAUSE)
    return told


def report(bench: Workbench, kind: str, rounds: list[Told]) -> None:
    """Medians of the rounds' percentiles, in milliseconds."""
    started = starts(bench, [run_id for told in rounds for run_id, _, _ in told])
    from_acceptance = [[1000 * (started[run_id] - accepted) for run_id, _, accepted in told] for told in rounds]
    from_call = [[1000 * (started[run_id] - asked) for run_id, asked, _ in told] for told in rounds]
    accepting = [[1000 * (accepted - asked) for _, asked, accepted in told] for told in rounds]
    rows = []
    for name, figures in (("accept to start", from_acceptance), ("call to start", from_call), ("the call itself", accepting)):
        rows += [(f"{name}, p{percent}", spread([percentile(each, percent) for each in figures], "ms")) for percent in (50, 99)]
    table(f"{kind}: {len(rounds)} x {len(rounds[0])} runs, idle, RabbitMQ and PostgreSQL", rows)


def starts(bench: Workbench, run_ids: list[str]) -> dict[str, float]:
    """When each actor was entered, as it said itself."""
    statement = "SELECT id::text, result FROM task_runs WHERE state = 'SUCCESS' AND id = ANY(%s::uuid[])"
    eventually(lambda: len(bench.installation.query(statement, run_ids)) == len(run_ids), "all have run", 60)
    return {run_id: float(result) for run_id, result in bench.installation.query(statement, run_ids)}


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    main()
