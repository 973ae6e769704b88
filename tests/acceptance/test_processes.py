"""The processes as an operator sees them: they stop when told, leave nothing behind when killed, and refuse a wrong start in a line."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx
import pytest
import redis

from tests.acceptance.conftest import Mailroom
from tests.acceptance.counting_proxy import CountingProxy
from tests.acceptance.installation import Installation, Program, eventually, gone, new_virtual_host, tell
from tests.servers.dovecot import Dovecot
from tests.servers.postgres import Postgres
from tests.servers.process import free_port, is_alive, process_tree
from tests.servers.rabbitmq import RabbitMq
from tests.servers.redis import Redis
from tests.servers.smtp import SmtpSink

pytestmark = pytest.mark.acceptance


@pytest.fixture
def spare_worker(mailroom: Mailroom) -> Program:
    """Two more worker processes for the test to end."""
    return mailroom.installation.start_worker(processes=2)


def test_sigterm_ends_the_workers_in_seconds_with_exit_code_0(spare_worker: Program, mailroom: Mailroom) -> None:
    tree = spare_worker.tree()
    assert len(tree) == 3
    began = time.monotonic()
    spare_worker.send(signal.SIGTERM)
    assert spare_worker.wait(60) == 0
    tell(f"SIGTERM to the end of all: {time.monotonic() - began:.1f} s")
    assert gone(tree, timeout=15)
    assert len(spare_worker.lines("worker_stopped")) == 2
    own = [line["worker"] for line in spare_worker.lines("worker_stopped")]
    assert mailroom.installation.query("SELECT id FROM workers WHERE id = ANY(%s)", own) == []


def test_ctrl_c_is_sigterm(mailroom: Mailroom) -> None:
    worker = mailroom.installation.start_worker()
    tree = worker.tree()
    worker.send(signal.SIGINT)
    assert worker.wait(60) == 0
    assert gone(tree, timeout=15)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_api_publishes_what_it_accepted_last_before_it_ends(mailroom: Mailroom, smtp_sink: SmtpSink, number: signal.Signals) -> None:
    """Otherwise the run would wait for the relay, which looks for lost messages after half a minute."""
    acme, installation = mailroom.acme, mailroom.installation
    client_id = acme.new_client(email="ann@acme.example", smtp_port=smtp_sink.port)
    port = free_port()
    api = installation.start("api", API_PORT=str(port))
    api.says("api_starting")
    body = {"email_client_id": client_id, "to": ["bob@globex.example"]}
    eventually(lambda: _answers(acme.http, f"http://127.0.0.1:{port}"), "the other API answers")
    run_id = acme.http.post(f"http://127.0.0.1:{port}/api/email/send", json=body).json()["taskId"]
    api.send(number)
    assert api.wait(60) == 0
    assert "Traceback" not in api.output()
    assert acme.ended(run_id, timeout=60)["state"] == "SUCCESS"


def test_a_killed_supervisor_leaves_no_orphan(spare_worker: Program) -> None:
    children = spare_worker.children()
    assert len(children) == 2
    spare_worker.send(signal.SIGKILL)
    assert gone(children, timeout=15)


def test_a_killed_worker_is_replaced_and_its_runs_are_rescued(mailroom: Mailroom, dovecot: Dovecot) -> None:
    acme, admin = mailroom.acme, mailroom.admin
    dovecot.add_user("slow", "secret")
    with CountingProxy(dovecot.imap_port) as proxy:
        client_id = acme.new_client(email="slow@acme.example", imap_port=proxy.port, imap_username="slow", imap_password="secret")
        proxy.hold()
        run_id = acme.enqueue("/api/email/sync", {"email_client_id": client_id})
        acme.in_state(run_id, "STARTED")

        def busy() -> list[int]:
            workers = admin.http.get("/api/workers").json()["items"]
            return [worker["pid"] for worker in workers if worker["busyThreads"]]

        (victim,) = eventually(busy, "a busy worker")
        (neighbour,) = set(mailroom.worker.children()) - {victim}
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        eventually(lambda: len(set(mailroom.worker.children()) - {victim, neighbour}) == 1, "the child is replaced", 5)
        assert is_alive(neighbour)
        proxy.release()
        run = acme.ended(run_id, timeout=60)
        tell(f"rescued and done after {time.monotonic() - began:.1f} s")
        assert run["state"] == "SUCCESS"
        assert [attempt["state"] for attempt in run["attempts"]] == ["RETRY", "SUCCESS"]
        assert run["attempts"][0]["error"]["type"] == "WorkerLost"
    (ended,) = mailroom.worker.lines("child_ended")
    assert ended["exit_code"] == -signal.SIGKILL


@pytest.mark.parametrize("process", ["worker", "api", "scheduler"])
def test_a_missing_key_stops_the_start_with_one_line(mailroom: Mailroom, process: str) -> None:
    done = mailroom.installation.command(process, check=False, API_PORT=str(free_port()), CREDENTIAL_ENCRYPTION_KEY="")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("manage.py: CREDENTIAL_ENCRYPTION_KEY is not set")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("process", ["worker", "scheduler", "api"])
def test_a_database_that_is_not_there_is_one_line_and_exit_code_5(mailroom: Mailroom, process: str) -> None:
    url = f"postgresql://mailroom:canary-secret@127.0.0.1:{free_port()}/mailroom"
    done = mailroom.installation.command(process, check=False, API_PORT=str(free_port()), DATABASE_URL=url)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == "manage.py: DATABASE_URL: the database cannot be reached.\n"


@pytest.mark.parametrize("arguments", [("db", "migrate"), ("tenant", "list"), ("key", "create", "acme"), ("up",)])
def test_every_command_says_in_a_line_that_the_database_is_not_there(mailroom: Mailroom, arguments: tuple[str, ...]) -> None:
    url = f"postgresql://mailroom:canary-secret@127.0.0.1:{free_port()}/mailroom"
    done = mailroom.installation.command(*arguments, check=False, API_PORT=str(free_port()), DATABASE_URL=url)
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("\n") == 1
    assert "canary" not in done.stderr


@pytest.mark.parametrize("process", ["api", "up"])
def test_a_port_in_use_is_one_line(mailroom: Mailroom, process: str) -> None:
    done = mailroom.installation.command(process, check=False)
    assert done.returncode == 1
    assert f"127.0.0.1:{mailroom.installation.port}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_empty_database_stops_the_start_with_one_line(mailroom: Mailroom, postgres: Postgres) -> None:
    url = postgres.create_database("empty")
    done = mailroom.installation.command("worker", check=False, DATABASE_URL=url)
    postgres.drop_database("empty")
    assert done.returncode == 1
    assert done.stderr == "manage.py: The database's schema is not this version's; run ./manage.py db migrate.\n"


def test_a_redis_that_evicts_is_refused(mailroom: Mailroom, redis_server: Redis) -> None:
    client = redis.Redis.from_url(redis_server.url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        done = mailroom.installation.command("worker", check=False)
    finally:
        client.config_set("maxmemory-policy", "noeviction")
        client.close()
    assert done.returncode == 1
    assert "maxmemory-policy noeviction" in done.stderr
    assert done.stderr.count("\n") == 1


def test_up_runs_everything_and_stops_everything(
    mailroom: Mailroom, tmp_path: Path, postgres: Postgres, rabbitmq: RabbitMq, smtp_sink: SmtpSink
) -> None:
    url = postgres.create_database("up")
    everything = Installation(tmp_path, url, RABBITMQ_URL=new_virtual_host(rabbitmq, "up"), WORKER_PROCESSES="2")
    try:
        program = everything.start("up")
        program.says("everything_started")
        acme = everything.new_tenant("acme")
        eventually(lambda: _answers(acme.http), "the API answers")
        client_id = acme.new_client(email="ann@acme.example", smtp_port=smtp_sink.port)
        run_id = acme.enqueue("/api/email/send", {"email_client_id": client_id, "to": ["bob@globex.example"]})
        assert acme.ended(run_id)["state"] == "SUCCESS"
        tree = process_tree(program.pid)
        assert len(tree) == 6  # this, the API, the scheduler, and what keeps two worker processes
        program.send(signal.SIGTERM)
        assert program.wait(60) == 0
        assert gone(tree, timeout=15)
    finally:
        everything.stop()
        postgres.drop_database("up")


def _answers(http: httpx.Client, url: str = "") -> bool:
    try:
        return http.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False
