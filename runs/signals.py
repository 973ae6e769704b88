"""Signals: functions that are told once a run's attempt has ended and the record has it: `@sync_emails.on_success`, `@on_failure`.

Told at most once: the process may die between the commit and the call. What must happen follows the run in a chain
(runs/followers.py), or is a webhook. A hook runs on a thread of its own, one after the other, as the run's tenant and user; what
it raises is logged and changes nothing, and after HOOK_SECONDS it is interrupted.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeVar

import structlog
from sqlalchemy import Engine

from core.logging import get_logger
from core.tenancy import SYSTEM_TENANT, Identity, acting_as
from runs.limits import watch
from storage.claims import attempt_state
from storage.engine import system_connection
from storage.outcomes import Outcome
from storage.states import FINAL, State

log = get_logger(__name__)
HOOK_SECONDS = 10.0
MOST_WAITING = 1000
"""Ended runs that wait for their hooks; more are not told of."""
H = TypeVar("H", bound=Callable[..., object])
Hook = Callable[..., object]


class Signal(Enum):
    """What a hook may be told of. Snoozed and handed-back attempts have not happened, and nobody is told of them."""

    ON_SUCCESS = "on_success"  # hook(run, result)
    ON_FAILURE = "on_failure"  # hook(run): for good, not before a retry
    ON_RETRY = "on_retry"  # hook(run): it failed and will run again
    AFTER_RETURN = "after_return"  # hook(run): it has ended, however


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The run that ended. `attempt` is None where it was lost with its worker; `error` is fit for people, as the record has it."""

    run_id: str
    task: str
    queue: str
    tenant_id: str
    user_id: str | None
    attempt: int | None
    state: State
    error_type: str | None = None
    error: str | None = None
    reason: str | None = None
    request_id: str | None = None


class Hooks:
    """Those of one task, or of all."""

    any_at_all = False
    """Whether any hook was ever connected in this process: where none was, an ended run costs nothing."""

    def __init__(self) -> None:
        self._connected: dict[Signal, list[Hook]] = defaultdict(list)

    def connect(self, signal: Signal, hook: H) -> H:
        """From now on."""
        Hooks.any_at_all = True
        self._connected[signal].append(hook)
        return hook

    def disconnect(self, hook: Hook) -> None:
        """No more."""
        for connected in self._connected.values():
            if hook in connected:
                connected.remove(hook)

    def of(self, signal: Signal) -> list[Hook]:
        """In the order in which they were connected."""
        return list(self._connected.get(signal, ()))


ALL_TASKS = Hooks()


def on_success(hook: H) -> H:
    """Connects `hook(run, result)` to every task."""
    return ALL_TASKS.connect(Signal.ON_SUCCESS, hook)


def on_failure(hook: H) -> H:
    """Connects `hook(run)` to every task."""
    return ALL_TASKS.connect(Signal.ON_FAILURE, hook)


def on_retry(hook: H) -> H:
    """Connects `hook(run)` to every task."""
    return ALL_TASKS.connect(Signal.ON_RETRY, hook)


def after_return(hook: H) -> H:
    """Connects `hook(run)` to every task."""
    return ALL_TASKS.connect(Signal.AFTER_RETURN, hook)


class HasSignals:
    """What a task can be asked to tell."""

    hooks: Hooks

    def on_success(self, hook: H) -> H:
        """Connects `hook(run, result)`."""
        return self.hooks.connect(Signal.ON_SUCCESS, hook)

    def on_failure(self, hook: H) -> H:
        """Connects `hook(run)`: it has failed for good."""
        return self.hooks.connect(Signal.ON_FAILURE, hook)

    def on_retry(self, hook: H) -> H:
        """Connects `hook(run)`: it failed and will run again."""
        return self.hooks.connect(Signal.ON_RETRY, hook)

    def after_return(self, hook: H) -> H:
        """Connects `hook(run)`: it has ended, however."""
        return self.hooks.connect(Signal.AFTER_RETURN, hook)


