"""Clean-ups on a large record: how long they take, their longest statement, and what an enqueue beside them notices."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import sqlalchemy
from pydantic import SecretStr
from sqlalchemy import event, text

from bench.workbench import options, percentile, table
from brokers.message import MessageEncoder
from brokers.queues import Queue
from brokers.stub import StubBroker
from core.tenancy import SYSTEM, acting_as
from runs.broker import RunBroker
from runs.enqueue import enqueue
from runs.task import task
from storage.engine import get_engine, session_scope, system_connection
from storage.migrations import upgrade
from tests.servers.postgres import Postgres
from tests.servers.process import server_directory
from tests.toys import fixed_settings, in_force, settle_in

FILL = """
    INSERT INTO task_runs (id, tenant_id, task, queue, priority, args, state, attempt, max_attempts, fence, is_suspect, result,
                           created_at, started_at, finished_at, duration_ms)
    SELECT (lpad(to_hex((extract(epoch FROM ended) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8'
            || substr(md5(n::text), 4, 15))::uuid, CAST(:tenant AS uuid), 'sync_emails', 'sync', 1, '{"email_client_id": "x"}', 'SUCCESS',
           1, 6, 1, false, CASE WHEN ended > now() - interval '30 days' THEN '{"status": "success", "messages_synced": 17}'::jsonb END,
           ended, ended, ended, 100
    FROM (SELECT n, now() - interval '2 hours' - n * (interval '60 days' / :rows) AS ended FROM generate_series(1, :rows) n) old"""
ATTEMPTS = """
    INSERT INTO task_attempts (run_id, fence, tenant_id, attempt, state, started_at, finished_at, duration_ms)
    SELECT id, 1, tenant_id, 1, 'SUCCESS', started_at, finished_at, 100 FROM task_runs"""


def main() -> None:
    chosen = options("Clean-ups beside a busy enqueue.", rows=1_000_000, seconds=15)
    with ExitStack() as stack:
        postgres = Postgres(stack.enter_context(server_directory("bench-cleanup")), fsync=True)
        stack.enter_context(postgres)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = postgres.create_database("cleanup")
        stack.enter_context(in_force(fixed_settings(directory, database_url=SecretStr(url), redis_url=SecretStr("redis://127.0.0.1:1/0"))))
        tenant = prepared(chosen.rows)
        alone = beside(url, tenant, chosen.seconds)
        statements, seconds, result, busy = cleaned(url, tenant)
        again = time.monotonic()
        cleanup()
        again = time.monotonic() - again
        told(chosen.rows, alone, busy, statements, seconds, result, again)


def prepared(rows: int) -> str:
    engine = get_engine()
    upgrade(engine)
    tenant = settle_in(engine).acme.tenant_id
    for statement in (FILL, ATTEMPTS):
        with system_connection(engine) as connection:
            connection.connection.driver_connection.is_patient = True  # type: ignore[union-attr]
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text(statement), {"rows": rows, "tenant": tenant} if statement is FILL else {})
            connection.connection.driver_connection.is_patient = False  # type: ignore[union-attr]
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.connection.driver_connection.is_patient = True  # type: ignore[union-attr]
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))
        connection.invalidate()
    return tenant


def cleanup() -> dict[str, Any]:
    from actors.cleanup import cleanup_stale_results

    with acting_as(SYSTEM):
        return dict(cleanup_stale_results.fn())


def cleaned(url: str, tenant: str) -> tuple[list[tuple[float, str]], float, dict[str, Any], list[float]]:
    statements: list[tuple[float, str]] = []

    @event.listens_for(get_engine(), "before_cursor_execute")
    def before(connection: sqlalchemy.Connection, *_: Any) -> None:
        connection.info["began"] = time.monotonic()

    @event.listens_for(get_engine(), "after_cursor_execute")
    def after(connection: sqlalchemy.Connection, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append((time.monotonic() - connection.info["began"], " ".join(statement.split())[:60]))

    noticed: list[float] = []
    program = subprocess.Popen(
        [sys.executable, "-m", "bench.cleanup", "beside", url, tenant, "3600"], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    time.sleep(3)
    began = time.monotonic()
    result = cleanup()
    while result["has_more"]:
        more = cleanup()
        result = {name: result[name] + more[name] if isinstance(more[name], int) else more[name] for name in more} | {
            "has_more": more["has_more"]
        }
    seconds = time.monotonic() - began
    out, _ = program.communicate("stop\n")
    noticed = json.loads(out)
    return statements, seconds, result, noticed


def beside(url: str, tenant: str, seconds: int) -> list[float]:
    program = subprocess.run(
        [sys.executable, "-m", "bench.cleanup", "beside", url, tenant, str(seconds)], stdout=subprocess.PIPE, text=True, check=True
    )
    return [float(each) for each in json.loads(program.stdout)]


def enqueueing(url: str, tenant: str, seconds: float) -> None:
    """In a process of its own: one enqueue after the other, 200 a second at most, until told to stop or the time is over."""
    stop = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.readline()
        stop.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    with in_force(fixed_settings(Path(tempfile.gettempdir()), database_url=SecretStr(url), redis_url=SecretStr("redis://127.0.0.1:1/0"))):
        from tests.unit.conftest import stub_parts

        broker = RunBroker(stub_parts(get_engine, MessageEncoder({"k1": bytes(32)}), StubBroker()))
        import dramatiq

        dramatiq.set_broker(broker)

        def nothing(text: str) -> None:
            """Nothing."""

        declared = task(queue=Queue.DEFAULT)(nothing)
        took: list[float] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until and not (stop.is_set() and took and seconds > 600):
            began = time.monotonic()
            with session_scope(system=True) as session:
                enqueue(session, declared.options(tenant=tenant), text="x")
            took.append(time.monotonic() - began)
            time.sleep(0.005)
        print(json.dumps(took))
        broker.close()


def told(
    rows: int,
    alone: list[float],
    busy: list[float],
    statements: list[tuple[float, str]],
    seconds: float,
    result: dict[str, Any],
    again: float,
) -> None:
    def times(values: list[float]) -> str:
        return ", ".join(f"p{each} {percentile(values, each) * 1000:.1f} ms" for each in (50, 99)) + f", most {max(values) * 1000:.0f} ms"

    longest = max(statements)
    changed = result["cleared_count"] + result["deleted_count"]
    table(
        f"{rows:,} ended runs, a month of them past the history, PostgreSQL with fsync",
        [
            ("results cleared, runs deleted", f"{result['cleared_count']:,}, {result['deleted_count']:,}"),
            ("all of it", f"{seconds:.1f} s, {changed / seconds:,.0f} rows/s with its rests"),
            ("longest statement", f"{longest[0] * 1000:.0f} ms ({longest[1]})"),
            ("statements, p99", f"{percentile([each for each, _ in statements], 99) * 1000:.0f} ms"),
            ("an enqueue alone", times(alone)),
            ("an enqueue beside it", times(busy)),
            ("with nothing left to do", f"{again * 1000:.0f} ms"),
        ],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["beside"]:
        enqueueing(sys.argv[2], sys.argv[3], float(sys.argv[4]))
    else:
        main()
