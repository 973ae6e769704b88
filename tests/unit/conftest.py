"""What the core's unit tests stand on: a database copied from one that was migrated once, and a broker in memory with toy tasks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import dramatiq
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine

from brokers.consumer import BrokerConsumer, OnDelivery
from brokers.message import MessageEncoder
from brokers.stub import StubBroker, StubConsumer
from runs.broker import Parts, RunBroker
from runs.relay import Relay
from storage.engine import get_engine, make_engine
from storage.migrations import upgrade
from tests.toys import People, Record, Toys, fixed_settings, in_force, settle_in


@pytest.fixture(scope="session")
def _migrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, People]:
    path = tmp_path_factory.mktemp("migrated") / "mailroom.db"
    engine = make_engine(f"sqlite:///{path}")
    upgrade(engine)
    people = settle_in(engine)
    engine.dispose()
    return path, people


@pytest.fixture
def record(_migrated: tuple[Path, People], tmp_path: Path) -> Iterator[Record]:
    """A fresh SQLite database with two tenants; settings in force that read no environment."""
    template, people = _migrated
    shutil.copy(template, tmp_path / "mailroom.db")
    url = SecretStr(f"sqlite:///{tmp_path / 'mailroom.db'}")
    with in_force(fixed_settings(tmp_path, database_url=url, redis_url=SecretStr("redis://127.0.0.1:1/0"))):
        yield Record(get_engine(), people)


def stub_parts(engine: Callable[[], Engine], encoder: MessageEncoder, stub: StubBroker) -> Parts:
    """What a RunBroker is made of when its broker is in memory."""

    def consumers(on_delivery: OnDelivery, room: Callable[[], int]) -> list[BrokerConsumer]:
        return [StubConsumer(stub, on_delivery)]

    return Parts(engine, lambda: encoder, lambda: stub, consumers)


class House(Record):
    """A RunBroker over a StubBroker, with toy tasks on it."""

    def __init__(self, record: Record) -> None:
        super().__init__(record.engine, record.people)
        self.stub = StubBroker()
        encoder = MessageEncoder({"k1": bytes(32)})
        self.broker = RunBroker(stub_parts(lambda: self.engine, encoder, self.stub))
        self.toys = Toys(self.broker)
        self._worker: dramatiq.Worker | None = None

    @property
    def consumer(self) -> StubConsumer:
        (found,) = self.broker.consumers
        assert isinstance(found, StubConsumer)
        return found

    def start_worker(self, *, threads: int = 2) -> dramatiq.Worker:
        self._worker = dramatiq.Worker(self.broker, worker_threads=threads, worker_timeout=20)
        self._worker.start()
        return self._worker

    def relay_turn(self) -> None:
        Relay(self.engine, self.broker.publisher, self.broker.window).turn()

    def close(self) -> None:
        self.toys.gate.set()
        if self._worker is not None:
            self._worker.stop(2000)
        self.broker.close()


@pytest.fixture
def house(record: Record) -> Iterator[House]:
    """Everything but a running worker."""
    before = dramatiq.broker.global_broker
    with ExitStack() as stack:
        made = House(record)
        stack.callback(made.close)
        yield made
    dramatiq.broker.global_broker = before
