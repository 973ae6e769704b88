"""Webhooks: events are written with what they tell of, one run carries each to its end, and the row owns the tries."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from standardwebhooks import Webhook as Verifier

from brokers.queues import Queue
from core.clock import now
from core.errors import ConflictError, InvalidInputError, NotFoundError, Snooze
from core.settings import get_settings
from core.tenancy import Identity, acting_as
from runs.control import revoke
from runs.relay import Relay
from runs.sweep import revoke_many
from runs.task import task
from runs.webhooks.signature import new_secret
from storage import webhook_events
from storage.engine import new_session
from storage.event_types import EVENTS
from storage.expressions import db_now_plus
from storage.models import TaskRun, Webhook, WebhookDelivery
from storage.repositories import webhooks
from storage.repositories.messages import Changes
from storage.repositories.runs import RunFilter
from storage.repositories.webhooks import PATIENCE_SECONDS, RETRY_SECONDS, Deliveries
from storage.webhook_events import NewEvent, may_be_heard, note
from tests.toys import Record, fixed_settings, in_force, wait_until
from tests.unit.actor_world import Actors, acting
from tests.unit.conftest import House

__all__ = ["acting"]
URL = "https://hooks.example/in"


class Hears(http.server.ThreadingHTTPServer):
    """Remembers what was posted; answers what it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        self.status, self.headers = 200, dict[str, str]()
        self.seen: list[tuple[dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hears

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def ear() -> Iterator[Hears]:
    with Hears() as server:
        threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()
        yield server
        server.shutdown()


def subscribe(record: Record, who: Identity, *events: str, url: str = URL, secret: str = "") -> str:
    with record.session(Identity(who.tenant_id)) as session:
        keys = get_settings().credential_keys
        return Deliveries(session, keys).add(url, events or EVENTS, secret or new_secret()).id


def told(record: Record) -> list[WebhookDelivery]:
    with record.session() as session:
        return session.query(WebhookDelivery).order_by(WebhookDelivery.created_at, WebhookDelivery.id).all()


def hook(record: Record, webhook_id: str) -> Webhook:
    with record.session() as session:
        return session.get_one(Webhook, webhook_id)


@contextmanager
def private_allowed() -> Iterator[None]:
    with in_force(get_settings().model_copy(update={"allow_private_webhook_hosts": True})):
        yield


# What is written.


def test_the_end_of_a_run_is_told_to_those_of_its_tenant_that_want_to_know(house: House) -> None:
    acme, globex = house.people.acme, house.people.globex
    both, failures = subscribe(house, acme), subscribe(house, acme, "task.failed")
    foreign = subscribe(house, globex, "task.retried")
    house.start_worker()
    good = house.enqueue(house.toys.add, identity=house.people.ann, x=1)
    house.wait_for(good)
    bad = house.enqueue(house.toys.refuse)
    house.wait_for(bad)
    other = house.enqueue(house.toys.fail.options(max_attempts=1), identity=globex, times=9)
    house.wait_for(other)
    found = {(each.webhook_id, each.type, each.payload["data"]["taskId"], each.status) for each in told(house)}
    failed = {(webhook_id, "task.failed", bad, "pending") for webhook_id in (both, failures)}
    assert found == {(both, "task.succeeded", good, "pending"), *failed}
    assert foreign not in {webhook_id for webhook_id, *_ in found}
    data = told(house)[0].payload
    assert data["type"] == "task.succeeded"
    assert data["timestamp"].endswith("Z")
    assert data["data"] | {"durationMs": 0} == {
        "taskId": good,
        "task": "add",
        "queue": "default",
        "state": "SUCCESS",
        "userId": house.people.ann.user_id,
        "attempt": 1,
        "errorType": None,
        "reason": None,
        "durationMs": 0,
    }


def test_retries_and_revocations_are_told_too(house: House) -> None:
    subscribe(house, house.people.acme)
    house.start_worker()
    failing = house.enqueue(house.toys.fail, times=1)

    def has_succeeded() -> bool:
        house.relay_turn()
        return house.run(failing).state == "SUCCESS"

    wait_until(has_succeeded, 20)
    one, many, expired = (house.enqueue(house.toys.add.options(delay=900), x=number) for number in range(3))
    with house.session(house.people.acme) as session:
        revoke(session, one)
    house.set_run(expired, expires_at=now())
    house.relay_turn()
    with new_session(house.people.acme, house.engine) as session:
        revoke_many(session, RunFilter(task="add"), expect=1)
    found = {(each.type, each.payload["data"]["taskId"], each.payload["data"]["reason"]) for each in told(house)}
    assert found == {
        ("task.retried", failing, None),
        ("task.succeeded", failing, None),
        ("task.revoked", one, "revoked"),
        ("task.revoked", many, "revoked"),
        ("task.revoked", expired, "expired"),
    }


def test_what_is_rolled_back_is_told_to_nobody(record: Record) -> None:
    subscribe(record, record.people.acme)
    event = NewEvent(record.people.acme.tenant_id, "email.sent", {})
    with new_session(record.people.acme, record.engine) as session:
        note(session.connection(), [event])
        session.rollback()
    assert told(record) == []
    with record.session(record.people.acme) as session:
        note(session.connection(), [event, event])
        note(session.connection(), [])
    assert len(told(record)) == 2


def test_one_that_is_off_or_wants_other_events_is_not_told(record: Record) -> None:
    off = subscribe(record, record.people.acme)
    subscribe(record, record.people.acme, "task.failed")
    with record.session(record.people.acme) as session:
        assert Deliveries(session).change(off, is_active=False).disabled_reason == "Somebody switched it off."
        note(session.connection(), [NewEvent(record.people.acme.tenant_id, "email.sent", {})])
    assert told(record) == []


def test_a_webhook_made_a_moment_ago_is_seen_within_two_seconds(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant_id = record.people.acme.tenant_id
    with record.session(record.people.acme) as session:
        assert not may_be_heard(session.connection(), tenant_id)
    subscribe(record, record.people.acme)
    with record.session(record.people.acme) as session:
        assert not may_be_heard(session.connection(), tenant_id)  # it has looked just now
        monkeypatch.setattr(webhook_events, "FRESH_SECONDS", 0.0)
        assert may_be_heard(session.connection(), tenant_id)
        monkeypatch.setattr(webhook_events, "_seen", dict.fromkeys(((0, str(each)) for each in range(10_001)), (0.0, False)))
        assert may_be_heard(session.connection(), tenant_id)


# Deliveries and their tries.


def test_an_event_gets_a_run_of_its_tenant_once(house: House) -> None:
    subscribe(house, house.people.acme, "task.succeeded")
    house.start_worker()
    house.wait_for(house.enqueue(house.toys.add, x=1))
    house.relay_turn()
    assert [each.run_id for each in told(house)] == [None]  # this process does not know the task

    def deliver_webhook(delivery_id: str) -> None: ...

    task(queue=Queue.LOW_PRIORITY)(deliver_webhook)
    relay = Relay(house.engine, house.broker.publisher, house.broker.window, house.broker.relay_hooks(house.engine))
    for _ in range(2):
        relay.turn()
    (delivery,) = told(house)
    assert delivery.run_id is not None
    run = house.run(delivery.run_id)
    assert (run.task, run.tenant_id, run.args) == ("deliver_webhook", house.people.acme.tenant_id, {"delivery_id": delivery.id})
    house.wait_for(run.id)
    assert len(told(house)) == 1  # its own end is no event


def test_a_delivery_arrives_signed_and_is_over(acting: Actors, ear: Hears) -> None:
    record, acme, secret = acting.record, acting.record.people.acme, new_secret()
    webhook_id = subscribe(record, acme, url=ear.url, secret=secret)
    with record.session(acme) as session:
        note(session.connection(), [NewEvent(acme.tenant_id, "email.sent", {"emailId": "e"})])
    (delivery,) = told(record)
    import actors.webhooks

    with private_allowed(), acting.attempt(acme):
        assert actors.webhooks.deliver_webhook(delivery.id) == {"status": "delivered", "attempts": 1}
        assert actors.webhooks.deliver_webhook(delivery.id) == {"status": "delivered", "attempts": 1}  # once is enough
    ((headers, body),) = ear.seen
    assert Verifier(secret).verify(body, headers) == delivery.payload
    assert headers["webhook-id"] == delivery.id
    assert json.loads(body)["data"] == {"emailId": "e"}
    (after,) = told(record)
    assert (after.status, after.response_code, after.finished_at is not None) == ("delivered", 200, True)
    assert hook(record, webhook_id).failures == 0


def test_a_failure_is_tried_again_by_the_schedule_and_heeds_a_wish_to_wait(acting: Actors, ear: Hears) -> None:
    record, acme = acting.record, acting.record.people.acme
    webhook_id = subscribe(record, acme, url=ear.url)
    with record.session(acme) as session:
        note(session.connection(), [NewEvent(acme.tenant_id, "email.sent", {})])
    (delivery,) = told(record)
    import actors.webhooks

    ear.status = 500
    with private_allowed(), acting.attempt(acme):
        for attempt, seconds in enumerate(RETRY_SECONDS, 1):
            ear.headers = {"Retry-After": "4000"} if attempt == 1 else {"Retry-After": "9999999"} if attempt == 2 else {}
            with pytest.raises(Snooze) as snoozed:
                actors.webhooks.deliver_webhook(delivery.id)
            expected = {1: 4000, 2: 86_400}.get(attempt, seconds)
            assert 0.89 * expected <= snoozed.value.delay <= min(86_400, 1.11 * expected)
            assert "answered 500" in str(snoozed.value)
            (row,) = told(record)
            assert (row.status, row.attempts, row.next_attempt_at is not None) == ("pending", attempt, True)
        assert actors.webhooks.deliver_webhook(delivery.id) == {"status": "failed", "attempts": 10}
    assert hook(record, webhook_id).failures == 10
    assert len({headers["webhook-id"] for headers, _ in ear.seen}) == 1
    assert len({body for _, body in ear.seen}) == 1


def test_an_address_that_is_gone_or_dead_for_days_is_switched_off(acting: Actors, ear: Hears) -> None:
    record, acme = acting.record, acting.record.people.acme
    gone, dead = subscribe(record, acme, url=ear.url), subscribe(record, acme, url=ear.url + "dead")
    with record.session(acme) as session:
        for _ in range(2):
            note(session.connection(), [NewEvent(acme.tenant_id, "email.sent", {})])
    with record.session() as session:
        long_ago = db_now_plus(-PATIENCE_SECONDS - 60)
        session.execute(update(Webhook).where(Webhook.id == dead).values(failures=50, failing_since=long_ago))
    import actors.webhooks

    by_hook = {each.webhook_id: each.id for each in told(record)}
    with private_allowed(), acting.attempt(acme):
        for webhook_id, status, reason in (
            (gone, 410, "The address answered 410: it is gone."),
            (dead, 500, "Nothing got through for five days."),
        ):
            ear.status = status
            assert actors.webhooks.deliver_webhook(by_hook[webhook_id])["status"] == "failed"
            assert (hook(record, webhook_id).is_active, hook(record, webhook_id).disabled_reason) == (False, reason)
        for each in told(record):
            if each.status == "pending":
                assert actors.webhooks.deliver_webhook(each.id)["status"] == "cancelled"
    assert sorted(each.status for each in told(record)) == ["cancelled", "cancelled", "failed", "failed"]
    with record.session(acme) as session:
        on = Deliveries(session).change(gone, is_active=True)
        assert (on.failures, on.failing_since, on.disabled_reason) == (0, None, None)


def test_a_private_address_is_not_posted_to_unless_that_is_allowed(acting: Actors, ear: Hears) -> None:
    record, acme = acting.record, acting.record.people.acme
    subscribe(record, acme, url=ear.url)
    with record.session(acme) as session:
        note(session.connection(), [NewEvent(acme.tenant_id, "email.sent", {})])
    import actors.webhooks

    with acting.attempt(acme), pytest.raises(Snooze, match="https"):
        actors.webhooks.deliver_webhook(told(record)[0].id)
    assert ear.seen == []


def test_a_try_that_another_run_has_recorded_changes_nothing(record: Record) -> None:
    acme = record.people.acme
    subscribe(record, acme)
    with record.session(acme) as session:
        note(session.connection(), [NewEvent(acme.tenant_id, "email.sent", {})])
    with record.session(acme) as session:
        deliveries = Deliveries(session, get_settings().credential_keys)
        job = deliveries.take(session.query(WebhookDelivery.id).scalar() or "")
        assert job is not None
        unknown = replace(job, delivery_id=job.delivery_id[::-1])
        assert deliveries.record(job, 500, "no", "", None, 1, is_good=False).status == "pending"
        assert deliveries.record(job, 200, None, "", None, 1, is_good=True) == webhooks.Tried("pending", 0, None)
        assert deliveries.record(unknown, 200, None, "", None, 1, is_good=True).status == "cancelled"


def test_a_rotated_secret_is_good_beside_the_new_one_for_a_day(record: Record) -> None:
    acme, first, second = record.people.acme, new_secret(), new_secret()
    webhook_id = subscribe(record, acme, secret=first)
    with record.session(acme) as session:
        keys = get_settings().credential_keys
        changed = Deliveries(session, keys).rotate(webhook_id, second)
        assert Deliveries(session, keys).secrets(changed) == [second, first]
        changed.previous_until = now() - timedelta(seconds=1)  # the database may count in milliseconds
        session.flush()
        assert Deliveries(session, keys).secrets(changed) == [second]
        assert first.encode() not in changed.secret
        with pytest.raises(InvalidInputError, match="no key ring"):
            Deliveries(session).secrets(changed)


def test_lost_runs_are_replaced_and_old_deliveries_deleted(acting: Actors) -> None:
    record, acme = acting.record, acting.record.people.acme
    subscribe(record, acme)
    with record.session(acme) as session:
        for _ in range(3):
            note(session.connection(), [NewEvent(acme.tenant_id, "email.sent", {})])
    lost, old, fresh = (each.id for each in told(record))
    with record.session() as session:
        for delivery_id, values in (
            (lost, {"run_id": lost, "created_at": db_now_plus(-90 * 86_400)}),
            (old, {"status": "failed", "created_at": db_now_plus(-90 * 86_400)}),
            (fresh, {"status": "delivered"}),
        ):
            session.execute(update(WebhookDelivery).where(WebhookDelivery.id == delivery_id).values(**values))
    import actors.webhooks

    assert actors.webhooks.cleanup_webhook_deliveries() == {"status": "success", "deleted_count": 1, "restarted_count": 1}
    assert {each.id: each.run_id for each in told(record)} == {lost: None, fresh: None}
    assert record.count(TaskRun) == 0


def test_wrong_events_and_too_many_webhooks_are_refused(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match="events are of these"):
        subscribe(record, record.people.acme, "task.exploded")
    monkeypatch.setattr(webhooks, "MOST_WEBHOOKS", 1)
    subscribe(record, record.people.acme)
    with pytest.raises(ConflictError, match="1 webhooks already"):
        subscribe(record, record.people.acme)


def test_another_tenant_s_webhooks_and_deliveries_are_unknown(record: Record) -> None:
    acme, globex = record.people.acme, record.people.globex
    webhook_id = subscribe(record, acme)
    with record.session(acme) as session:
        note(session.connection(), [NewEvent(acme.tenant_id, "email.sent", {})])
    delivery_id = told(record)[0].id
    with record.session(globex) as session:
        theirs = Deliveries(session, get_settings().credential_keys)
        assert theirs.all() == []
        for attempt in (
            lambda: theirs.one(webhook_id),
            lambda: theirs.change(webhook_id, is_active=False),
            lambda: theirs.rotate(webhook_id, new_secret()),
            lambda: theirs.remove(webhook_id),
            lambda: theirs.page(webhook_id),
            lambda: theirs.test(webhook_id),
            lambda: theirs.delivery(delivery_id),
            lambda: theirs.again(delivery_id),
            lambda: theirs.take(delivery_id),
            lambda: theirs.take("no id"),
        ):
            with pytest.raises(NotFoundError):
                attempt()
    assert hook(record, webhook_id).is_active
    with acting_as(acme):
        assert len(told(record)) == 1


def test_settings_say_no_by_default(tmp_path: Any) -> None:
    assert fixed_settings(tmp_path).allow_private_webhook_hosts is False


def test_a_sync_that_changed_something_is_told(acting: Actors) -> None:
    import actors.sync

    record, ann = acting.record, acting.record.people.ann
    subscribe(record, ann, "sync.completed")
    with acting.attempt(ann), record.session(ann) as session:
        actors.sync._tell(session, "c", Changes())
        actors.sync._tell(session, "c", Changes(synced=2, updated=1))
    (delivery,) = told(record)
    counts = {"messagesSynced": 2, "messagesUpdated": 1, "messagesDeleted": 0}
    assert (delivery.type, delivery.payload["data"]) == ("sync.completed", {"emailClientId": "c", **counts})
