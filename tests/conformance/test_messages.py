"""What workers make of messages: those that are none of ours, that come twice, that lie about their tenant, that others sent."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from brokers.message import END, MAC_AND_END, Envelope, MessageEncoder, _Key
from core.ids import new_id
from core.tenancy import SYSTEM_TENANT
from storage.models import TaskRun
from tests.conformance.conftest import World
from tests.toys import wait_until

FOREIGN = MessageEncoder({"k1": b"somebody else's key of 32 bytes."})
STRANGER = MessageEncoder({"k9": b"\0" * 32})


def plain(tenant_id: str, *, task: str = "add", run_id: str = "", user_id: str | None = None, **arguments: Any) -> dict[str, Any]:
    """A message as dramatiq's own `actor.send()` of another service makes it: no attempt, arguments inside."""
    return {
        "queue_name": "default",
        "actor_name": task,
        "args": [],
        "kwargs": arguments,
        "options": {"tenant_id": tenant_id, "user_id": user_id},
        "message_id": run_id or new_id(),
        "message_timestamp": int(time.time() * 1000),
    }


def tampered(body: bytes) -> bytes:
    fields = json.loads(body)
    fields["kwargs"] = {"x": 666}
    return json.dumps(fields).encode()


def unsigned(body: bytes) -> bytes:
    fields = json.loads(body)
    del fields["options"]["signature"]
    return json.dumps(fields).encode()


def newer(encoder: MessageEncoder, fields: dict[str, Any]) -> bytes:
    """As a later release would sign it."""
    key = _Key("k1", bytes(32))
    signed = encoder.encode(fields)[: -MAC_AND_END - len(key.mark)].replace(b'"v":1', b'"v":2')
    return signed + key.mark + key.mac(signed) + END


def test_what_is_none_of_ours_is_never_run_and_ends_among_the_dead_letters(running: World) -> None:
    tenant, encoder = running.people.acme.tenant_id, running.toys.encoder
    running.wait_for(running.enqueue(running.toys.add, x=0))  # the queue is declared
    good = encoder.encode(plain(tenant, x=1))
    bad = {
        b"hello": "not_json",
        b"[]": "not_json",
        b'{"options": 7}': "not_json",
        unsigned(good): "unsigned",
        tampered(good): "bad_signature",
        FOREIGN.encode(plain(tenant, x=2)): "bad_signature",
        STRANGER.encode(plain(tenant, x=3)): "unknown_key",
        newer(encoder, plain(tenant, x=4)): "newer_version",
        encoder.encode({**plain(tenant, x=5), "message_id": 7}): "wrong_id",
        encoder.encode(plain(tenant, x=6, padding="." * 70_000)): "too_large",
    }
    for body in bad:
        running.wire.put("default", body)
    run_id = running.enqueue(running.toys.add, x=9)
    assert running.wait_for(run_id).state == "SUCCESS"  # the queue keeps flowing
    wait_until(lambda: len(running.wire.dead_letters("default")) == len(bad))
    assert {letter.body: letter.reason for letter in running.wire.letters("default")} == bad
    assert running.toys.ran == [(0, 1), (9, 1)]
    assert running.count(TaskRun) == 2
    running.drained()


@pytest.mark.parametrize("field", ["message_id", "tenant_id", "user_id"])
def test_a_signed_message_with_an_id_that_is_none_stops_nobody_else(running: World, field: str) -> None:
    running.wait_for(running.enqueue(running.toys.add, x=0))
    fields = plain(running.people.acme.tenant_id, x=1)
    (fields if field == "message_id" else fields["options"])[field] = "no-such-thing"
    running.wire.put("default", running.toys.encoder.encode(fields))
    assert running.wait_for(running.enqueue(running.toys.add, x=2)).state == "SUCCESS"
    wait_until(lambda: len(running.wire.dead_letters("default")) == 1)
    assert running.toys.ran == [(0, 1), (2, 1)]


