"""Chains and all that follows: it starts once, after what it follows and never instead of it, whoever dies in between."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete
from sqlalchemy.orm import Session

from core.clock import now
from core.errors import ConflictError, InvalidInputError, NotFoundError, TenantError
from core.tenancy import SYSTEM
from runs import releases
from runs.enqueue import enqueue, enqueue_many
from runs.followers import chain, group
from runs.relay import Relay
from runs.task import Call, Step
from storage import followers
from storage.engine import new_session, relay_connection
from storage.models import TaskRun
from storage.repositories.runs import TaskRuns
from storage.states import State
from tests.conformance.conftest import World
from tests.conformance.following import DONE, LOST, Following, act_until, assert_refused, chained, end, grouped, states
from tests.conformance.wires import RedisWire, Wire
from tests.servers.redis import Redis
from tests.toys import together, wait_until


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


# Chains.


def test_each_step_starts_when_the_one_before_it_has_succeeded_and_reads_its_result(running: World, following: Following) -> None:
    steps = chained(running, running.toys.add.with_arguments(1, y=2), following.double.with_arguments(), following.double.with_arguments())
    first, second, third = map(running.wait_for, steps)
    assert [run.result for run in (first, second, third)] == [3, 6, 12]
    assert (first.finished_at or now()) <= (second.started_at or now()) <= (second.finished_at or now()) <= (third.started_at or now())
    assert len({run.request_id for run in (first, second, third)}) == 1
    assert following.seen == [6, 12]


def test_a_step_that_fails_on_its_way_is_waited_for(running: World) -> None:
    steps = chained(running, running.toys.fail.with_arguments(times=1), running.toys.add.with_arguments(x=1))
    assert running.wait_for(steps[1]).state == "SUCCESS"
    assert running.run(steps[0]).attempt == 2
    assert running.toys.ran == ["fail", "fail", (1, 1)]


def test_what_follows_a_failure_is_revoked_to_the_end_and_its_replay_brings_it_back(running: World) -> None:
    toys = running.toys
    once = Call(toys.fail, max_attempts=1)
    steps = chained(
        running, toys.add.with_arguments(x=1), once.with_arguments(times=1), *[toys.add.with_arguments(x=number) for number in (3, 4)]
    )
    wait_until(lambda: states(running, steps) == [DONE, ("FAILURE", "attempts_exhausted"), LOST, LOST])
    assert toys.ran == [(1, 1), "fail"]
    with pytest.raises(ConflictError, match="FAILURE; replay that one"), running.session(running.people.acme) as session:
        TaskRuns(session).replay(steps[2])
    with running.session(running.people.acme) as session:
        TaskRuns(session).replay(steps[1])
    assert running.wait_for(steps[3]).state == "SUCCESS"
    assert states(running, steps) == [DONE] * 4
    assert toys.ran == [(1, 1), "fail", "fail", (3, 1), (4, 1)]


def test_a_step_revoked_by_a_person_takes_the_rest_with_it_and_comes_back_alone(running: World) -> None:
    toys = running.toys
    steps = chained(running, toys.hold.with_arguments(), *[toys.add.with_arguments(x=number) for number in (2, 3)])
    running.wait_for(steps[0], "STARTED")
    with running.session(running.people.acme) as session:
        TaskRuns(session).revoke(steps[1])
    wait_until(lambda: states(running, steps)[1:] == [("REVOKED", "revoked"), LOST])
    with running.session(running.people.acme) as session:
        assert TaskRuns(session).replay(steps[1]).waiting_for == "run"  # the first still runs
    assert [running.run(run_id).waiting_for for run_id in steps[1:]] == ["run", "run"]
    assert toys.ran == ["hold"]
    toys.gate.set()
    assert running.wait_for(steps[2]).state == "SUCCESS"
    assert toys.ran == ["hold", (2, 1), (3, 1)]


def test_a_replay_does_not_bring_back_what_a_person_revoked(world: World) -> None:
    steps = chained(world, *[world.toys.add.with_arguments(x=number) for number in range(3)])
    with world.session(world.people.acme) as session:
        TaskRuns(session).revoke(steps[1])
    end(world, steps[0], State.FAILURE)
    world.relay_turn()
    with world.session(world.people.acme) as session:
        TaskRuns(session).replay(steps[0])
    assert states(world, steps) == [("PENDING", None), ("REVOKED", "revoked"), LOST]


def test_a_follower_comes_back_only_if_nobody_holds_its_unique_key(world: World) -> None:
    steps = chained(world, world.toys.add.with_arguments(x=0), world.toys.add.options(unique_key="k").with_arguments(x=1))
    end(world, steps[0], State.FAILURE)
    world.relay_turn()
    world.enqueue(world.toys.add.options(unique_key="k"), x=2)
    with world.session(world.people.acme) as session:
        TaskRuns(session).replay(steps[0])
    assert states(world, steps) == [("PENDING", None), LOST]


def test_a_follower_that_comes_back_keeps_its_time(world: World) -> None:
    eta = now() + timedelta(hours=1)
    steps = chained(world, world.toys.add.with_arguments(x=0), world.toys.add.options(eta=eta).with_arguments(x=1))
    end(world, steps[0], State.FAILURE)
    world.relay_turn()
    assert states(world, steps)[1] == LOST
    with world.session(world.people.acme) as session:
        TaskRuns(session).replay(steps[0])
    end(world, steps[0])
    world.relay_turn()
    assert (world.run(steps[1]).waiting_for, world.run(steps[1]).eta) == ("eta", eta)


def test_a_relay_on_its_way_down_a_chain_and_a_replay_at_its_top_leave_nobody_behind(world: World) -> None:
    for _ in range(15):
        steps = chained(world, *[world.toys.add.with_arguments(x=number) for number in range(4)])
        end(world, steps[0], State.FAILURE)

        def replay(run_id: str = steps[0]) -> None:
            with world.session() as session:
                TaskRuns(session).replay(run_id)

        together(world.relay_turn, replay, world.relay_turn)
        assert states(world, steps) == [("PENDING", None)] * 4
        with world.session() as session:
            session.execute(delete(TaskRun))


def test_a_delay_counts_from_the_release_and_an_eta_is_kept(running: World) -> None:
    toys, eta = running.toys, now() + timedelta(hours=1)
    first, delayed = chained(running, toys.hold.with_arguments(), toys.add.options(delay=0.5).with_arguments(x=1))
    (late,) = chained(running, toys.add.options(eta=eta).with_arguments(x=2), after=first)
    running.wait_for(first, "STARTED")
    wait_until(lambda: now() > running.run(first).created_at + timedelta(seconds=0.6))
    toys.gate.set()
    before, run = running.wait_for(first), running.wait_for(delayed)
    assert before.finished_at is not None
    assert run.started_at is not None
    assert run.started_at >= before.finished_at + timedelta(seconds=0.49)
    wait_until(lambda: running.run(late).waiting_for == "eta")
    assert running.run(late).eta == eta
    assert toys.ran == ["hold", (1, 1)]


def test_a_follower_that_expires_while_it_waits_is_revoked_and_so_is_the_rest(running: World) -> None:
    toys = running.toys
    steps = chained(running, toys.hold.with_arguments(), toys.add.options(expires_in=0.2).with_arguments(x=1), toys.add.with_arguments(x=2))
    wait_until(lambda: states(running, steps)[1:] == [("REVOKED", "expired"), LOST])
    toys.gate.set()
    running.wait_for(steps[0])
    assert toys.ran == ["hold"]


def test_a_chain_that_is_asked_for_twice_is_one_chain(world: World) -> None:
    toys = world.toys
    steps = [toys.add.options(unique_key=key).with_arguments(x=1) for key in ("a", "b")]
    assert chained(world, *steps) == chained(world, *steps)
    assert world.count(TaskRun) == 2
    with pytest.raises(ConflictError):  # a run that does not follow this step cannot stand for one that does
        chained(world, toys.add.with_arguments(x=2), steps[1])
    assert world.count(TaskRun) == 2


def test_a_run_that_follows_one_that_has_long_ended_starts(running: World, following: Following) -> None:
    first = running.enqueue(running.toys.add, x=20)
    running.wait_for(first)
    later = running.enqueue(following.double.options(after=first))
    assert running.wait_for(later).result == 42


def test_a_follower_of_a_run_that_is_gone_is_revoked(world: World) -> None:
    steps = chained(world, *[world.toys.add.with_arguments(x=number) for number in range(3)])
    with world.session() as session:
        session.execute(delete(TaskRun).where(TaskRun.id == steps[0]))
    act_until(world.relay_turn, lambda: states(world, steps[1:]) == [LOST, LOST])


# Whoever dies, and whatever is lost.


def test_a_worker_that_dies_right_after_its_commit_leaves_nobody_waiting(world: World) -> None:
    toys = world.toys
    steps = chained(world, *[toys.add.with_arguments(x=number) for number in range(2)])
    made = grouped(world, [toys.add.with_arguments(x=3)], toys.add.with_arguments(x=4))
    end(world, steps[0])
    end(world, made.run_ids[0], State.FAILURE)
    assert {world.run(run_id).waiting_for for run_id in (steps[1], made.callback_id)} == {"run"}
    world.start_worker()
    assert [world.wait_for(run_id).state for run_id in (steps[1], made.callback_id)] == ["SUCCESS", "SUCCESS"]


def test_a_relay_that_dies_right_after_a_release_leaves_nobody_waiting(world: World) -> None:
    steps = chained(world, *[world.toys.add.with_arguments(x=number) for number in range(2)])
    end(world, steps[0])
    with relay_connection(world.engine) as connection:
        assert followers.settle(connection, steps[:1]).released == 1
    world.start_worker()
    assert world.wait_for(steps[1]).state == "SUCCESS"
    assert world.toys.ran == [(1, 1)]


def test_what_a_worker_tells_of_is_released_without_the_walk(world: World, following: Following, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases.Releases, "_walk", lambda *_: [])
    world.start_worker(relay=False)
    toys = world.toys
    steps = chained(world, *[toys.add.with_arguments(x=number) for number in range(4)])
    made = grouped(world, [toys.fail.with_arguments(times=1), *[toys.add.with_arguments(x=5)] * 9], following.ask.with_arguments())
    assert [world.wait_for(run_id).state for run_id in (steps[-1], made.callback_id)] == ["SUCCESS", "SUCCESS"]
    failing = chained(world, toys.refuse.with_arguments(), *[toys.add.with_arguments(x=number) for number in range(3)])
    wait_until(lambda: states(world, failing)[1:] == [LOST] * 3)
    (first,) = chained(world, toys.refuse.options(delay=0.3).with_arguments())
    lost = grouped(world, [toys.add.with_arguments(x=6)], following.count.with_arguments(), after=first)
    assert world.wait_for(lost.callback_id).result == 1  # the member that was revoked has ended too


def test_what_nobody_tells_of_is_found_by_the_walk(world: World, following: Following, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases.Releases, "ended", lambda *_: False)
    monkeypatch.setattr(releases, "BATCH", 2)
    small = {"walk_predecessors": followers.walk_predecessors, "walk_groups": followers.walk_groups}
    for name, walk in small.items():
        monkeypatch.setattr(followers, name, lambda connection, after, walk=walk: walk(connection, after, 2))
    toys = world.toys
    waiting = [chained(world, toys.add.options(delay=3600).with_arguments(x=1), toys.add.with_arguments(x=2)) for _ in range(5)]
    steps = chained(world, *[toys.add.with_arguments(x=number) for number in range(3)])
    made = [grouped(world, [toys.add.with_arguments(x=5)], following.ask.with_arguments()) for _ in range(5)]
    world.start_worker(relay=False)
    relay = Relay(world.engine, world.broker.publisher, world.broker.window)
    last = [steps[-1], *[each.callback_id for each in made]]
    act_until(relay.turn, lambda: states(world, last) == [DONE] * 6)
    relay.close()
    assert {world.run(later).waiting_for for _, later in waiting} == {"run"}


def test_followers_of_many_runs_are_settled_a_batch_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followers, "BATCH", 2)
    monkeypatch.setattr(releases, "BATCH", 2)
    first = world.enqueue(world.toys.add, x=0)
    with world.session(world.people.acme) as session:
        several = enqueue_many(session, world.toys.add.options(after=first), [{"x": number} for number in range(7)])
    end(world, first)
    world.relay_turn()
    assert {world.run(run_id).waiting_for for run_id in several} == {"queue"}


# The walls.


def test_another_tenants_run_or_group_cannot_be_followed(world: World) -> None:
    toys, people = world.toys, world.people
    theirs = world.enqueue(toys.add, identity=people.globex, x=1)
    with world.session(people.globex) as session:
        their_group = group(session, [toys.add.with_arguments(x=1)], then=toys.add.with_arguments(x=2))
    before = world.count(TaskRun)
    step = toys.add.with_arguments(x=3)
    for identity in (people.acme, people.ann):
        for attempt in (
            lambda session: chain(session, step, step, after=theirs),
            lambda session: group(session, [step], then=step, after=theirs),
            lambda session: enqueue(session, toys.add.options(after=theirs), x=3),
            lambda session: enqueue_many(session, toys.add.options(after=theirs), [{"x": 3}]),
            lambda session: enqueue(session, toys.add.options(after_group=their_group.id), x=3),
            lambda session: enqueue(session, toys.add.options(after="nonsense"), x=3),
            lambda session: enqueue(session, toys.add.options(after_group="nonsense"), x=3),
        ):
            assert_refused(world, identity, attempt, NotFoundError)
    by_system = toys.add.options(tenant=people.acme.tenant_id).with_arguments(x=3)
    assert_refused(world, SYSTEM, lambda session: chain(session, by_system, after=theirs), NotFoundError)
    foreign = toys.add.options(tenant=people.globex.tenant_id).with_arguments(x=3)
    assert_refused(world, SYSTEM, lambda session: chain(session, by_system, foreign), TenantError)
    assert_refused(world, SYSTEM, lambda session: group(session, [by_system], then=foreign), TenantError)
    assert world.count(TaskRun) == before


def test_a_row_that_names_another_tenants_run_or_group_learns_nothing_of_it(world: World) -> None:
    toys, people = world.toys, world.people
    theirs = world.enqueue(toys.add, identity=people.globex, x=1)
    with world.session(people.globex) as session:
        their_group = group(session, [toys.add.options(delay=60).with_arguments(x=1)], then=toys.add.with_arguments(x=2))
    ours, callback = world.enqueue(toys.add, x=2), world.enqueue(toys.add, x=3)
    world.set_run(ours, after_run_id=theirs, waiting_for="run", publish_at=None)
    world.set_run(callback, after_group_id=their_group.id, waiting_for="run", publish_at=None)
    world.relay_turn()
    assert states(world, [ours]) == [LOST]
    assert world.run(callback).waiting_for == "queue"  # as if the group were empty


def test_who_follows_nothing_cannot_ask(running: World, following: Following) -> None:
    alone = [running.enqueue(each.options(max_attempts=1)) for each in (following.double, following.ask)]
    assert [running.wait_for(run_id).error_type for run_id in alone] == ["NotFoundError"] * 2


def test_a_callback_reads_the_results_of_all_the_tenants_users(running: World, following: Following) -> None:
    toys, people = running.toys, running.people
    members = [toys.whoami.options(user=who.user_id).with_arguments() for who in (people.ann, people.bob)]
    then = following.ask.options(user=people.ann.user_id).with_arguments()
    made = grouped(running, list(members), then)
    running.wait_for(made.callback_id)
    assert [result[1] for _, _, result in following.seen[0]] == [people.ann.user_id, people.bob.user_id]


def test_a_chain_or_group_is_recorded_whole_or_not_at_all(world: World) -> None:
    step, wrong = world.toys.add.with_arguments(x=1), world.toys.add.with_arguments(x="one")

    def refused(attempt: Any) -> None:
        assert_refused(world, world.people.acme, attempt, InvalidInputError)

    refused(lambda session: chain(session, step, step, wrong))
    refused(lambda session: group(session, [step, step], then=wrong))
    refused(lambda session: group(session, [step, wrong], then=step))
    refused(lambda session: chain(session, step, world.toys.add.options(after=str(step)).with_arguments(x=1)))
    with new_session(world.people.acme, world.engine) as session:
        changes_its_mind(session, step)
    world.publish_all()
    assert (world.count(TaskRun), world.wire.depth("default")) == (0, 0)


def changes_its_mind(session: Session, step: Step) -> None:
    chain(session, step, step)
    group(session, [step], then=step)
    session.rollback()
    session.commit()
