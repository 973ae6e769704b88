"""Chains and groups by name on both databases: carried out, asked for twice at once, revoked as a whole, and walls around them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy.orm import Session

from core.clock import now
from core.errors import NotFoundError
from core.ids import new_id
from core.tenancy import Identity, acting_as
from runs import releases
from runs.groups import (
    AskedMeanwhileError,
    Part,
    StartedGroup,
    get_chain,
    get_group,
    get_neighbours,
    list_members,
    revoke_group,
    start_chain,
    start_group,
)
from storage.engine import session_scope
from storage.models import TaskRun
from storage.repositories.groups import Groups
from storage.repositories.runs import RunFilter, TaskRuns
from storage.states import State
from tests.conformance.conftest import World
from tests.conformance.following import Following
from tests.conformance.test_groups import counted
from tests.conformance.wires import RedisWire, Wire
from tests.servers.redis import Redis
from tests.toys import Record, together, wait_until


@pytest.fixture
def wire(redis_server: Redis) -> Wire:
    """One is enough: what follows reaches a broker as everything does."""
    wire = RedisWire(redis_server)
    wire.clean()
    return wire


@pytest.fixture(autouse=True)
def _every_look_walks_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "WALK_SECONDS", 0.0)


def add(place: str, x: int = 1, **options: Any) -> Part:
    return Part(place, "add", {"x": x}, options)


def acting(record: Record, act: Callable[[Session], Any], who: Identity | None = None) -> Any:
    """In a transaction of the identity's, as a route has it."""
    with acting_as(who or record.people.acme), session_scope(engine=record.engine) as session:
        return act(session)


def of(act: Callable[..., Any], *given: Any) -> Callable[[Session], Any]:
    """The act with what is given behind its session."""
    return lambda session: act(session, *given)


def grouped(record: Record, members: int = 2, key: str | None = None) -> StartedGroup:
    chains = [[add(f"members.{number}", number)] for number in range(members)]
    made: StartedGroup = acting(record, partial(start_group, members=chains, then=add("then", 99), idempotency_key=key))
    return made


def test_a_chain_and_a_group_by_name_are_carried_out(running: World) -> None:
    following = Following()
    first, second = acting(running, partial(start_chain, parts=[add("steps.0", 20), Part("steps.1", "double", {})])).runs
    assert running.wait_for(second.run_id).result == 42
    members = [[add("members.0", 1)], [add("members.1.0", 2), Part("members.1.1", "double", {})], [Part("members.2", "refuse", {})]]
    made = acting(running, partial(start_group, members=members, then=Part("then", "ask", {}), after=first.run_id))
    results = running.wait_for(made.callback.run_id).result
    assert [[state, result] for _, state, result in results or ()] == [["SUCCESS", 2], ["SUCCESS", 3], ["SUCCESS", 6], ["FAILURE", None]]
    assert len([seen for seen in following.seen if isinstance(seen, list)]) == 1
    found = acting(running, partial(get_group, group_id=made.id))
    assert (found.states, found.ended, found.finished_at is not None) == ({State.SUCCESS: 3, State.FAILURE: 1}, 4, True)
    around = acting(running, lambda session: get_neighbours(session, TaskRuns(session).one(first.run_id)))
    assert {run.id for run in around.behind} >= {second.run_id, made.members[0][0].run_id, made.members[1][1].run_id}
    last = acting(running, lambda session: get_neighbours(session, TaskRuns(session).one(made.members[1][1].run_id)))
    assert [run.id for run in last.before] == [first.run_id, made.members[1][0].run_id]
    assert acting(running, lambda session: get_neighbours(session, TaskRuns(session).one(made.callback.run_id))).follows.id == made.id


def test_the_same_request_twice_at_once_records_one_group(record: Record, running: World) -> None:
    def ask() -> StartedGroup:
        try:
            return grouped(record, 20, "once")
        except AskedMeanwhileError:
            return grouped(record, 20, "once")

    made = together(*[ask] * 4)
    assert len({each.id for each in made}) == 1
    assert len({tuple(runs[0].run_id for runs in each.members) for each in made}) == 1
    assert record.count(TaskRun) == 21


def test_a_group_that_is_revoked_ends_whatever_its_members_do_and_its_callback_never_starts(running: World) -> None:
    hold = [[Part(f"members.{number}", "hold", {})] for number in range(8)]  # twice as many as there are threads
    made = acting(running, partial(start_group, members=hold, then=add("then", 99)))
    wait_until(lambda: len(running.toys.ran) == 4)
    done = acting(running, partial(revoke_group, group_id=made.id))
    assert (done.revoked, done.marked) == (5, 4)
    running.toys.gate.set()
    ended = [running.wait_for(runs[0].run_id).state for runs in made.members]
    assert ended == ["REVOKED"] * 8
    assert running.run(made.callback.run_id).state == "REVOKED"
    running.relay_turn()
    assert running.toys.ran == ["hold"] * 4