def test_a_message_that_names_another_tenant_than_the_row_never_runs(world: World) -> None:
    run_id = world.enqueue(world.toys.add.options(delay=60), x=1)
    world.set_run(run_id, eta=None)
    world.broker.publisher.publish_now([Envelope(run_id, "add", "default", world.people.globex.tenant_id)])
    world.start_worker()
    world.drained()
    run = world.run(run_id)
    assert (run.state, run.attempt, run.fence, world.toys.ran) == ("PENDING", 0, 0, [])


def test_a_run_is_run_once_however_many_messages_there_are(world: World) -> None:
    run_id = world.enqueue(world.toys.add, x=1)
    world.publish_all()
    envelope = Envelope(run_id, "add", "default", world.people.acme.tenant_id)
    world.broker.publisher.publish_now([envelope] * 5)
    world.start_worker()
    assert world.wait_for(run_id).attempt == 1
    world.broker.publisher.publish_now([envelope] * 3)  # and late ones
    world.drained()
    assert world.toys.ran == [(1, 1)]
    assert len(world.attempts(run_id)) == 1


def test_duplicates_of_a_run_that_is_under_way_are_dropped(running: World) -> None:
    run_id = running.enqueue(running.toys.hold)
    running.wait_for(run_id, "STARTED")
    running.broker.publisher.publish_now([Envelope(run_id, "hold", "default", running.people.acme.tenant_id)] * 3)
    other = running.enqueue(running.toys.add, x=1)
    assert running.wait_for(other).state == "SUCCESS"
    running.toys.gate.set()
    assert running.wait_for(run_id).fence == 1
    running.drained()
    assert running.toys.calls[run_id] == 1


def test_a_message_of_a_service_without_the_database_is_adopted(running: World) -> None:
    running.wait_for(running.enqueue(running.toys.whoami))
    ann = running.people.ann
    fields = plain(ann.tenant_id, task="whoami", user_id=ann.user_id)
    running.wire.put("default", running.toys.encoder.encode(fields))
    wait_until(lambda: running.count(TaskRun) == 2)
    run = running.wait_for(fields["message_id"])
    assert (run.state, run.result, run.attempt) == ("SUCCESS", [ann.tenant_id, ann.user_id], 1)
    running.drained()


def test_an_adopted_message_that_comes_again_makes_no_second_run(running: World) -> None:
    running.wait_for(running.enqueue(running.toys.add, x=0))
    body = running.toys.encoder.encode(plain(running.people.acme.tenant_id, x=1))
    running.wire.put("default", body)
    wait_until(lambda: running.toys.ran == [(0, 1), (1, 1)])
    for _ in range(3):
        running.wire.put("default", body)
    running.wait_for(running.enqueue(running.toys.add, x=2))
    running.drained()
    time.sleep(0.7)  # longer than the recorder sleeps
    assert running.count(TaskRun) == 3
    assert running.toys.ran == [(0, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize("why", ["no such task", "no such tenant", "wrong arguments", "the system's work"])
def test_a_message_that_cannot_be_adopted_is_a_dead_letter_and_harms_nobody(running: World, why: str) -> None:
    running.wait_for(running.enqueue(running.toys.add, x=0))
    tenant = running.people.acme.tenant_id
    fields = {
        "no such task": plain(tenant, task="nobody_knows"),
        "no such tenant": plain(new_id(), x=1),
        "wrong arguments": plain(tenant, x="one"),
        "the system's work": plain(SYSTEM_TENANT, x=1),
    }[why]
    if why == "the system's work":
        fields["actor_name"] = "tick"
    running.wire.put("default", running.toys.encoder.encode(fields))
    runs = [running.enqueue(running.toys.add, x=number) for number in range(1, 9)]
    assert {running.wait_for(run_id).state for run_id in runs} == {"SUCCESS"}
    wait_until(lambda: len(running.wire.dead_letters("default")) == 1)
    assert running.count(TaskRun) == 9
    running.drained()
