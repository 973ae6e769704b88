"""How fast runs that do nothing are accepted, and drained by two processes of eight threads."""

from __future__ import annotations

import json

from bench.workbench import PROCESSES, THREADS, Workbench, options, spread, table, workbench
from tests.acceptance.installation import eventually


def main() -> None:
    chosen = options("Throughput of no-op runs.", runs=5000, rounds=3)
    with workbench() as bench:
        tenant_id = bench.installation.new_tenant("acme").id
        rates: dict[str, list[float]] = {"one by one, 8 threads": [], "100 to a transaction": [], "drain": []}
        for number in range(chosen.rounds + 1):
            one_by_one = enqueue(bench, tenant_id, chosen.runs // 5, 1, 8)
            together = enqueue(bench, tenant_id, chosen.runs, 100, 1)
            drained = drain(bench)
            if number:  # the first round warms up
                for name, rate in zip(rates, (one_by_one, together, drained), strict=True):
                    rates[name].append(rate)
        rows = [(f"enqueue, {name}" if name != "drain" else name, spread(values, "runs/s", 0)) for name, values in rates.items()]
        table(f"{chosen.runs + chosen.runs // 5} runs, {PROCESSES} processes x {THREADS} threads, RabbitMQ and PostgreSQL", rows)


def enqueue(bench: Workbench, tenant_id: str, runs: int, per_transaction: int, threads: int) -> float:
    """Runs a second until the last commit."""
    program = bench.noop("enqueue", tenant_id, str(runs), str(per_transaction), str(threads), name="enqueue")
    assert program.wait(300) == 0, program.output()
    return runs / float(json.loads(program.output().splitlines()[-1]))


def drain(bench: Workbench) -> float:
    """Runs a second from the first start to the last outcome, by the database's clock."""
    began = bench.installation.query("SELECT now()")[0][0]
    workers = bench.workers()
    waiting = "SELECT count(*) FROM task_runs WHERE state <> 'SUCCESS'"
    eventually(lambda: bench.installation.query(waiting)[0][0] == 0, "all have run", 300)
    for worker in workers:
        worker.terminate()
    statement = "SELECT count(*), extract(epoch FROM max(finished_at) - min(started_at)) FROM task_runs WHERE started_at >= %s"
    runs, seconds = bench.installation.query(statement, began)[0]
    return float(runs) / float(seconds)


if __name__ == "__main__":
    main()