class Ended(Protocol):
    """What is known of a run that ended: a Claim, or a Publishable of one that was lost."""

    @property
    def run_id(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def queue(self) -> str: ...
    @property
    def tenant_id(self) -> str: ...
    @property
    def user_id(self) -> str | None: ...
    @property
    def request_id(self) -> str | None: ...


class Announcer:
    """Tells the hooks of a process. `hooks_of` finds a task's own by its name."""

    def __init__(self, get_engine: Callable[[], Engine], hooks_of: Callable[[str], Hooks | None]) -> None:
        self._get_engine = get_engine
        self._hooks_of = hooks_of
        self._waiting: queue.Queue[tuple[Ended, Outcome, int | None] | None] = queue.Queue(MOST_WAITING)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ended(self, run: Ended, outcome: Outcome, attempt: int | None = None) -> None:
        """The outcome is committed. Returns at once; a run that nobody wants to be told of costs next to nothing."""
        if not Hooks.any_at_all or not any(self._hooks(run.task, signal) for signal in signals_of(outcome.state)):
            return
        try:
            self._waiting.put_nowait((run, outcome, attempt))
        except queue.Full:
            log.error("signal_dropped", task_id=run.run_id, task_name=run.task)
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
                self._thread.start()

    def close(self, timeout: float = HOOK_SECONDS) -> None:
        """Waits a moment for what was not told yet."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            with contextlib.suppress(queue.Full):  # its hooks are too slow: it ends with the process
                self._waiting.put(None, timeout=timeout)
                thread.join(timeout)

    def _run(self) -> None:
        while (told := self._waiting.get()) is not None:
            try:
                self._tell(*told)
            except Exception as error:  # the database is away: nobody knows how the run stands
                log.error("signal_dropped", task_id=told[0].run_id, task_name=told[0].task, error=type(error).__name__)

    def _tell(self, run: Ended, outcome: Outcome, attempt: int | None) -> None:
        with system_connection(self._get_engine()) as connection:
            state = attempt_state(connection, outcome.run_id, outcome.fence) or outcome.state  # a revoked run ends so whatever it returned
        facts = {"error_type": outcome.error_type, "error": outcome.error, "reason": outcome.reason}
        info = RunInfo(run.run_id, run.task, run.queue, run.tenant_id, run.user_id, attempt, state, **facts, request_id=run.request_id)
        bound = {"task_id": run.run_id, "task_name": run.task, "request_id": run.request_id, "tenant_id": run.tenant_id, "queue": run.queue}
        identity = Identity(run.tenant_id, run.user_id, is_system=run.tenant_id == SYSTEM_TENANT)
        with acting_as(identity), structlog.contextvars.bound_contextvars(**bound):
            for signal in signals_of(state):
                for hook in self._hooks(run.task, signal):
                    _call(hook, (info, outcome.result) if signal is Signal.ON_SUCCESS else (info,))

    def _hooks(self, task: str, signal: Signal) -> list[Hook]:
        own = self._hooks_of(task)
        return [*(own.of(signal) if own is not None else ()), *ALL_TASKS.of(signal)]


def signals_of(state: State) -> Iterator[Signal]:
    """What the end of an attempt in that state is, `after_return` last."""
    one = {State.SUCCESS: Signal.ON_SUCCESS, State.FAILURE: Signal.ON_FAILURE, State.RETRY: Signal.ON_RETRY}.get(state)
    if one is not None:
        yield one
    if state in FINAL or state is State.RETRY:
        yield Signal.AFTER_RETURN


def _call(hook: Hook, arguments: Iterable[Any]) -> None:
    try:
        with watch.soft_limit(HOOK_SECONDS):
            hook(*arguments)
    except Exception as error:
        log.error("hook_failed", hook=getattr(hook, "__qualname__", repr(hook)), error=type(error).__name__)
