"""A thousand runs while something is killed: every accepted run succeeds, none is executed to its end twice, and nobody lends a hand."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.acceptance.installation import Installation, Program, eventually, installed, new_virtual_host, tell
from tests.faults.audit import Audit, audit
from tests.servers.postgres import Postgres
from tests.servers.rabbitmq import RabbitMq
from tests.servers.redis import Redis

pytestmark = pytest.mark.faults

RUNS = 1000
PRODUCE_SECONDS = 3.0
SETTLE_SECONDS = 75.0
PROCESSES, THREADS = 2, 8


ACCEPTED = re.compile(r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$", re.MULTILINE)


@dataclass
class Factory:
    """A fleet of workers over both brokers, and producers that feed it."""

    installation: Installation
    fleet: Program
    tenants: list[str]

    def produce(self, runs: int = RUNS, seconds: float = PRODUCE_SECONDS) -> Program:
        """A service that enqueues; returns when it has begun."""
        words = [sys.executable, "-m", "tests.faults.fleet", "produce", str(runs), str(seconds), *self.tenants]
        producer = self.installation.start_command(words, name="producer", LOG_LEVEL="ERROR")
        eventually(lambda: len(accepted_by(producer)) >= runs // 5, "a fifth is accepted")
        return producer

    def settled(self, producer: Program) -> Audit:
        """The audit once nothing waits any more."""
        began = time.monotonic()
        assert producer.wait(60) == 0, producer.output()
        accepted = accepted_by(producer)
        eventually(lambda: audit(self.installation, accepted).waiting == 0, "every run has ended", SETTLE_SECONDS)
        found = audit(self.installation, accepted)
        found.must_balance()
        tell(f"{len(accepted)} runs, the last ended {time.monotonic() - began:.1f} s after the producer was waited for")
        return found


def accepted_by(producer: Program) -> list[str]:
    return ACCEPTED.findall(producer.output())


@pytest.fixture(scope="module")
def servers_stay(rabbitmq: RabbitMq, redis_server: Redis) -> Iterator[None]:
    """Whatever a test left them in, the next one finds them running."""
    yield
    rabbitmq.start()
    redis_server.start()


@pytest.fixture(scope="module")
def factory(
    tmp_path_factory: pytest.TempPathFactory, rabbitmq: RabbitMq, redis_server: Redis, postgres: Postgres, servers_stay: None
) -> Iterator[Factory]:
    urls = {"RABBITMQ_URL": new_virtual_host(rabbitmq, "faults"), "REDIS_URL": redis_server.url.removesuffix("/0") + "/8"}
    with installed(tmp_path_factory.mktemp("faults"), postgres, "faults", **urls, WORKER_THREADS=str(THREADS)) as installation:
        (installation.directory / "data").mkdir()
        tenants = [installation.command("tenant", "create", name).stdout.strip() for name in ("acme", "globex")]
        fleet = installation.start_command([sys.executable, "-m", "tests.faults.fleet", "fleet", str(PROCESSES)], name="fleet")
        eventually(lambda: len(fleet.lines("worker_started")) == PROCESSES, "the workers start", 30)
        yield Factory(installation, fleet, tenants)


def everything_succeeds_once(factory: Factory, fault: Callable[[], None]) -> None:
    producer = factory.produce()
    fault()
    found = factory.settled(producer)
    assert found.states == {"SUCCESS": RUNS}
    assert found.executed_twice == []


def test_nothing_fails(factory: Factory) -> None:
    everything_succeeds_once(factory, lambda: None)


def test_rabbitmq_restarts(factory: Factory, rabbitmq: RabbitMq) -> None:
    everything_succeeds_once(factory, rabbitmq.restart)


def test_rabbitmq_is_killed_and_comes_back(factory: Factory, rabbitmq: RabbitMq) -> None:
    def kill() -> None:
        rabbitmq.kill()
        rabbitmq.start()

    everything_succeeds_once(factory, kill)


def test_every_connection_is_closed_five_times(factory: Factory, rabbitmq: RabbitMq) -> None:
    def close() -> None:
        for _ in range(5):
            rabbitmq.close_all_connections()

    everything_succeeds_once(factory, close)


def test_both_brokers_are_down_while_enqueueing_goes_on(factory: Factory, rabbitmq: RabbitMq, redis_server: Redis) -> None:
    def down() -> None:
        rabbitmq.kill()
        redis_server.kill()
        time.sleep(5)
        redis_server.start()
        rabbitmq.start()

    everything_succeeds_once(factory, down)


def test_a_worker_is_killed(factory: Factory) -> None:
    """What it was executing at that moment may have been done and not recorded: those runs, and no others, are executed again."""
    producer = factory.produce()
    victim = factory.fleet.children()[0]
    os.kill(victim, signal.SIGKILL)
    found = factory.settled(producer)
    assert found.states == {"SUCCESS": RUNS}
    lost = "SELECT run_id::text FROM task_attempts WHERE error_type = 'WorkerLost' AND worker_id LIKE %s"
    suspects = {row[0] for row in factory.installation.query(lost, f"%-{victim}-%")}
    tell(f"{len(suspects)} runs were lost with the worker, {len(found.executed_twice)} of them had been executed")
    assert set(found.executed_twice) <= suspects
    assert len(suspects) <= THREADS
    assert len(factory.fleet.children()) == PROCESSES
