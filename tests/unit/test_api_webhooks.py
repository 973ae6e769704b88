"""Webhooks over HTTP: made, changed, tested, told again, and whose they are."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update
from standardwebhooks import Webhook as Verifier

from core.errors import ConflictError
from core.ids import new_id
from storage.event_types import EVENTS
from storage.models import RequestKey, Webhook, WebhookDelivery
from storage.repositories.requests import RequestKeys
from storage.repositories.webhooks import Deliveries
from tests.unit.api_world import World, world

__all__ = ["world"]
URL = "https://hooks.example/in"


def create(world: World, **body: Any) -> dict[str, Any]:
    answer = world.post("/api/webhooks", json={"url": URL, **body})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def test_a_webhook_is_made_and_its_secret_shown_once(world: World) -> None:
    made = create(world, events=["task.failed", "email.sent", "task.failed"], description="ours")
    assert Verifier(made["secret"])
    assert made["events"] == ["task.failed", "email.sent"]
    shown = world.get(f"/api/webhooks/{made['id']}").json()
    assert shown == {name: value for name, value in made.items() if name != "secret"}
    assert world.get("/api/webhooks").json()["items"] == [shown]
    assert create(world)["events"] == list(EVENTS)


def test_a_webhook_is_changed_rotated_and_deleted(world: World) -> None:
    made = create(world)
    path = f"/api/webhooks/{made['id']}"
    changed = world.call("PATCH", path, json={"url": "https://other.example/", "events": ["task.revoked"], "isActive": False}).json()
    assert (changed["url"], changed["events"], changed["isActive"]) == ("https://other.example/", ["task.revoked"], False)
    assert changed["disabledReason"] == "Somebody switched it off."
    assert world.call("PATCH", path, json={"isActive": True}).json()["disabledReason"] is None
    rotated = world.post(f"{path}/rotate").json()
    assert rotated["secret"] != made["secret"]
    assert rotated["previousUntil"] is not None
    assert world.call("DELETE", path).status_code == 204
    assert world.get(path).status_code == 404


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"url": "http://hooks.example/"}, "url must begin with https://."),
        ({"url": "https://192.168.1.1/"}, "url leads to a private address."),
        ({"url": URL, "events": ["task.exploded"]}, "events are of these, at least one:"),
        ({"url": URL, "events": []}, "events"),
        ({"url": URL, "secret": "mine"}, "secret"),
        ({}, "url"),
    ],
)
def test_what_is_wrong_is_said(world: World, body: dict[str, Any], sentence: str) -> None:
    answer = world.post("/api/webhooks", json=body)
    assert answer.status_code == 422
    assert sentence in answer.json()["detail"]


def test_a_test_event_is_a_delivery_that_can_be_told_again(world: World) -> None:
    path = f"/api/webhooks/{create(world)['id']}"
    tested = world.post(f"{path}/test")
    assert (tested.status_code, tested.json()["type"], tested.json()["status"]) == (202, "webhook.test", "pending")
    again = f"/api/webhook-deliveries/{tested.json()['id']}/redeliver"
    assert world.post(again).status_code == 409  # it is still being told
    with world.system() as session:
        values = {"status": "failed", "attempts": 10, "run_id": tested.json()["id"], "last_error": "The address answered 500."}
        session.execute(update(WebhookDelivery).values(**values, response_code=500))
    assert world.get(f"{path}/deliveries").json()["items"][0]["lastError"] == "The address answered 500."
    told_again = world.post(again).json()
    assert (told_again["status"], told_again["attempts"], told_again["id"]) == ("pending", 0, tested.json()["id"])
    with world.system() as session:
        session.execute(update(WebhookDelivery).values(status="failed"))
        session.execute(update(Webhook).values(is_active=False))
    assert world.post(again).status_code == 409


def test_deliveries_are_paged_newest_first(world: World) -> None:
    path = f"/api/webhooks/{create(world)['id']}"
    ids = [world.post(f"{path}/test").json()["id"] for _ in range(5)]
    first = world.get(f"{path}/deliveries?limit=3").json()
    second = world.get(f"{path}/deliveries?limit=3&cursor={first['nextCursor']}").json()
    assert [each["id"] for each in first["items"] + second["items"]] == ids[::-1]
    assert second["nextCursor"] is None


def test_webhooks_are_the_tenant_s_own_and_no_user_s(world: World) -> None:
    made = create(world)
    path = f"/api/webhooks/{made['id']}"
    with world.system() as session:
        delivery_id = Deliveries(session).test(made["id"]).id
    requests = [
        ("GET", path), ("PATCH", path), ("DELETE", path), ("POST", f"{path}/test"), ("POST", f"{path}/rotate"),
        ("GET", f"{path}/deliveries"), ("POST", f"/api/webhook-deliveries/{delivery_id}/redeliver"),
    ]  # fmt: skip
    for method, where in requests:
        body: dict[str, Any] = {"json": {}} if method == "PATCH" else {}
        assert world.call(method, where, world.globex.key, **body).status_code == 404, (method, where)
    for method, where in [*requests, ("GET", "/api/webhooks"), ("POST", "/api/webhooks")]:
        body = {"json": {"url": URL}} if where == "/api/webhooks" and method == "POST" else {"json": {}} if method == "PATCH" else {}
        assert world.call(method, where, world.ann_key, **body).status_code == 403, (method, where)
        assert world.call(method, where, world.admin_key, **body).status_code == 403, (method, where)
    assert world.get("/api/webhooks", world.admin_key, headers={"X-Tenant-Id": "acme"}).json()["items"][0]["id"] == made["id"]


def test_an_idempotency_key_makes_a_repeated_request_the_same(world: World) -> None:
    def ask(path: str, key: str, **options: Any) -> Any:
        answer = world.post(path, headers={"Idempotency-Key": key}, **options)
        return answer.json() if answer.status_code < 300 else (answer.status_code, answer.json()["detail"])

    made = ask("/api/webhooks", "made", json={"url": URL})
    assert ask("/api/webhooks", '"made"', json={"url": URL}) == made
    used = (422, "This Idempotency-Key was used for a different request; use a new key.")
    assert ask("/api/webhooks", "made", json={"url": URL, "description": "x"}) == used
    path = f"/api/webhooks/{made['id']}"
    tested = ask(f"{path}/test", "tested")
    assert ask(f"{path}/test", "tested")["id"] == tested["id"]
    assert ask(f"{path}/test", "again")["id"] != tested["id"]
    assert ask(f"{path}/test", "made") == used
    rotated = ask(f"{path}/rotate", "rotated")
    assert rotated["secret"] != made["secret"]
    assert ask(f"{path}/rotate", "rotated") == rotated
    with world.system() as session:
        session.execute(update(WebhookDelivery).values(status="failed", run_id=tested["id"]))
    told = f"/api/webhook-deliveries/{tested['id']}/redeliver"
    assert ask(told, "told")["status"] == "pending"
    with world.system() as session:
        session.execute(update(WebhookDelivery).values(status="delivered"))
    assert ask(told, "told")["status"] == "delivered"  # it was told once more, and not twice
    assert len(world.get("/api/webhooks").json()["items"]) == 1
    theirs = world.post("/api/webhooks", world.globex.key, json={"url": URL}, headers={"Idempotency-Key": "made"})
    assert theirs.json()["id"] != made["id"]
    assert ask(f"/api/webhooks/{theirs.json()['id']}/test", "foreign")[0] == 404


def test_the_same_request_at_the_same_time_is_told_to_come_again(world: World) -> None:
    with world.as_tenant(world.acme) as session:
        keys = RequestKeys(session)

        def meanwhile() -> str:
            session.add(RequestKey(tenant_id=world.acme.tenant_id, idempotency_key="k", request_hash="0", answer_id=new_id()))
            session.flush()
            session.expunge_all()
            return new_id()

        with pytest.raises(ConflictError):
            keys.once("k", ["x"], meanwhile)
        session.rollback()
    assert world.count(RequestKey) == 0
