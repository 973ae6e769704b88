"""`@task` declares an actor with its queue's policy. Calling it runs it here; `enqueue` records it for a worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, ParamSpec, TypeVar, cast

import dramatiq
from sqlalchemy.orm import Session

from brokers.queues import Priority, Queue, policy_of
from core.settings import get_settings
from runs.current import blot_out, current_run
from runs.limits import watch
from runs.registry import parameters_of, secrets_of
from runs.schedule import Schedule
from runs.secrets import reveal
from runs.signals import HasSignals, Hooks

P = ParamSpec("P")
R = TypeVar("R")
MailHost = Callable[[Session, dict[str, Any]], str | None]
"""Finds the mail server that a run will talk to, from its arguments; the rows that these name are loaded in the session."""


class TaskOptions(dict[str, Any], Generic[P, R]):
    """dramatiq's options of an actor, which called give the options of one run: `sync_emails.options(unique_key=...)`."""

    def __init__(self, task: Task[P, R], options: dict[str, Any]) -> None:
        super().__init__(options)
        self._task = task

    def __call__(self, **options: Any) -> Call[P, R]:
        """The task with options for one run; see Call for what there is."""
        return Call(self._task, **options)


class Task(dramatiq.Actor[P, R], HasSignals):
    """An actor whose call is under the run's soft limit, and that carries no arguments into a log line."""

    options: TaskOptions[P, R]

    def __init__(self, fn: Callable[P, R], **options: Any) -> None:
        self.schedule = Schedule.of(options["actor_name"], options["options"])  # before the broker knows it
        self.hooks = Hooks()
        super().__init__(fn, **options)
        self.options = TaskOptions(self, self.options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the task in this thread."""
        run = current_run()
        if run is None:
            return self.fn(*args, **kwargs)
        call = self._revealing if secrets_of(self) else self.fn
        with watch.soft_limit(run.soft_limit or self.limits()[0], (run.run_id, run.fence)):
            return call(*args, **kwargs)

    def _revealing(self, *args: P.args, **kwargs: P.kwargs) -> R:
        run = current_run()
        assert run is not None
        secrets: dict[str, Any] = {**kwargs, **reveal(self, run)}
        try:
            return self.fn(*args, **secrets)
        except BaseException as error:
            blot_out(error)
            raise

    def with_arguments(self, *args: P.args, **kwargs: P.kwargs) -> Step:
        """The task and what to call it with: a step of a chain or a member of a group."""
        return Call(self).with_arguments(*args, **kwargs)

    def limits(self) -> tuple[float, float]:
        """Soft and hard limit in seconds: the settings' override, else the queue's."""
        policy, settings = policy_of(self.queue_name), get_settings()
        hard = settings.task_time_limit or policy.hard_limit
        if settings.task_soft_time_limit is not None:
            return settings.task_soft_time_limit, hard
        if settings.task_time_limit is not None:
            return hard - min(20.0, hard * 0.07), hard
        return policy.soft_limit, hard

    def mail_host(self, session: Session, arguments: dict[str, Any]) -> str | None:
        """The server whose limit a run with these checked arguments is under, beside its tenant's."""
        find: MailHost | None = self.options.get("mail_host")
        host = find(session, arguments) if find is not None else None
        return host.strip().rstrip(".").lower() or None if host else None

    @property
    def max_attempts(self) -> int:
        """The first attempt and the queue's retries, unless the task says otherwise."""
        retries = self.options.get("retries")
        return 1 + int(policy_of(self.queue_name).retries if retries is None else retries)

    @property
    def base_backoff(self) -> float:
        """Seconds before the first retry."""
        return float(self.options.get("base_backoff") or policy_of(self.queue_name).base_backoff)


@dataclass(frozen=True)
class Call(Generic[P, R]):
    """A task with options for one run.

    `tenant` and `user` are needed only where the bound context is not enough. `delay` (seconds) or `eta`: not before.
    `expires_in` (seconds): not later. `unique_key`: while a run of this tenant and task with the same key is live, that run
    is returned instead of a new one. `soft_limit` and `hard_limit` in seconds. `after` (a run's id): once that run has
    succeeded. `after_group`: once all runs of that group have ended. `group` makes the run a member of one. A `delay` counts from
    the moment when nothing else is waited for. See runs/followers.py.
    """

    task: Task[P, R]
    tenant: str | None = None
    user: str | None = None
    delay: float | None = None
    eta: datetime | None = None
    expires_in: float | None = None
    expires_at: datetime | None = None
    priority: Priority = Priority.NORMAL
    unique_key: str | None = None
    idempotency_key: str | None = None
    request_hash: str | None = None
    max_attempts: int | None = None
    soft_limit: float | None = None
    hard_limit: float | None = None
    after: str | None = None
    after_group: str | None = None
    group: str | None = None
    run_id: str = ""

    def with_arguments(self, *args: P.args, **kwargs: P.kwargs) -> Step:
        """The task, its options and what to call it with."""
        positional = zip(parameters_of(self.task), args, strict=False)
        return Step(self, {**dict(positional), **kwargs})

    @property
    def is_for_one(self) -> bool:
        """Whether it says something that can be said of a single run only, or be recorded of it only."""
        of_one = (self.unique_key, self.idempotency_key, self.delay, self.eta, self.run_id, self.expires_in, self.expires_at)
        return any(of_one) or self.after_group is not None


@dataclass(frozen=True)
class Step:
    """A run that is to be: a task, its options and its arguments, not checked yet."""

    call: Call[Any, Any]
    arguments: dict[str, Any]


def task(*, queue: Queue, **options: Any) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Declares a task on a queue. Options: `retries`, `base_backoff` (s), `mail_host` (a MailHost), `periodic` (a periodiq cron).

    A periodic one may say more, see runs/schedule.py: `timezone` (UTC), `catch_up` (once), `overlap` (allow), `jitter` (0 s). Raises
    ConfigurationError for a schedule that cannot be.
    """

    def declare(function: Callable[P, R]) -> Task[P, R]:
        declared = dramatiq.actor(actor_class=Task, queue_name=str(queue), **options)(function)
        return cast("Task[P, R]", declared)

    return declare