def test_a_group_of_thousands_is_started_in_few_statements_and_revoked_in_batches(record: Record, world: World) -> None:
    made = grouped(record, 2_500)
    waiting = acting(record, lambda session: [run.args["x"] for run in list_members(session, made.id, limit=200).runs])
    assert waiting == list(range(200))
    newest = acting(record, lambda session: TaskRuns(session).page(RunFilter(group_id=made.id), limit=3))
    assert [run.args["x"] for run in newest] == [2_499, 2_498, 2_497]
    assert acting(record, partial(revoke_group, group_id=made.id)).revoked == 2_501


def test_the_steps_of_many_chains_follow_each_other_each_in_its_own(record: Record, world: World) -> None:
    chains = [[add(f"members.{number}.{step}", 10 * number + step) for step in range(3)] for number in range(40)]
    chains[7][1] = add("members.7.1", 71, unique_key="alone")  # one of them is recorded by itself
    with counted(world) as statements:
        made = acting(record, partial(start_group, members=chains, then=add("then", 999)))
    assert len(statements) < 20
    rows = {run.id: run for run in _all(record)}
    for number, runs in enumerate(made.members):
        first, second, third = (rows[each.run_id] for each in runs)
        assert [run.args["x"] for run in (first, second, third)] == [10 * number, 10 * number + 1, 10 * number + 2]
        assert [run.after_run_id for run in (first, second, third)] == [None, first.id, second.id]
        assert [run.waiting_for for run in (first, second, third)] == ["queue", "run", "run"]
        assert {run.group_id for run in (first, second, third)} == {made.id}


ATTEMPTS: dict[str, Callable[[Session, str, TaskRun], object]] = {
    "get_group": lambda s, g, _: get_group(s, g),
    "get_chain": lambda s, g, _: get_chain(s, g),
    "list_members": lambda s, g, _: list_members(s, g),
    "revoke_group": lambda s, g, _: revoke_group(s, g),
    "start_chain after": lambda s, _, run: start_chain(s, [add("steps.0")], after=run.id),
    "start_group after": lambda s, _, run: start_group(s, [[add("members.0")]], then=add("then"), after=run.id),
}
LISTS: dict[str, Callable[[Session, str, TaskRun], object]] = {
    "Groups.page": lambda s, g, _: Groups(s).page(g, ()),
    "Groups.members": lambda s, g, _: Groups(s).members(g),
    "Groups.of_ids": lambda s, _, run: Groups(s).of_ids([run.id]),
    "Groups.live_callbacks": lambda s, g, _: Groups(s).live_callbacks(g),
    "Groups.before": lambda s, _, run: Groups(s).before(run, 5),
    "Groups.behind": lambda s, _, run: Groups(s).behind(run, 5),
    "TaskRuns.page": lambda s, g, _: TaskRuns(s).page(RunFilter(group_id=g)),
}


def test_walls_stand_around_chains_and_groups(record: Record, world: World) -> None:
    people = record.people
    chains = [[add("members.0.0"), add("members.0.1"), add("members.0.2")]]
    made: StartedGroup = acting(record, partial(start_group, members=chains, then=add("then")), people.ann)
    middle = record.run(made.members[0][1].run_id)
    for name, look in LISTS.items():
        assert acting(record, of(look, made.id, middle), people.ann), name
        for stranger in (people.globex, people.gus, people.bob):
            assert not acting(record, of(look, made.id, middle), stranger), (name, stranger)
    before = [(run.id, run.state, run.ending) for run in _all(record)]
    for name, attempt in ATTEMPTS.items():
        for stranger in (people.globex, people.gus, people.bob):
            told = []
            for group_id, run in ((made.id, middle), (new_id(), TaskRun(id=new_id()))):
                with pytest.raises(NotFoundError) as refused:
                    acting(record, of(attempt, group_id, run), stranger)
                told.append(str(refused.value))
            assert told[0] == told[1], name
    assert [(run.id, run.state, run.ending) for run in _all(record)] == before
    assert acting(record, partial(get_chain, chain_id=made.id), people.acme)[1].id == middle.id


def test_a_key_of_another_tenant_is_another_key(record: Record, world: World) -> None:
    mine = grouped(record, 1, "k")
    chains = [[add("members.0", 0)]]
    other = acting(record, partial(start_group, members=chains, then=add("then", 99), idempotency_key="k"), record.people.globex)
    assert other.id != mine.id


def test_what_is_left_of_a_group_is_told(record: Record, world: World) -> None:
    made = grouped(record, 2)
    with record.session() as session:
        session.delete(session.get_one(TaskRun, made.members[0][0].run_id))
        session.delete(session.get_one(TaskRun, made.members[1][0].run_id))
    assert acting(record, partial(get_group, group_id=made.id)).members == 0
    callback = record.run(made.callback.run_id)
    record.set_run(callback.id, group_id=new_id(), finished_at=now())
    around = acting(record, lambda session: get_neighbours(session, record.run(callback.id)))
    assert around.follows.callback.id == callback.id
    record.set_run(callback.id, after_group_id=None)
    with pytest.raises(NotFoundError):
        acting(record, partial(get_group, group_id=made.id))


def _all(record: Record) -> list[TaskRun]:
    with record.session() as session:
        return list(session.query(TaskRun).order_by(TaskRun.id))
