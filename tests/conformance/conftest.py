"""One suite over every broker and every database: a fresh database and an empty broker for each test, and one worker in this process."""

from __future__ import annotations

import contextlib
import itertools
import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dramatiq
import psycopg2
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine

import brokers.redis
from brokers.queues import Queue
from core.tenancy import SYSTEM, Identity
from runs.assembly import make_broker
from runs.relay import Housekeeper, Relay
from storage.engine import get_engine, make_engine, new_session
from storage.migrations import upgrade
from storage.models import TaskRun
from tests.conformance.wires import RabbitWire, RedisWire, Wire
from tests.servers.postgres import PASSWORD, SUPERUSER, Postgres
from tests.toys import People, Record, Toys, fixed_settings, in_force, settle_in, wait_until

HERE = Path(__file__).parent
TEMPLATE = "mailroom_template"
DatabaseMaker = Callable[[], str]
_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.conformance)


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "mailroom.db"
    engine = make_engine(f"sqlite:///{path}")
    upgrade(engine)
    settle_in(engine)
    with engine.connect() as connection:
        connection.connection.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]
    engine.dispose()
    return path


class Copies:
    """Databases made from the template ahead of the tests that use them: making one takes half a second of the server's time."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._ready: queue.Queue[str | Exception] = queue.Queue(maxsize=2)
        self._used: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._is_over = False
        self._thread = threading.Thread(target=self._make, daemon=True)
        self._thread.start()

    def take(self) -> str:
        """The URL of a fresh one."""
        made = self._ready.get(timeout=60)
        if isinstance(made, Exception):
            raise made
        return self._postgres.url.removesuffix("/mailroom") + f"/{made}"

    def give_back(self, url: str) -> None:
        """It is dropped some time later."""
        self._used.put(url.rpartition("/")[2])

    def close(self) -> None:
        """Ends the thread."""
        self._is_over = True
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._ready.get(timeout=0.1)

    def _make(self) -> None:
        while not self._is_over:
            try:
                while not self._used.empty():
                    self._postgres.drop_database(self._used.get())
                name = f"copy{next(_numbers)}"
                as_superuser(self._postgres, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} OWNER mailroom")
                self._ready.put(name)
            except Exception as error:
                self._ready.put(error)


@pytest.fixture(scope="session")
def _copies(postgres: Postgres) -> Iterator[Copies]:
    engine = make_engine(postgres.create_database(TEMPLATE))
    upgrade(engine)
    settle_in(engine)
    engine.dispose()
    copies = Copies(postgres)
    yield copies
    copies.close()


def as_superuser(postgres: Postgres, statement: str) -> None:
    """One statement outside a transaction."""
    connection = psycopg2.connect(host="127.0.0.1", port=postgres.port, user=SUPERUSER, password=PASSWORD, dbname="postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


@pytest.fixture(params=["postgres", "sqlite"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without a table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = f"empty{next(_numbers)}"
    yield server.create_database(name)
    server.drop_database(name)


@pytest.fixture(params=["postgres", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh database with the schema, two tenants and their users: a copy of one that was migrated once."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("_sqlite_template"), tmp_path / "mailroom.db")
        yield f"sqlite:///{tmp_path / 'mailroom.db'}"
        return
    copies: Copies = request.getfixturevalue("_copies")
    url = copies.take()
    yield url
    copies.give_back(url)


def people_of(engine: Engine) -> People:
    """The tenants and users that the template was made with."""
    with new_session(SYSTEM, engine) as session:
        rows = session.connection().exec_driver_sql("SELECT t.name, u.name, t.id, u.id FROM users u JOIN tenants t ON t.id = u.tenant_id")
        ids = {(tenant, user): (str(tenant_id), str(user_id)) for tenant, user, tenant_id, user_id in rows}
    ann, bob, gus = (Identity(*ids[key]) for key in (("acme", "ann"), ("acme", "bob"), ("globex", "gus")))
    return People(Identity(ann.tenant_id), Identity(gus.tenant_id), ann, bob, gus)


@pytest.fixture
def record(database: str, tmp_path: Path) -> Iterator[Record]:
    """The database alone, settings in force."""
    with in_force(fixed_settings(tmp_path, database_url=SecretStr(database))):
        yield Record(get_engine(), people_of(get_engine()))


@pytest.fixture(params=["rabbitmq", "redis", "valkey"])
def wire(request: pytest.FixtureRequest) -> Wire:
    """An empty broker."""
    name = {"redis": "redis_server"}.get(request.param, request.param)
    server = request.getfixturevalue(name)
    found: Wire = RabbitWire(server) if request.param == "rabbitmq" else RedisWire(server)
    found.clean()
    return found


class World(Record):
    """A broker with toy tasks over a database and a wire, and at most one worker."""

    def __init__(self, engine: Engine, people: People, wire: Wire, settings: Any) -> None:
        super().__init__(engine, people)
        self.wire = wire
        self._settings = settings
        self._worker: dramatiq.Worker | None = None
        self._relay: Housekeeper | None = None
        self._relays = threading.local()
        self.broker = make_broker(settings)
        self.toys = Toys(self.broker)

    def start_worker(self, *, threads: int = 4, queues: set[str] | None = None, relay: bool = True) -> None:
        """A worker on this broker, and a relay that looks twenty times as often as the worker's own."""
        self._worker = dramatiq.Worker(self.broker, worker_threads=threads, worker_timeout=50, queues=queues)
        self._worker.start()
        if relay:
            self.start_relay()

    def start_relay(self) -> None:
        if self._relay is not None:
            return
        self._relay = Housekeeper((self.relay_turn, 0.05))
        self._relay.start()

    def relay_turn(self) -> None:
        relay = getattr(self._relays, "relay", None)  # one for each thread: it keeps a connection open
        if relay is None or self._relays.broker is not self.broker:
            relay = self._relays.relay = Relay(self.engine, self.broker.publisher, self.broker.window)
            self._relays.broker = self.broker
        relay.turn()

    def stop_worker(self, *, grace_ms: int = 5000) -> None:
        """As SIGTERM does."""
        if self._relay is not None:
            self._relay.stop()
        if self._worker is not None:
            self._worker.stop(grace_ms)
            self.broker.close()
        self._worker = self._relay = None

    def restart(self) -> None:
        """Another process: a fresh broker and fresh toys over the same database and wire."""
        self.stop_worker()
        self.broker.close()
        ran, calls = self.toys.ran, self.toys.calls
        self.broker = make_broker(self._settings)
        self.toys = Toys(self.broker)
        self.toys.ran, self.toys.calls = ran, calls

    def publish_all(self) -> None:
        """Returns when everything that was enqueued is on the broker."""
        assert self.broker.publisher.flush()

    def drained(self, queue: str = Queue.DEFAULT) -> None:
        """Returns when the broker holds nothing more for the queue and nothing is started."""
        wait_until(lambda: self.wire.depth(queue) == 0 and not self._started())

    def _started(self) -> bool:
        with self.session() as session:
            return session.query(TaskRun).filter(TaskRun.state == "STARTED").first() is not None

    def close(self) -> None:
        self.toys.gate.set()
        self.stop_worker()
        self.broker.close()


@pytest.fixture
def world(database: str, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Everything but a running worker."""
    monkeypatch.setattr(brokers.redis, "POLL_SECONDS", 0.1)  # a worker stops that much sooner
    before = dramatiq.broker.global_broker
    settings = fixed_settings(tmp_path, database_url=SecretStr(database), **wire.settings)
    with ExitStack() as stack:
        stack.enter_context(in_force(settings))
        made = World(get_engine(), people_of(get_engine()), wire, settings)
        stack.callback(made.close)
        yield made
    dramatiq.broker.global_broker = before


@pytest.fixture
def running(world: World) -> World:
    """With a worker of four threads."""
    world.start_worker()
    return world
