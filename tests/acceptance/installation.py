"""An installation of Mailroom as an operator would have it: an environment, the commands, the real processes, callers with keys.

The environment names every setting that matters, so that neither the developer's `.env` nor their shell reaches a test.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg2

from core.settings import ROOT, Settings
from tests.servers.postgres import ROLE, SUPERUSER, Postgres
from tests.servers.process import Process, free_port, wait_until_gone
from tests.servers.rabbitmq import RabbitMq

START_SECONDS = 30.0
KEY = "k1:" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
STANDARD = {
    "RABBITMQ_URL": "",
    "REDIS_URL": "",
    "CREDENTIAL_ENCRYPTION_KEY": KEY,
    "TASK_SIGNING_KEY": KEY,
    "API_HOST": "127.0.0.1",
    "ALLOW_PRIVATE_MAIL_HOSTS": "true",
    "ALLOW_PRIVATE_WEBHOOK_HOSTS": "true",
    "LOG_FORMAT": "json",
    "LOG_LEVEL": "INFO",
    "WORKER_THREADS": "4",
    "WORKER_PROCESSES": "1",
    "STOP_GRACE": "10",
    "SYNC_BATCH_SIZE": "500",
}
_NAMES_OF_SETTINGS = re.compile("|".join(Settings.model_fields), re.IGNORECASE)


def clean_environment(**settings: str) -> dict[str, str]:
    """This process' environment without any setting of Mailroom or its predecessor, and with these."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not _NAMES_OF_SETTINGS.fullmatch(name) and not name.startswith(("CELERY", "REDIS_", "TASK_"))
    }
    return kept | {"PYTHONPATH": str(ROOT)} | settings


def eventually(holds: Callable[[], Any], what: str, timeout: float = 60.0) -> Any:
    """The first true answer of `holds`. Raises AssertionError naming `what` when there is none in time."""
    deadline = time.monotonic() + timeout
    while not (answer := holds()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.05)
    return answer


def tell(text: str) -> None:
    """A figure for whoever looks (pytest -s); nothing is asserted of it."""
    sys.stdout.write(f"\n{text}\n")


class Program(Process):
    """A process of the installation with its output in a file."""

    def __init__(self, command: Sequence[str | Path], *, log: Path, env: Mapping[str, str], cwd: Path = ROOT) -> None:
        super().__init__(command, log=log, env=env, cwd=cwd)
        self.log = log

    def send(self, number: signal.Signals) -> None:
        """A signal to the process alone, as a service manager or Ctrl-C sends it."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = 60.0) -> int:
        """The exit code. Raises AssertionError with its output when it does not end in time."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it still runs after {timeout} s:\n{self.output()[-3000:]}") from None

    def children(self) -> list[int]:
        """The processes below it that run now."""
        return [pid for pid in self.tree() if pid != self.pid]

    def output(self) -> str:
        """Everything it has said so far."""
        return self.log.read_text(errors="replace")

    def lines(self, message: str | None = None) -> list[dict[str, Any]]:
        """Its log lines, each a JSON object; only those with this message when one is given."""
        found = [json.loads(line) for line in self.output().splitlines() if line.strip()]
        return [line for line in found if message is None or line["message"] == message]

    def says(self, text: str, timeout: float = START_SECONDS) -> None:
        """Wait until the text stands in its output. Raises AssertionError when it ends or says nothing of it."""

        def said() -> bool:
            assert self.running or text in self.output(), f"it ended without saying {text!r}:\n{self.output()[-3000:]}"
            return text in self.output()

        eventually(said, f"{text!r} in the output:\n{self.output()[-3000:]}", timeout)


