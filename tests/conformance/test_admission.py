"""Limits of tenants and mail hosts: never more under way than may be, nothing lost, and nobody waits behind what is limited."""

from __future__ import annotations

import threading
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, func, literal, or_, select

from brokers.queues import Priority, Queue
from core.errors import InvalidInputError, NotFoundError
from core.ids import new_id
from core.tenancy import Identity
from runs.enqueue import enqueue_many
from runs.registry import EmailClientId
from runs.relay import Relay
from runs.task import Task, task
from storage import admission, dispatch, walks
from storage.expressions import db_now, db_now_plus
from storage.models import Limit, TaskRun
from storage.record import open_record
from storage.repositories.controls import Controls
from storage.repositories.email_clients import EmailClients
from storage.types import UtcDateTime
from tests.conformance.conftest import World
from tests.conformance.wires import RedisWire, Wire
from tests.servers.redis import Redis
from tests.toys import together, wait_until


@pytest.fixture
def wire(valkey: Redis) -> Wire:
    """One broker is enough: limits are kept by the record."""
    found = RedisWire(valkey)
    found.clean()
    return found


class Mails:
    """A task over the mail host that its argument names. Knows how many ran at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

        def mail(host: str, seconds: float = 0.0) -> None:
            with self._lock:
                self._now[host] += 1
                self.most[host] = max(self.most[host], self._now[host])
            time.sleep(seconds)
            with self._lock:
                self._now[host] -= 1

        def visit(email_client_id: EmailClientId) -> None: ...

        self.mail: Task[..., None] = task(queue=Queue.DEFAULT, mail_host=lambda _, arguments: arguments["host"])(mail)
        self.visit: Task[..., None] = task(
            queue=Queue.SYNC, mail_host=lambda session, arguments: EmailClients(session).server_of(arguments["email_client_id"], "imap")
        )(visit)


@pytest.fixture
def mails(world: World) -> Mails:
    return Mails()


def limit(world: World, who: Identity | str, concurrency: int | None = None, per_minute: int | None = None) -> None:
    kind, name = ("host", who) if isinstance(who, str) else ("tenant", who.tenant_id)
    with world.session() as session:
        Controls(session).set_limit(kind, name, concurrency=concurrency, per_minute=per_minute)


def unlimited(world: World, who: Identity | str) -> None:
    kind, name = ("host", who) if isinstance(who, str) else ("tenant", who.tenant_id)
    with world.session() as session:
        Controls(session).remove_limit(kind, name)


def many(world: World, number: int, who: Identity | None = None) -> list[str]:
    """In the order in which they are admitted."""
    with world.session(who or world.people.acme) as session:
        return sorted(enqueue_many(session, world.toys.add, [{"x": x} for x in range(number)]))


def waiting(world: World) -> Counter[Any]:
    """What the runs that have not ended wait for; None: they are STARTED."""
    with world.session() as session:
        rows = session.execute(select(TaskRun.id, TaskRun.waiting_for).where(TaskRun.state.in_(["PENDING", "RETRY", "STARTED"]))).all()
    return Counter(row.waiting_for for row in rows)


def still(world: World) -> None:
    """Nothing but the test admits from now on."""
    world.broker.admit = lambda: None  # type: ignore[method-assign]


def attend(world: World) -> None:
    """A relay's turn, without a look at lost workers: those of `claim` have no heart."""
    relay = Relay(world.engine, world.broker.publisher, world.broker.window)
    relay.attend()
    relay.dispatch()


def claim(world: World, run_id: str) -> bool:
    """Whether a worker that has a message of the run can start it."""
    record = open_record(world.engine)
    try:
        return run_id in record.turn("me", [], {run_id: world.run(run_id).tenant_id}, ())[1]
    finally:
        record.close()


def under_way(world: World) -> int:
    with world.session() as session:
        is_under_way = or_(TaskRun.state == "STARTED", TaskRun.waiting_for == "queue")
        return session.scalar(select(func.count()).select_from(TaskRun).where(is_under_way)) or 0


def test_two_hundred_limited_runs_are_never_more_than_three_at_once_and_all_run_once(world: World, mails: Mails) -> None:
    limit(world, world.people.acme, concurrency=3)
    with world.session(world.people.acme) as session:
        ids = enqueue_many(session, mails.mail, [{"host": "here", "seconds": 0.002}] * 200)
    seen: list[int] = []
    world.start_worker(threads=8)
    world.start_relay()
    while waiting(world):
        seen.append(under_way(world))
    assert max(seen) == 3
    assert mails.most["here"] == 3
    assert {(world.run(run_id).state, world.run(run_id).attempt) for run_id in ids[::10]} == {("SUCCESS", 1)}


