"""The proving ground: real servers, each behind a fault proxy, one installation of Mailroom on them, its fleet and its API."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

import httpx
import pika
import redis

from tests.acceptance.installation import Installation, Program, Tenant, eventually, installed
from tests.faults.audit import Attempt, Books, Run
from tests.faults.effects import EFFECTS, Execution, read_effects
from tests.servers.postgres import Postgres
from tests.servers.proxy import FaultProxy
from tests.servers.rabbitmq import RabbitMq
from tests.servers.redis import Redis

PROCESSES, THREADS = 2, 8
STOP_GRACE = 2
HEAL_SECONDS = 30.0
FLEET = [sys.executable, "-m", "tests.faults.fleet"]
_RUNS = """
    SELECT id::text, state, reason, attempt, fence, worker_id, result ->> 'token', waiting_for FROM task_runs
    WHERE id = ANY(%s::uuid[])"""
_ATTEMPTS = """
    SELECT run_id::text, fence, attempt, worker_id, state, error_type, started_at, finished_at FROM task_attempts
    WHERE run_id = ANY(%s::uuid[])"""
_RECORDED = "SELECT id::text FROM task_runs WHERE (args ->> 'number')::bigint BETWEEN %s AND %s"


class Ground:
    """Made by `proving_ground`. The servers are its own: a scenario may do to them what it likes, `heal` mends everything."""

    def __init__(self, rabbitmq: RabbitMq, redis_server: Redis, postgres: Postgres, links: Sequence[FaultProxy], mailroom: Installation):
        self.rabbitmq, self.redis, self.postgres = rabbitmq, redis_server, postgres
        *self.rabbitmq_links, self.redis_link, self.postgres_link = links  # to RabbitMQ two: the producers' and the workers'
        self.links = tuple(links)
        self._to_workers = {"RABBITMQ_URL": through(self.rabbitmq_links[1], rabbitmq.url + "%2F")}
        self.mailroom = mailroom
        self.tenants: list[Tenant] = []
        self.fleet: Program
        self.api: Program
        self._guests: list[Program] = []

    # Processes.

    def open(self) -> None:
        """Start the API and the fleet and let two tenants in."""
        (self.mailroom.directory / "data").mkdir()
        with ThreadPoolExecutor() as pool:
            self.tenants = list(pool.map(self.mailroom.new_tenant, ("acme", "globex")))
        self.api = self.mailroom.start_command([*FLEET, "api"], name="api", LOG_LEVEL="WARNING")
        self.fleet = self.start_fleet()
        eventually(self._api_answers, "the API answers", 30)

    def start_fleet(self) -> Program:
        """A supervisor and its workers; returns when they are ready to claim."""
        fleet = self.mailroom.start_command([*FLEET, "fleet", str(PROCESSES)], name="fleet", **self._to_workers)
        eventually(lambda: fleet.output().count("worker_started") >= PROCESSES, f"the workers start: {fleet.log}", 40)
        return fleet

    def start_worker(self, log: Path | None = None, changes: Mapping[str, str] = MappingProxyType({})) -> Program:
        """A worker process by itself, with an environment of its own; returns when it has said hello to the database."""
        environment = {**self.mailroom.environment, **self._to_workers, **changes}
        program = Program(
            [*FLEET, "worker"], log=log or self.mailroom.directory / f"guest-{len(self.mailroom.programs)}.log", env=environment
        )
        self.mailroom.programs.append(program)
        self._guests.append(program)
        eventually(lambda: self.mailroom.query("SELECT 1 FROM workers WHERE pid = %s", program.pid), f"worker {program.pid} starts", 40)
        return program

    @contextmanager
    def other_fleet(self) -> Iterator[Program]:
        """Another fleet in place of the usual one, of the environment as it is by now."""
        self.fleet.terminate()
        self.fleet = self.start_fleet()
        try:
            yield self.fleet
        finally:
            self.fleet.terminate()
            self.fleet = self.start_fleet()

    @contextmanager
    def frozen_workers(self) -> Iterator[None]:
        """Nobody works for a moment (shorter than a heart may pause), so that messages gather on the brokers.

        What RabbitMQ had sent to the workers already goes back into its queues: their connections end.
        """
        self.fleet.freeze()
        self.rabbitmq_links[1].cut()
        try:
            yield
        finally:
            self.fleet.thaw()

    def workers(self) -> list[int]:
        """The process ids of the fleet's workers that live now."""
        return self.fleet.children()

    def heal(self) -> None:
        """Whatever the last scenario left broken works again."""
        for server in (self.postgres, self.redis, self.rabbitmq):
            server.thaw()
            server.start()
        for link in self.links:
            link.heal()
        while self._guests:
            self._guests.pop().terminate()
        self.fleet.thaw()
        deadline = time.monotonic() + HEAL_SECONDS
        while self.fleet.running and not self._fleet_works() and time.monotonic() < deadline:
            time.sleep(0.2)
        if not self._fleet_works():
            self.fleet.kill()
            self.fleet = self.start_fleet()
        eventually(self._api_answers, "the API answers", 45)

    def _fleet_works(self) -> bool:
        """Whether the fleet is whole and every heart beats."""
        question = "SELECT count(*) FROM workers WHERE pid = ANY(%s) AND heartbeat_at > now() - interval '7 s'"
        return self.fleet.running and self.mailroom.query(question, self.workers())[0][0] >= PROCESSES

    def _api_answers(self) -> bool:
        try:
            return httpx.get(f"{self.mailroom.url}/health/ready", timeout=5).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    # What the servers hold.

    def on_rabbitmq(self, queues: Sequence[str], *, purge: bool = False, delete: bool = False) -> int:
        """Messages that wait in the queues (0 for one that does not exist), past the proxies; and away with them, or with the queues."""
        total = 0
        connection = pika.BlockingConnection(pika.URLParameters(self.rabbitmq.url + "%2F"))
        for queue in queues:
            channel = connection.channel()
            with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):
                total += channel.queue_declare(queue, passive=True).method.message_count
                if purge:
                    channel.queue_purge(queue)
                if delete:
                    channel.queue_delete(queue)
        connection.close()
        return total

    def on_redis(self) -> int:
        """Messages in all lists, dead letters not counted."""
        with redis.Redis.from_url(self.redis.url) as client:
            return sum(int(client.llen(key)) for key in client.scan_iter("mailroom:*") if b".XQ" not in key)

    def flush_redis(self) -> None:
        """FLUSHALL."""
        with redis.Redis.from_url(self.redis.url) as client:
            client.flushall()

    # What the auditor reads.

    def effects_size(self) -> int:
        """How far the effects have been written."""
        path = self._effects
        return path.stat().st_size if path.exists() else 0

    def executions(self, run_ids: Sequence[str], effects_from: int = 0) -> list[Execution]:
        """What was written of these runs, now."""
        known = set(run_ids)
        if not self._effects.exists():
            return []
        with self._effects.open() as file:
            file.seek(effects_from)
            return [execution for execution in read_effects(file) if execution.run_id in known]

    def books(self, accepted: Sequence[str], numbers: range, effects_from: int = 0) -> Books:
        """Everything about these runs, now."""
        ids = sorted(set(accepted))
        return Books(
            accepted=accepted,
            recorded=[row[0] for row in self.mailroom.query(_RECORDED, numbers.start, numbers.stop - 1)],
            runs=[Run(*row) for row in self.mailroom.query(_RUNS, ids)],
            attempts=[Attempt(*row) for row in self.mailroom.query(_ATTEMPTS, ids)],
            executions=self.executions(ids, effects_from),
            workers=frozenset(row[0] for row in self.mailroom.query("SELECT id FROM workers")),
        )

    def unfinished(self, ids: Sequence[str]) -> int:
        """How many of the runs are not at their end."""
        question = "SELECT count(*) FROM task_runs WHERE id = ANY(%s::uuid[]) AND state IN ('PENDING', 'RETRY', 'STARTED')"
        return int(self.mailroom.query(question, list(ids))[0][0])

    @property
    def _effects(self) -> Path:
        return self.mailroom.directory / "data" / EFFECTS


