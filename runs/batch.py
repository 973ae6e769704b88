"""Many runs by name in one transaction: the good ones are recorded together, each bad one gets its error.

Runs that start at once and have no key are recorded by a few statements for each task and options, whatever their number; the
others one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy.orm import Session

from core.errors import MailroomError
from runs.control import call_of
from runs.enqueue import enqueue_many, record
from runs.registry import check_arguments, get_task, resources_in
from runs.task import Call, Task
from storage.repositories.resources import Resources
from storage.repositories.runs import TaskRuns
from storage.states import State


@dataclass(frozen=True, slots=True)
class Item:
    """One call, as `enqueue_by_name` takes it."""

    task: str
    arguments: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What became of a good item."""

    run_id: str
    queue: str
    state: State


Outcome = Enqueued | MailroomError


def enqueue_batch(session: Session, items: Sequence[Item]) -> list[Outcome]:
    """One outcome for each item, in their order. Raises nothing for a bad item; what the database raises ends the whole batch."""
    outcomes: dict[int, Outcome] = {}
    together: dict[bytes, list[int]] = {}
    calls: dict[bytes, Call[Any, Any]] = {}
    resources = KnownResources(session)
    for place, item in enumerate(items):
        try:
            call = call_of(_task(item.task), item.arguments, item.options, item.idempotency_key)
            if call.unique_key or call.idempotency_key or call.delay or call.eta:
                outcomes[place] = _one(session, call, item.arguments)
                continue
            resources.check(call.task, item.arguments)
        except MailroomError as error:
            outcomes[place] = error
            continue
        key = orjson.dumps([item.task, {name: str(value) for name, value in item.options.items()}], option=orjson.OPT_SORT_KEYS)
        calls.setdefault(key, call)
        together.setdefault(key, []).append(place)
    for key, places in together.items():
        outcomes |= zip(places, _several(session, calls[key], [items[place].arguments for place in places]), strict=True)
    return [outcomes[place] for place in range(len(items))]


def _task(name: str) -> Task[Any, Any]:
    task = get_task(name)
    assert isinstance(task, Task)
    return task


def _one(session: Session, call: Call[Any, Any], arguments: dict[str, Any]) -> Enqueued:
    run_id, is_new = record(session, call, arguments)
    state = State.PENDING if is_new else State(TaskRuns(session).one(run_id).state)
    return Enqueued(run_id, call.task.queue_name, state)


def _several(session: Session, call: Call[Any, Any], arguments: list[dict[str, Any]]) -> Sequence[Outcome]:
    try:
        ids = enqueue_many(session, call, arguments)
    except MailroomError as error:  # of the task and not of an argument: those are checked
        return [error] * len(arguments)
    return [Enqueued(run_id, call.task.queue_name, State.PENDING) for run_id in ids]


class KnownResources:
    """Looks up each id that arguments name once."""

    def __init__(self, session: Session) -> None:
        self._resources = Resources(session)
        self._good: set[tuple[str, str, str]] = set()

    def check(self, task: Task[Any, Any], arguments: dict[str, Any]) -> None:
        """Raises InvalidInputError or NotFoundError."""
        for resource in resources_in(task, check_arguments(task, arguments)):
            if resource not in self._good:
                self._resources.require(*resource)
                self._good.add(resource)