def test_any_number_of_relays_admit_no_more_than_one_would(world: World) -> None:
    still(world)
    limit(world, world.people.acme, concurrency=7)
    many(world, 50)
    relays = [Relay(world.engine, world.broker.publisher, 200) for _ in range(4)]
    together(*[relay.turn for relay in relays])
    assert waiting(world) == {"queue": 7, "limit": 43}
    together(*[relay.turn for relay in relays])
    assert waiting(world) == {"queue": 7, "limit": 43}


def test_a_limited_tenant_does_not_keep_another(running: World) -> None:
    limit(running, running.people.acme, concurrency=1)
    ours = [running.enqueue(running.toys.hold) for _ in range(6)]
    running.wait_for(ours[0], "STARTED")
    theirs = many(running, 20, running.people.globex)
    assert {running.wait_for(run_id).state for run_id in theirs} == {"SUCCESS"}
    assert (waiting(running), running.run(ours[1]).attempt) == ({None: 1, "limit": 5}, 0)
    running.toys.gate.set()
    assert {running.wait_for(run_id).state for run_id in ours} == {"SUCCESS"}


def test_a_limited_run_is_published_at_once_by_the_process_that_recorded_it(world: World) -> None:
    limit(world, world.people.acme, concurrency=1)
    run_id = world.enqueue(world.toys.add, x=1)
    wait_until(lambda: world.wire.depth("default") == 1)
    assert world.run(run_id).waiting_for == "queue"
    assert world.run(world.enqueue(world.toys.add, x=2)).waiting_for == "limit"


def test_a_place_that_becomes_free_is_taken_long_before_the_relay_looks(world: World) -> None:
    limit(world, world.people.acme, concurrency=1)
    world.start_worker(relay=False)
    world.wait_for(world.enqueue(world.toys.add, x=0))
    before = time.monotonic()
    ids = many(world, 20)
    for run_id in ids:
        world.wait_for(run_id)
    assert time.monotonic() - before < 12.0  # a second each, if nobody woke it


def test_what_is_blocked_by_its_host_does_not_block_others_behind_it(world: World, mails: Mails) -> None:
    still(world)
    limit(world, world.people.acme, concurrency=3)
    limit(world, "slow", concurrency=1)
    limit(world, "quick", concurrency=9)
    slow = sorted(world.enqueue(mails.mail, host="SLOW.") for _ in range(4))
    quick = sorted(world.enqueue(mails.mail, host="quick") for _ in range(4))
    attend(world)
    assert [world.run(run_id).waiting_for for run_id in slow] == ["queue", "limit", "limit", "limit"]
    assert [world.run(run_id).waiting_for for run_id in quick] == ["queue", "queue", "limit", "limit"]


def test_tenants_take_turns_at_a_host(world: World, mails: Mails) -> None:
    still(world)
    limit(world, "shared", concurrency=4)
    with world.session(world.people.acme) as session:
        enqueue_many(session, mails.mail, [{"host": "shared"}] * 50)
    theirs = [world.enqueue(mails.mail, identity=world.people.globex, host="shared") for _ in range(2)]
    attend(world)
    assert {world.run(run_id).waiting_for for run_id in theirs} == {"queue"}
    assert waiting(world) == {"queue": 4, "limit": 48}


def test_the_most_urgent_and_longest_waiting_are_admitted_first(world: World) -> None:
    still(world)
    limit(world, world.people.acme, concurrency=3)
    late = [world.enqueue(world.toys.lazy, text="low") for _ in range(2)]
    normal = sorted(world.enqueue(world.toys.add, x=x) for x in range(2))
    high = world.enqueue(world.toys.add.options(priority=Priority.HIGH), x=2)
    urgent = world.enqueue(world.toys.urgent, text="another queue")
    attend(world)
    queued = [run_id for run_id in (*late, *normal, high, urgent) if world.run(run_id).waiting_for == "queue"]
    assert queued == [normal[0], high, urgent]


