"""Sending mails of 8 KB: the outbox (read, mark before the final dot, send, record) against smtplib over one reused connection."""

from __future__ import annotations

import json
import statistics
import sys
import time

from bench.workbench import Workbench, options, spread, table, workbench
from tests.acceptance.installation import Tenant
from tests.servers.process import free_port


def main() -> None:
    chosen = options("Sending mails.", mails=1000, rounds=3, threads=8)  # as a worker process has
    mails = chosen.mails
    naive, accepted, carried, worked = [], [], [], []
    with workbench(WORKER_THREADS=str(chosen.threads)) as bench:
        bench.installation.start_api()
        acme, port = bench.installation.new_tenant("acme"), free_port()
        bench.installation.start_command([sys.executable, "-m", "bench.send_app", "sink", str(port)], name="sink").says("ready")
        client = acme.new_client(email="ann@acme.example", smtp_port=port)
        for number in range(chosen.rounds):  # they take turns, so that the machine's moods meet all
            naive.append(part(bench, "naive", port, mails))
            accepted.append(part(bench, "accept", acme.id, client, mails, "alone"))
            carried.append(part(bench, "carry", acme.id, chosen.threads))
            part(bench, "accept", acme.id, client, mails, "runs")
            worked.append(drained(bench, acme, chosen.threads, mails * (2 * number + 2)))
    rows = [
        ("smtplib, one connection, each mail built", rates(naive, mails)),
        ("accepted into the outbox, one transaction each", rates(accepted, mails)),
        ("carried: read, mark, send, record", rates(carried, mails)),
        ("by a worker process, with claims and outcomes of the runs", spread([mails / seconds for seconds in worked], "mails/s", 0)),
        ("carried / smtplib", f"{median_of(naive, 'seconds') / median_of(carried, 'seconds'):.2f}"),
        ("worker / smtplib", f"{median_of(naive, 'seconds') / statistics.median(worked):.2f}"),
        ("CPU of carrying / of smtplib", f"{median_of(carried, 'cpu') / median_of(naive, 'cpu'):.2f}"),
    ]
    table(f"{mails} mails of 8 KB, {chosen.threads} threads, PostgreSQL with fsync, RabbitMQ, a sink in Python", rows)


def part(bench: Workbench, *words: object) -> dict[str, float]:
    """What a part of bench.send_app took, in a process of its own: `seconds` of the clock and of its `cpu`."""
    program = bench.installation.start_command([sys.executable, "-m", "bench.send_app", *map(str, words)], name=str(words[0]))
    assert program.wait(600) == 0, program.output()
    return dict(json.loads(program.output().strip().splitlines()[-1]))


def rates(parts: list[dict[str, float]], mails: int) -> str:
    """Mails a second, and the CPU of one."""
    cpu = median_of(parts, "cpu") / mails * 1000
    return f"{spread([mails / each['seconds'] for each in parts], 'mails/s', 0)}, {cpu:.2f} ms of CPU each"


def median_of(parts: list[dict[str, float]], name: str) -> float:
    """Over the rounds."""
    return statistics.median(each[name] for each in parts)


def drained(bench: Workbench, acme: Tenant, threads: int, expected: int) -> float:
    """Seconds between the first and the last of the mails that one worker process sends, by their rows."""
    query = "SELECT count(*) FROM outbound_emails WHERE status = 'sent' AND tenant_id = %s"
    times = """SELECT extract(epoch FROM max(e.sent_at) - min(r.started_at)) FROM outbound_emails e
        JOIN task_runs r ON r.id = e.run_id WHERE e.sent_at >= %s"""
    began = time.monotonic()
    before = bench.installation.query("SELECT clock_timestamp()")[0][0]
    worker = bench.installation.start_worker(processes=1, threads=threads, LOG_LEVEL="INFO")
    while bench.installation.query(query, acme.id)[0][0] < expected:
        time.sleep(0.2)
        assert worker.running
        assert time.monotonic() - began < 300
    seconds = bench.installation.query(times, before)[0][0]
    worker.terminate()
    return float(seconds)


if __name__ == "__main__":
    main()
