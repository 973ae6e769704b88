"""Callers are remembered for a moment: no longer, nobody else in their place, and not the bad ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event

import api.callers
from api.callers import FRESH_SECONDS, Asked, KnownCallers
from core.clock import now
from storage.models import ApiKey, Tenant, User
from storage.repositories.tenants import ApiKeys
from tests.unit.api_world import World, world

__all__ = ["world"]


class Clock:
    """Stands until somebody turns it."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(world: World) -> Clock:
    clock = Clock()
    world.app.state.known_callers = KnownCallers(clock)
    return clock


@pytest.fixture
def looked_up(world: World) -> Iterator[list[str]]:
    """One entry for each look at the table of keys."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "FROM api_keys" in statement:
            seen.append(statement)

    event.listen(world.engine, "before_cursor_execute", note)
    yield seen
    event.remove(world.engine, "before_cursor_execute", note)


def revoke(world: World) -> None:
    with world.system() as session:
        ApiKeys(session).revoke(world.ann_key.split("_")[1])


def expire(world: World) -> None:
    with world.system() as session:
        session.get(ApiKey, world.ann_key.split("_")[1]).expires_at = now()


def switch_off_the_tenant(world: World) -> None:
    with world.system() as session:
        session.get(Tenant, world.acme.tenant_id).is_active = False


def status(world: World, key: str | None = None, **headers: str) -> int:
    return world.get("/api/queues", key or world.ann_key, headers=headers).status_code


def test_a_caller_is_looked_up_once_a_second(world: World, clock: Clock, looked_up: list[str]) -> None:
    assert [status(world) for _ in range(5)] == [200] * 5
    assert len(looked_up) == 1
    clock.seconds += FRESH_SECONDS
    assert status(world) == 200
    assert len(looked_up) == 2


@pytest.mark.parametrize("end", [revoke, expire, switch_off_the_tenant])
def test_a_key_that_is_no_longer_good_works_for_no_more_than_a_second(world: World, clock: Clock, end: Callable[[World], None]) -> None:
    assert status(world) == 200
    clock.seconds += FRESH_SECONDS / 2
    assert status(world) == 200  # using it does not keep it fresh
    end(world)
    clock.seconds += FRESH_SECONDS / 2
    assert status(world) == 401


def test_the_second_begins_with_the_look_and_not_with_its_answer() -> None:
    clock = Clock()
    known = KnownCallers[str](clock)
    asked = Asked.by("key", None, None)
    since = known.now()
    clock.seconds += FRESH_SECONDS  # the database was slow, and the key may have been revoked behind the look's back
    known.remember(asked, "ann", since)
    assert known.find(asked) is None


def test_whom_a_key_may_act_for_is_looked_up_for_each_of_them(world: World, clock: Clock) -> None:
    assert status(world, world.acme.key) == 200
    assert status(world, world.acme.key, **{"X-Tenant-Id": "globex"}) == 403
    assert status(world, world.acme.key, **{"X-Tenant-Id": "acme", "X-User-Id": "Ann"}) == 200
    assert status(world, world.acme.key, **{"X-Tenant-Id": "acme", "X-User-Id": "Gus"}) == 403
    assert status(world, world.admin_key, **{"X-Tenant-Id": "globex"}) == 200
    assert status(world, world.admin_key, **{"X-Tenant-Id": "nobody"}) == 403


def test_a_remembered_caller_acts_for_the_tenant_it_named(world: World, clock: Clock) -> None:
    for _ in range(2):  # the second time from memory
        for name, account in (("acme", world.acme), ("globex", world.globex)):
            items = world.get("/api/email/clients", world.admin_key, headers={"X-Tenant-Id": name}).json()["items"]
            assert [item["id"] for item in items] == [account.client_id]


def test_a_wrong_key_is_never_remembered(world: World, clock: Clock, looked_up: list[str]) -> None:
    wrong = world.ann_key[:-1] + ("A" if world.ann_key[-1] != "A" else "B")
    assert status(world) == 200
    assert [status(world, wrong) for _ in range(3)] == [401] * 3
    assert len(looked_up) == 4


def test_a_user_that_is_switched_off_is_forgotten_too(world: World, clock: Clock) -> None:
    named = {"X-User-Id": world.acme.user_id}
    assert status(world, world.acme.key, **named) == 200
    with world.system() as session:
        session.get(User, world.acme.user_id).is_active = False
    clock.seconds += FRESH_SECONDS
    assert status(world, world.acme.key, **named) == 403


def test_memory_has_an_end_and_holds_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.callers, "MOST", 3)
    clock = Clock()
    known = KnownCallers[int](clock)
    for number in range(5):
        known.remember(Asked.by(f"secret{number}", None, None), number, clock())
    assert [known.find(Asked.by(f"secret{number}", None, None)) for number in range(5)] == [None, None, 2, 3, 4]
    assert "secret" not in repr(known._known)
    clock.seconds += FRESH_SECONDS
    known.remember(Asked.by("another", None, None), 9, clock())
    assert len(known._known) == 1