def test_so_many_start_a_minute(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    still(world)
    limit(world, world.people.acme, per_minute=180)
    many(world, 40)
    with world.session() as session:
        clock = [session.scalars(select(Limit)).one().refilled_at]
    monkeypatch.setattr(admission, "db_now", lambda: literal(clock[0], UtcDateTime()))

    def admitted_after(seconds: float) -> int:
        """How many more, so long after the last time."""
        before = waiting(world)["queue"]
        clock[0] += timedelta(seconds=seconds)
        attend(world)
        return waiting(world)["queue"] - before

    assert [admitted_after(seconds) for seconds in (0.0, 0.0, 0.5, 30.0, 0.0)] == [1, 0, 1, 3, 0]  # a second's worth at most
    assert [admitted_after(10.0) for _ in range(5)] == [3, 3, 3, 1, 0]  # nobody works: no more than 15 pile up


def test_what_waits_flows_when_a_limit_is_raised_or_removed(world: World) -> None:
    still(world)
    limit(world, world.people.acme, concurrency=2)
    many(world, 10)
    attend(world)
    assert waiting(world) == {"queue": 2, "limit": 8}
    limit(world, world.people.acme, concurrency=5)
    attend(world)
    assert waiting(world) == {"queue": 5, "limit": 5}
    unlimited(world, world.people.acme)
    attend(world)
    assert waiting(world) == {"queue": 10}


def test_what_was_on_its_way_when_a_limit_was_set_is_taken_back(world: World, mails: Mails) -> None:
    still(world)
    ids = many(world, 40)
    host = [world.enqueue(mails.mail, host="slow") for _ in range(5)]
    assert claim(world, ids[0])
    limit(world, world.people.acme, concurrency=3)
    limit(world, "slow", concurrency=1)
    assert waiting(world) == {None: 1, "queue": 2, "limit": 42}
    assert [world.run(run_id).waiting_for for run_id in ids[1:4]] == ["queue", "queue", "limit"]
    assert {world.run(run_id).waiting_for for run_id in host} == {"limit"}
    assert not claim(world, ids[3])  # its message is stale


def test_the_relay_takes_back_the_rest_and_what_slipped_past(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    still(world)
    ids = many(world, 25)
    monkeypatch.setattr(admission, "BATCH", 10)
    limit(world, world.people.acme, concurrency=1)
    assert waiting(world) == {"queue": 15, "limit": 10}
    attend(world)
    assert waiting(world) == {"queue": 1, "limit": 24}
    world.set_run(ids[5], waiting_for="queue")  # as if recorded by a transaction that did not see the limit
    with world.session() as session:
        session.scalars(select(Limit)).one().swept_at = session.scalars(select(db_now_plus(-61.0))).one()
    attend(world)
    assert waiting(world) == {"queue": 1, "limit": 24}


def test_a_retry_gives_its_place_away_and_is_admitted_again(world: World) -> None:
    still(world)
    limit(world, world.people.acme, concurrency=1)
    first, second = many(world, 2)
    attend(world)
    assert claim(world, first)
    attend(world)
    assert world.run(second).waiting_for == "limit"
    world.set_run(first, state="RETRY", waiting_for="eta", eta=db_now_plus(60.0), publish_at=db_now_plus(60.0))
    attend(world)
    assert (world.run(first).waiting_for, world.run(second).waiting_for) == ("eta", "queue")
    world.set_run(first, eta=db_now(), publish_at=db_now())
    assert not claim(world, first)  # whatever message is still about
    attend(world)
    assert (world.run(first).waiting_for, world.run(first).attempt) == ("limit", 1)
    assert claim(world, second)
    world.set_run(second, state="SUCCESS")
    attend(world)
    assert (world.run(first).waiting_for, claim(world, first)) == ("queue", True)


def test_a_suspect_keeps_its_place(world: World) -> None:
    still(world)
    limit(world, world.people.acme, concurrency=1)
    first, second = many(world, 2)
    attend(world)
    assert claim(world, first)
    world.set_run(first, state="RETRY", waiting_for="broker", publish_at=db_now(), is_suspect=True)
    attend(world)
    assert (world.run(first).waiting_for, world.run(second).waiting_for) == ("broker", "limit")


def test_what_is_beyond_the_window_is_held(world: World) -> None:
    still(world)
    limit(world, world.people.acme, concurrency=30)
    ids = many(world, 40)
    Relay(world.engine, world.broker.publisher, 20).turn()
    held = [run_id for run_id in ids if world.run(run_id).waiting_for == "queue" and world.run(run_id).publish_at is None]
    assert (waiting(world), held) == ({"queue": 30, "limit": 10}, ids[20:30])


def test_a_paused_run_takes_nobodys_place(world: World) -> None:
    still(world)
    limit(world, world.people.acme, concurrency=1)
    paused = world.enqueue(world.toys.add, x=1)
    with world.session() as session:
        Controls(session).pause("task", "add")
    attend(world)
    world.set_run(paused, waiting_for="limit")  # as if recorded by a transaction that did not see the pause
    other = world.enqueue(world.toys.lazy, text="behind it")
    attend(world)
    assert (world.run(paused).waiting_for, world.run(other).waiting_for) == ("pause", "queue")
    with world.session() as session:
        Controls(session).resume("task", "add")
    assert world.run(paused).waiting_for == "limit"


def test_a_limited_run_that_no_broker_took_is_admitted_again(world: World) -> None:
    still(world)
    limit(world, world.people.acme, concurrency=1)
    first, second = many(world, 2)
    attend(world)
    with world.session() as session:
        dispatch.wait_for_broker(session.connection(), [first])
    attend(world)
    assert (world.run(first).waiting_for, world.run(second).waiting_for) == ("queue", "limit")


def test_more_lanes_than_fit_a_page_all_get_their_turn(world: World, mails: Mails, monkeypatch: pytest.MonkeyPatch) -> None:
    still(world)
    monkeypatch.setattr("storage.admission.PAGE", 3)
    monkeypatch.setattr("runs.admission.PAGE", 3)
    monkeypatch.setattr(walks.beginnings, "__defaults__", (None, 3))
    for number in range(5):
        limit(world, f"closed{number}", concurrency=1)
        world.enqueue(mails.mail, host=f"closed{number}")
    relay = Relay(world.engine, world.broker.publisher, 200)
    for _ in range(3):
        relay.turn()
    assert waiting(world) == {"queue": 5}
    for number in range(5):
        world.enqueue(mails.mail, host=f"closed{number}")
    limit(world, "open", concurrency=1)
    last = world.enqueue(mails.mail, host="open")
    for _ in range(3):
        relay.turn()
    assert (world.run(last).waiting_for, waiting(world)) == ("queue", {"queue": 6, "limit": 5})


def test_the_mail_host_of_an_account_is_found_without_a_query(world: World, mails: Mails) -> None:
    fields = {"name": "Ann", "email": "ann@acme.test", "imap_host": "IMAP.Acme.Test"}
    with world.session(world.people.ann) as session:
        client = EmailClients(session).create(str(world.people.ann.user_id), fields).id
    statements: list[str] = []
    event.listen(world.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    run_id = world.enqueue(mails.visit, identity=world.people.ann, email_client_id=client)
    assert len([statement for statement in statements if "email_clients" in statement]) == 1  # that it is theirs
    assert world.run(run_id).mail_host == "imap.acme.test"
    with world.session(world.people.ann) as session:
        ids = enqueue_many(session, mails.visit, [{"email_client_id": client}] * 2)
    assert {world.run(each).mail_host for each in ids} == {"imap.acme.test"}
    with world.session(world.people.gus) as session, pytest.raises(NotFoundError):
        EmailClients(session).server_of(client, "imap")


def test_runs_of_several_hosts_are_recorded_together_in_the_order_given(world: World, mails: Mails) -> None:
    still(world)
    limit(world, "b", concurrency=1)
    with world.session(world.people.acme) as session:
        ids = enqueue_many(session, mails.mail, [{"host": host} for host in "abcab"])
    assert [world.run(run_id).args["host"] for run_id in ids] == list("abcab")
    assert [world.run(run_id).waiting_for for run_id in ids] == ["queue", "limit", "queue", "queue", "limit"]


def test_what_is_no_limit_is_refused(world: World) -> None:
    with world.session() as session:
        controls = Controls(session)
        for wrong in ({}, {"concurrency": 0}, {"concurrency": 1, "per_minute": -1}):
            with pytest.raises(InvalidInputError):
                controls.set_limit("host", "imap.example.com", **wrong)
        with pytest.raises(InvalidInputError):
            controls.set_limit("queue", "default", concurrency=1)
        with pytest.raises(NotFoundError):
            controls.set_limit("tenant", new_id(), concurrency=1)
        with pytest.raises(NotFoundError):
            controls.remove_limit("host", "imap.example.com")
        controls.set_limit("host", "IMAP.example.com.", concurrency=2)
        controls.set_limit("host", "imap.example.com", per_minute=60)
        assert [(row.name, row.concurrency, row.per_minute) for row in controls.limits()] == [("imap.example.com", None, 60)]
