"""What the core's tests stand on: settings that read no environment, two tenants, and toy tasks that remember what they did."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import dramatiq
from periodiq import cron
from pydantic import SecretStr
from pydantic_settings import PydanticBaseSettingsSource
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from brokers.message import MessageEncoder
from brokers.queues import Queue
from core.errors import PermanentError, Snooze
from core.settings import Settings, _in_force, use_settings
from core.tenancy import SYSTEM, Identity, current_identity
from runs.broker import RunBroker
from runs.current import current_run
from runs.enqueue import enqueue
from runs.limits import SoftTimeLimitExceeded
from runs.task import Call, Task, task
from storage.engine import get_engine, new_session
from storage.models import Base, TaskAttempt, TaskRun
from storage.repositories.tenants import Tenants

T = TypeVar("T")
KEY = "k1:" + "A" * 43 + "="
OTHER_KEY = "k2:" + "B" * 42 + "A="
GATE_SECONDS = 20.0


class FixedSettings(Settings):
    """Settings made of what the test gives and nothing else: neither the environment nor a developer's .env."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[Any], init_settings: PydanticBaseSettingsSource, *args: Any, **sources: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def fixed_settings(directory: Path, **values: Any) -> Settings:
    """Two keys, plain mail servers on loopback allowed, everything else as the test says."""
    given: dict[str, Any] = {
        "data_dir": directory,
        "task_signing_key": SecretStr(KEY),
        "credential_encryption_key": SecretStr(KEY),
        "allow_private_mail_hosts": True,
        "log_format": "json",
        "worker_max_tasks_per_child": 0,  # the worker is in the test's own process, which nobody replaces
        "worker_max_memory_mb": 0,
    }
    return FixedSettings(**{**given, **values})


@contextmanager
def in_force(settings: Settings) -> Iterator[Settings]:
    """These settings, and an engine made of them, for the block."""
    before = list(_in_force)
    use_settings(settings)
    get_engine.cache_clear()
    try:
        yield settings
    finally:
        get_engine().dispose()
        get_engine.cache_clear()
        _in_force[:] = before


@dataclass(frozen=True, slots=True)
class People:
    """Two tenants; acme has two users."""

    acme: Identity
    globex: Identity
    ann: Identity
    bob: Identity
    gus: Identity


def settle_in(engine: Engine) -> People:
    """Creates the tenants and their users."""
    with new_session(SYSTEM, engine) as session, session.begin():
        tenants = Tenants(session)
        acme, globex = tenants.create("acme").id, tenants.create("globex").id
        ann, bob, gus = tenants.add_user(acme, "ann").id, tenants.add_user(acme, "bob").id, tenants.add_user(globex, "gus").id
        return People(Identity(acme), Identity(globex), Identity(acme, ann), Identity(acme, bob), Identity(globex, gus))