@contextmanager
def proving_ground(
    directory: Path, rabbitmq: RabbitMq, redis_server: Redis, postgres: Postgres, settings: Mapping[str, str]
) -> Iterator[Ground]:
    """Servers that run already, and everything else around them; all of it ends with the block."""
    with ExitStack() as stack:
        links = [stack.enter_context(FaultProxy(server.port)) for server in (rabbitmq, rabbitmq, redis_server, postgres)]
        urls = {
            "RABBITMQ_URL": through(links[0], rabbitmq.url + "%2F"),
            "REDIS_URL": through(links[2], redis_server.url),
            "DATABASE_URL": through(links[3], postgres.url.rpartition("/")[0] + "/faults"),
            "WORKER_THREADS": str(THREADS),
            "STOP_GRACE": str(STOP_GRACE),
        }
        mailroom = stack.enter_context(installed(directory, postgres, "faults", **urls, **settings))
        stack.callback(postgres.start)  # the database is dropped on the way out
        ground = Ground(rabbitmq, redis_server, postgres, links, mailroom)
        ground.open()
        yield ground


def through(link: FaultProxy, url: str) -> str:
    """The same URL by way of a proxy."""
    parts = urlsplit(url)
    login, _, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{login}@{link.host}:{link.port}".removeprefix("@")).geturl()


@contextmanager
def small_volume(directory: Path, kibibytes: int = 16) -> Iterator[Path]:
    """A log file on a volume that soon is full; where nothing may be mounted, /dev/full, which always is."""
    volume = directory / "small-volume"
    volume.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(volume)]
    is_mounted = os.geteuid() == 0 and subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode == 0
    try:
        yield volume / "log" if is_mounted else Path("/dev/full")
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(volume)], check=False)


def kill_process(pid: int) -> float:
    """SIGKILL, and the moment of it on the effects' clock."""
    os.kill(pid, signal.SIGKILL)
    return time.monotonic()
