"""Groups: a callback that starts once, when all members have ended, however; alone, as part of chains, and ten thousand at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, event, update

from core.clock import now
from core.errors import ConflictError
from core.tenancy import acting_as
from runs import releases
from runs.followers import chain, group
from runs.relay import Relay
from runs.task import Call
from storage import followers
from storage.engine import relay_connection
from storage.models import TaskRun
from storage.outcomes import Outcome
from storage.repositories.runs import TaskRuns
from storage.states import State
from tests.conformance.conftest import World
from tests.conformance.following import Following, chained, end, grouped
from tests.conformance.test_losses import turn
from tests.conformance.wires import RedisWire, Wire
from tests.servers.redis import Redis
from tests.toys import together

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def wire(redis_server: Redis) -> Wire:
    """One is enough: what follows reaches a broker as everything does."""
    wire = RedisWire(redis_server)
    wire.clean()
    return wire


@pytest.fixture(autouse=True)
def _every_look_walks_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "WALK_SECONDS", 0.0)


@pytest.fixture
def following(world: World) -> Following:
    return Following()


# Groups.


def test_the_callback_runs_once_when_all_members_have_ended_however(running: World, following: Following) -> None:
    toys = running.toys
    often = [Call(toys.fail, max_attempts=2).with_arguments(times=number % 3) for number in range(10)]  # every third fails twice
    members = [*often, *[toys.add.with_arguments(x=number) for number in range(38)], *[toys.refuse.with_arguments() for _ in range(2)]]
    made = grouped(running, list(members), following.ask.with_arguments())
    callback = running.wait_for(made.callback_id)
    ended = [running.run(run_id) for run_id in made.run_ids]
    failed = ["FAILURE" if number % 3 == 2 else "SUCCESS" for number in range(10)]
    assert [run.state for run in ended] == [*failed, *["SUCCESS"] * 38, *["FAILURE"] * 2]
    assert following.seen == [[[run.id, run.state, run.result] for run in ended]]  # once, and in the order given
    assert callback.started_at is not None
    assert callback.started_at >= max(run.finished_at or now() for run in ended)
    assert (callback.fence, callback.result) == (1, following.seen[0])


def test_the_example_of_the_guide_runs(running: World) -> None:
    guide = (ROOT / "docs" / "chains-and-groups.md").read_text()
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "sum_of_squares" in block]
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(example, namespace)
    with acting_as(running.people.ann):
        run_id = namespace["sum_of_squares"]([1, 2, 3])
    assert running.wait_for(run_id).result == 14


def test_a_member_that_is_replayed_after_the_callback_started_changes_nothing(running: World, following: Following) -> None:
    made = grouped(running, [Call(running.toys.fail, max_attempts=1).with_arguments(times=1)], following.ask.with_arguments())
    running.wait_for(made.callback_id)
    with running.session(running.people.acme) as session:
        TaskRuns(session).replay(made.run_ids[0])
    assert running.wait_for(made.run_ids[0]).state == "SUCCESS"
    running.relay_turn()
    assert (running.run(made.callback_id).fence, len(following.seen)) == (1, 1)


def test_an_empty_group_releases_its_callback_at_once(running: World, following: Following) -> None:
    made = grouped(running, [], following.ask.with_arguments())
    assert running.wait_for(made.callback_id).result == []
    assert made.run_ids == []


def test_two_members_that_end_at_once_release_the_callback_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[int] = []
    release = followers.release_callbacks

    def noted(*given: Any) -> int:
        released.append(release(*given))
        return released[-1]

    monkeypatch.setattr(followers, "release_callbacks", noted)
    for _ in range(15):
        made = grouped(world, [world.toys.add.with_arguments(x=number) for number in range(2)], world.toys.add.with_arguments(x=9))
        for run_id in made.run_ids:
            world.set_run(run_id, waiting_for="queue", publish_at=now())
        _, claimed = turn(world, "w", wanted=dict.fromkeys(made.run_ids, world.people.acme.tenant_id))
        ends = [partial(turn, world, "w", outcomes=[Outcome(claim.run_id, claim.fence, State.SUCCESS)]) for claim in claimed.values()]
        relays = [Relay(world.engine, world.broker.publisher, world.broker.window) for _ in range(2)]
        for relay in relays:
            relay.releases.ended(claimed.values(), [])
        together(*ends, *[relay.attend for relay in relays])
        for relay in relays:
            relay.close()
        world.relay_turn()  # if both had looked too early
        assert world.run(made.callback_id).waiting_for == "queue"
        assert sum(released) == 1
        released.clear()
        with world.session() as session:
            session.execute(delete(TaskRun))


def test_ten_thousand_members_take_a_few_statements(world: World, following: Following) -> None:
    with counted(world) as statements, world.session(world.people.acme) as session:
        made = group(session, [world.toys.add.with_arguments(x=number) for number in range(10_000)], then=following.count.with_arguments())
    assert len(statements) < 20
    assert made.run_ids == sorted(made.run_ids)
    with world.session() as session:
        assert [session.get_one(TaskRun, made.run_ids[number]).args["x"] for number in (0, 5_000, 9_999)] == [0, 5_000, 9_999]
        ended = {"state": "SUCCESS", "waiting_for": None, "publish_at": None}
        session.execute(update(TaskRun).where(TaskRun.group_id == made.id, TaskRun.id != made.run_ids[7]).values(**ended))
    world.relay_turn()
    with relay_connection(world.engine) as connection:
        assert followers.release_callbacks(connection, [made.id]) == 0  # whoever tells of it
    assert world.run(made.callback_id).waiting_for == "run"
    end(world, made.run_ids[7])
    world.start_worker()
    assert world.wait_for(made.callback_id).result == 10_000


@contextmanager
def counted(world: World) -> Iterator[list[str]]:
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    event.listen(world.engine, "before_cursor_execute", note)
    yield statements
    event.remove(world.engine, "before_cursor_execute", note)


def test_a_member_may_be_a_chain_and_a_group_may_follow_and_be_followed(running: World, following: Following) -> None:
    toys = running.toys
    first, second = chained(running, toys.add.with_arguments(x=1), toys.add.with_arguments(x=2))
    lost = [toys.refuse.with_arguments(), toys.add.with_arguments(x=5)]
    made = grouped(running, [toys.add.with_arguments(x=3), lost], following.ask.with_arguments(), after=second)
    (last,) = chained(running, toys.add.with_arguments(x=6), after=made.callback_id)
    assert running.wait_for(last).state == "SUCCESS"
    assert [state for _, state, _ in following.seen[0]] == ["SUCCESS", "FAILURE", "REVOKED"]
    assert toys.ran[:2] == [(1, 1), (2, 1)]
    assert toys.ran[-1] == (6, 1)
    assert (running.run(made.run_ids[0]).started_at or now()) >= (running.run(second).finished_at or now())
    assert running.run(first).state == "SUCCESS"


def test_members_that_can_never_start_still_release_the_callback(world: World, following: Following) -> None:
    (first,) = chained(world, world.toys.refuse.with_arguments())
    made = grouped(world, [world.toys.add.with_arguments(x=number) for number in range(3)], following.ask.with_arguments(), after=first)
    assert {world.run(run_id).waiting_for for run_id in made.run_ids} == {"run"}
    world.start_worker()
    world.wait_for(made.callback_id)
    assert [state for _, state, _ in following.seen[0]] == ["REVOKED"] * 3


def test_a_member_whose_unique_key_is_held_is_refused_with_the_whole_group(world: World) -> None:
    keyed = world.toys.add.options(unique_key="k").with_arguments(x=1)
    with world.session(world.people.acme) as session:
        chain(session, keyed)
    with pytest.raises(ConflictError):
        grouped(world, [world.toys.add.with_arguments(x=2), keyed], world.toys.add.with_arguments(x=3))
    assert world.count(TaskRun) == 1