class Toys:
    """Tasks on a broker. `ran` has one entry for each time an actor was entered, `calls` counts them by run id."""

    def __init__(self, broker: RunBroker) -> None:
        dramatiq.set_broker(broker)
        self.ran: list[Any] = []
        self.calls: Counter[str] = Counter()
        self.tidied = 0
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.encoder = MessageEncoder({"k1": b"\0" * 32})
        self._declare()

    def _enter(self, what: Any) -> int:
        run = current_run()
        run_id = run.run_id if run is not None else ""
        self.ran.append(what)
        self.calls[run_id] += 1
        return self.calls[run_id]

    def _declare(self) -> None:
        def add(x: int, y: int = 1) -> int:
            self._enter((x, y))
            return x + y

        def urgent(text: str) -> None:
            self._enter(text)

        def lazy(text: str) -> None:
            self._enter(text)

        def fail(times: int) -> str:
            if self._enter("fail") <= times:
                raise RuntimeError("not yet, says ann@acme.test")
            return "at last"

        def refuse() -> None:
            self._enter("refuse")
            raise PermanentError("It will never work.")

        def snooze(delay: float) -> str:
            if self._enter("snooze") == 1:
                raise Snooze(delay, "Somebody asked to wait.")
            return "rested"

        def hold() -> str:
            self._enter("hold")
            self.entered.release()
            assert self.gate.wait(GATE_SECONDS), "nobody opened the gate"
            return "held"

        def slow(seconds: float) -> str:
            if self._enter("slow") > 1:
                return "quick this time"
            try:
                wait_until(lambda: False, seconds, fail=False)
            except SoftTimeLimitExceeded:
                self.tidied += 1
                raise
            return "never noticed"

        def whoami() -> list[str | None]:
            self._enter("whoami")
            identity = current_identity()
            return [identity.tenant_id, identity.user_id]

        def tick() -> None:
            self._enter("tick")

        self.add: Task[..., int] = task(queue=Queue.DEFAULT)(add)
        self.urgent: Task[..., None] = task(queue=Queue.SYNC)(urgent)
        self.lazy: Task[..., None] = task(queue=Queue.LOW_PRIORITY)(lazy)
        self.fail: Task[..., str] = task(queue=Queue.DEFAULT, base_backoff=0.05)(fail)
        self.refuse: Task[..., None] = task(queue=Queue.DEFAULT)(refuse)
        self.snooze: Task[..., str] = task(queue=Queue.DEFAULT)(snooze)
        self.hold: Task[..., str] = task(queue=Queue.DEFAULT)(hold)
        self.slow: Task[..., str] = task(queue=Queue.DEFAULT, base_backoff=0.05)(slow)
        self.whoami: Task[..., list[str | None]] = task(queue=Queue.DEFAULT)(whoami)
        self.tick: Task[..., None] = task(queue=Queue.PERIODIC, periodic=cron("* * * * *"))(tick)


class Record:
    """Short ways to write to and to ask the record."""

    def __init__(self, engine: Engine, people: People) -> None:
        self.engine = engine
        self.people = people

    @contextmanager
    def session(self, identity: Identity = SYSTEM) -> Iterator[Session]:
        """A transaction for the identity."""
        with new_session(identity, self.engine) as session, session.begin():
            yield session

    def enqueue(self, what: Task[..., Any] | Call[..., Any], *, identity: Identity | None = None, **arguments: Any) -> str:
        """As acme, unless told otherwise, in a transaction of its own."""
        with self.session(identity or self.people.acme) as session:
            return enqueue(session, what, **arguments)

    def run(self, run_id: str) -> TaskRun:
        with self.session() as session:
            run = session.get(TaskRun, run_id)
            assert run is not None, "there is no such run"
            return run

    def attempts(self, run_id: str) -> list[TaskAttempt]:
        with self.session() as session:
            return list(session.scalars(select(TaskAttempt).where(TaskAttempt.run_id == run_id).order_by(TaskAttempt.fence)))

    def set_run(self, run_id: str, **columns: Any) -> None:
        """What time or somebody else would have done to the run."""
        with self.session() as session:
            run = session.get(TaskRun, run_id)
            for name, value in columns.items():
                setattr(run, name, value)

    def count(self, model: type[Base]) -> int:
        with self.session() as session:
            return session.scalar(select(func.count()).select_from(model)) or 0

    def wait_for(self, run_id: str, *states: str, timeout: float = 40.0) -> TaskRun:
        """The run once it is in one of the states; any final one by default."""
        wanted = states or ("SUCCESS", "FAILURE", "REVOKED")
        wait_until(lambda: self.run(run_id).state in wanted, timeout, lambda: f"{self.run(run_id).state} is none of {wanted}")
        return self.run(run_id)


def wait_until(
    condition: Callable[[], object], timeout: float = 30.0, why: Callable[[], str] = lambda: "it never came", *, fail: bool = True
) -> None:
    """Looks every few milliseconds; an AssertionError when the time is over."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            assert not fail, why()
            return
        time.sleep(0.01)


def together(*actions: Callable[[], T]) -> list[T]:
    """What the actions return, each called in a thread of its own at the same moment; their errors are raised."""
    barrier = threading.Barrier(len(actions))
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def act(number: int, action: Callable[[], T]) -> None:
        barrier.wait(30)
        try:
            results[number] = action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=act, args=(number, action)) for number, action in enumerate(actions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(actions))]
