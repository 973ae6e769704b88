"""What the tests of chains and groups share: tasks that ask what they follow, and short ways to record and to end runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from brokers.queues import Queue
from core.clock import now
from core.tenancy import Identity
from runs.followers import Group, Member, chain, group, group_results, previous_result
from runs.task import Step, Task, task
from storage.outcomes import Outcome
from storage.states import State
from tests.conformance.conftest import World
from tests.conformance.test_losses import turn
from tests.toys import wait_until

LOST = ("REVOKED", "predecessor_failed")
DONE = ("SUCCESS", None)


class Following:
    """Tasks that ask what they follow. `seen` has an entry for each time one was entered."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

        def ask() -> list[list[Any]]:
            found = [[ended.run_id, str(ended.state), ended.result] for ended in group_results()]
            self.seen.append(found)
            return found

        def count() -> int:
            return len(group_results())

        def double() -> int:
            value = previous_result() * 2
            self.seen.append(value)
            return int(value)

        self.ask: Task[..., list[list[Any]]] = task(queue=Queue.DEFAULT)(ask)
        self.count: Task[..., int] = task(queue=Queue.DEFAULT)(count)
        self.double: Task[..., int] = task(queue=Queue.DEFAULT)(double)


def chained(world: World, *steps: Step, after: str | None = None) -> list[str]:
    with world.session(world.people.acme) as session:
        return chain(session, *steps, after=after)


def grouped(world: World, members: list[Member], then: Step, *, after: str | None = None) -> Group:
    with world.session(world.people.acme) as session:
        return group(session, members, then=then, after=after)


def act_until(act: Callable[[], None], condition: Callable[[], object]) -> None:
    """Once at least."""

    def is_reached() -> object:
        act()
        return condition()

    wait_until(is_reached, 30)


def states(world: World, run_ids: list[str]) -> list[tuple[str, str | None]]:
    return [(run.state, run.reason) for run in map(world.run, run_ids)]


def end(world: World, run_id: str, state: State = State.SUCCESS) -> None:
    """A worker runs it, commits its outcome, and dies before it tells anybody."""
    world.set_run(run_id, waiting_for="queue", publish_at=now())
    _, claimed = turn(world, "mortal", wanted={run_id: world.people.acme.tenant_id})
    assert turn(world, "mortal", outcomes=[Outcome(run_id, claimed[run_id].fence, state)])[0] == {run_id}


def assert_refused(world: World, identity: Identity, attempt: Any, error: type[Exception]) -> None:
    with pytest.raises(error), world.session(identity) as session:
        attempt(session)