@dataclass
class Tenant:
    """A tenant with one user, and their HTTP client."""

    id: str
    key: str
    http: httpx.Client

    def enqueue(self, path: str, body: Mapping[str, Any], request_id: str | None = None) -> str:
        """POST and answer the run's id."""
        answer = self.http.post(path, json=dict(body), headers={"X-Request-Id": request_id} if request_id else {})
        assert answer.status_code == 202, answer.text
        assert answer.json()["status"] == "pending"
        return str(answer.json()["taskId"])

    def status(self, run_id: str) -> dict[str, Any]:
        """The run as HTTP shows it."""
        answer = self.http.get(f"/api/tasks/{run_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def ended(self, run_id: str, timeout: float = 60.0) -> dict[str, Any]:
        """Wait for the run's end by long polls."""

        def look() -> dict[str, Any] | None:
            answer = self.http.get(f"/api/tasks/{run_id}", params={"wait": 5})
            assert answer.status_code == 200, answer.text
            return answer.json() if answer.json()["ready"] else None

        return dict(eventually(look, f"the end of {run_id}", timeout))

    def in_state(self, run_id: str, state: str, timeout: float = 60.0) -> dict[str, Any]:
        """Wait until the run is in a state."""
        return dict(eventually(lambda: (run := self.status(run_id))["state"] == state and run, f"{run_id} {state}", timeout))

    def new_client(self, **fields: Any) -> str:
        """A mail account on loopback; its id."""
        standard = {"name": "Post", "imap_host": "127.0.0.1", "imap_security": "plain", "smtp_host": "127.0.0.1", "smtp_security": "plain"}
        given = {name: value for name, value in fields.items() if value is not None}
        servers = {name: value for name, value in standard.items() if not name.endswith(("_host", "_security")) or _port_of(name) in given}
        answer = self.http.post("/api/email/clients", json={**servers, **given})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def client(self, client_id: str) -> dict[str, Any]:
        """The account as HTTP shows it."""
        return dict(self.http.get(f"/api/email/clients/{client_id}").raise_for_status().json())


def _port_of(field: str) -> str:
    return field.partition("_")[0] + "_port"


class Installation:
    """One database, one virtual host, one data directory; processes start and stop."""

    def __init__(self, directory: Path, database_url: str, **settings: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.database_url = database_url
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.programs: list[Program] = []
        self._clients: list[httpx.Client] = []
        own = {"DATABASE_URL": database_url, "DATA_DIR": str(directory / "data"), "API_PORT": str(self.port)}
        self.environment = clean_environment(**{**STANDARD, **own, **settings})

    # Commands.

    def command(self, *arguments: str, check: bool = True, **changes: str) -> subprocess.CompletedProcess[str]:
        """One command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            cwd=ROOT,
            env={**self.environment, **changes},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    def new_tenant(self, name: str, user: str = "ann") -> Tenant:
        """A tenant, a user and a key of that user, all by the commands."""
        tenant_id = self.command("tenant", "create", name, "--user", user).stdout.strip()
        return self._with_key(tenant_id, self.command("key", "create", name, "--user", user).stdout.strip())

    def new_admin(self) -> Tenant:
        """A caller with an admin key."""
        return self._with_key("", self.command("key", "create", "--admin").stdout.strip())

    def _with_key(self, tenant_id: str, key: str) -> Tenant:
        client = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=30)
        self._clients.append(client)
        return Tenant(tenant_id, key, client)

    # Processes.

    def start(self, *words: str, **changes: str) -> Program:
        """`./manage.py WORDS` as a process that goes on."""
        return self.start_command([sys.executable, "-m", "cli.main", *words], name=words[0], **changes)

    def start_command(self, command: Sequence[str], *, name: str, **changes: str) -> Program:
        """Any other process in the environment of the installation."""
        log = self.directory / f"{name}-{len(self.programs)}.log"
        program = Program(command, log=log, env={**self.environment, **changes})
        self.programs.append(program)
        return program

    def start_api(self) -> Program:
        """The API; returns when it answers."""
        program = self.start("api")

        def answers() -> bool:
            assert program.running, program.output()
            try:
                return httpx.get(f"{self.url}/health/ready", timeout=2).status_code == 200
            except httpx.HTTPError:
                return False

        eventually(answers, "the API answers", START_SECONDS)
        return program

    def start_worker(self, processes: int = 1, threads: int = 4, **changes: str) -> Program:
        """Worker processes; returns when all are ready to claim."""
        program = self.start("worker", "-p", str(processes), "-t", str(threads), **changes)
        eventually(lambda: len(program.lines("worker_started")) == processes, f"the workers start: {program.log}", START_SECONDS)
        return program

    def logs(self) -> dict[str, str]:
        """What every process has written, by its file's name."""
        return {path.name: path.read_text(errors="replace") for path in sorted(self.directory.glob("*.log"))}

    def stop(self) -> None:
        """End every process that still runs, the last started first."""
        for client in self._clients:
            client.close()
        for program in reversed(self.programs):
            program.terminate(timeout=20)

    # The record.

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows, past row-level security: the auditor sees all tenants."""
        dsn = self.database_url.replace("+psycopg2", "").replace(f"//{ROLE}:", f"//{SUPERUSER}:")
        connection = psycopg2.connect(dsn)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, values)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()


def new_virtual_host(rabbitmq: RabbitMq, name: str) -> str:
    """A virtual host of its own, so that no other test's messages come in; its URL."""
    add = f'rabbit_vhost:add(<<"{name}">>, <<"test">>)'
    allow = f'rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"{name}">>, <<".*">>, <<".*">>, <<".*">>, <<"test">>)'
    rabbitmq.ctl("eval", f"{add}, {allow}.")
    return rabbitmq.url + name


@contextmanager
def installed(directory: Path, postgres: Postgres, name: str, **settings: str) -> Iterator[Installation]:
    """A migrated installation, its processes stopped and its database dropped at the end."""
    installation = Installation(directory / name, postgres.create_database(name), **settings)
    try:
        installation.command("db", "migrate")
        yield installation
    finally:
        installation.stop()
        postgres.drop_database(name)


def processes_that_know(text: str) -> list[int]:
    """Processes whose command line or environment contains the text: what a start with that data directory left behind."""
    wanted, found = text.encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                seen = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if wanted in seen:
                found.append(int(entry.name))
    return found


def gone(pids: Sequence[int], timeout: float = 30.0) -> bool:
    """Whether all of the processes end in time."""
    return wait_until_gone(pids, timeout) == []
