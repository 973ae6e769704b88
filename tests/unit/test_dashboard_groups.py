"""The dashboard's chains, groups and webhooks without a browser: what is shown, to whom, and what the buttons do."""

from __future__ import annotations

import html
from typing import Any

import pytest
from sqlalchemy import update

from api.dashboard import webhooks, words
from core.clock import now
from core.ids import new_id
from storage.event_types import EVENTS
from storage.models import TaskRun, Webhook, WebhookDelivery
from tests.unit.api_world import World, world
from tests.unit.test_api_dashboard import form, log_in, page, token_in
from tests.unit.test_api_groups import ADD, NOTHING, ids, make_chain, make_group, set_all

__all__ = ["world"]
URL = "https://hooks.example/services/T0secret?token=geheim"


def text(world: World, path: str) -> str:
    answer = page(world, path)
    assert answer.status_code == 200, answer.text
    return html.unescape(answer.text)


def hook(world: World, key: str = "", **more: Any) -> str:
    return str(world.post("/api/webhooks", key, json={"url": URL, **more}).json()["id"])


def press(world: World, path: str, **fields: Any) -> Any:
    return form(world, path, None, csrf_token=token_in(page(world, "/")), **fields)


# Chains and groups.


def test_a_runs_page_shows_its_chain_and_its_group(world: World) -> None:
    made = make_group(world, ADD, [ADD, ADD, NOTHING])
    single, (first, middle, last) = made["items"][0]["taskId"], ids([made["items"][1]])
    set_all(world, [single, first], "SUCCESS")
    log_in(world)
    shown = text(world, f"/runs/{middle}")
    assert f'href="/runs/{first}"' in shown
    assert f'href="/runs/{last}"' in shown
    assert shown.count("this run") == 1
    assert "2 of 4 members ended" in shown
    assert f'href="/?group={made["groupId"]}&state=success"' in shown
    assert f'href="/runs/{made["callback"]["taskId"]}"' in shown
    assert "Follows a group" in text(world, f"/runs/{made['callback']['taskId']}")
    alone = text(world, f"/runs/{world.add()}")
    assert "Chain</h2>" not in alone
    assert "Group</h2>" not in alone


def test_a_chain_of_many_tells_that_there_are_more(world: World) -> None:
    made = make_chain(world, *[ADD] * 25)
    log_in(world)
    shown = text(world, f"/runs/{ids(made['items'])[12]}")
    assert "More run before these." in shown
    assert "More follow." in shown
    assert "0 of 25 steps ended" in shown
    assert shown.count('data-key="n') == 17


def test_the_list_is_narrowed_to_a_group_that_can_be_revoked(world: World) -> None:
    made, other = make_group(world, ADD, ADD), world.add()
    log_in(world)
    shown = text(world, f"/?group={made['groupId']}")
    assert all(run_id in shown for run_id in ids(made["items"]))
    assert other not in shown
    assert "Revoke all of it…" in shown
    assert f'<input type="hidden" name="group" value="{made["groupId"]}">' in shown
    assert press(world, "/groups/revoke", group=made["groupId"]).headers["location"] == f"/?group={made['groupId']}"
    with world.system() as session:
        assert {run.state for run in session.query(TaskRun).filter(TaskRun.id != other)} == {"REVOKED"}
    assert "Revoke all of it…" not in text(world, f"/?group={made['groupId']}")
    assert "Chain <span" in text(world, f"/?group={make_chain(world)['chainId']}")
    for unknown in (new_id(), "x"):
        assert "There is no group with this id." in text(world, f"/?group={unknown}")
    theirs = world.post("/api/groups", world.globex.key, json={"members": [ADD], "then": NOTHING}).json()
    assert "There is no group with this id." in text(world, f"/?group={theirs['groupId']}")
    assert press(world, "/groups/revoke", group=theirs["groupId"]).status_code == 404
    assert form(world, "/groups/revoke", group=made["groupId"]).status_code == 403  # without the session's token


def test_the_dead_letters_of_a_group_alone_are_replayed(world: World) -> None:
    made, other = make_group(world, ADD, ADD), world.add()
    dead = ids(made["items"])[0]
    set_all(world, [dead, other], "FAILURE", dead_lettered_at=now())
    log_in(world)
    shown = text(world, f"/dead-letters?group={made['groupId']}")
    assert dead in shown
    assert other not in shown
    press(world, "/dead-letters/replay", group=made["groupId"], expect="1")
    with world.system() as session:
        assert [session.get_one(TaskRun, run_id).state for run_id in (dead, other)] == ["PENDING", "FAILURE"]


# Webhooks.


def test_webhooks_are_shown_without_what_may_be_secret(world: World) -> None:
    made = hook(world, description="Ours <b>", events=["task.failed"])
    theirs = hook(world, world.globex.key)
    log_in(world)
    shown = text(world, "/webhooks")
    assert "hooks.example/services/…" in shown
    assert "Ours <b>" not in page(world, "/webhooks").text
    assert not any(secret in shown for secret in ("geheim", "T0secret", "whsec_", theirs))
    assert "Nothing was told yet." in shown
    assert made in shown
    world.http.cookies.clear()
    log_in(world, world.admin_key)
    everybody = text(world, "/webhooks")
    assert made in everybody
    assert theirs in everybody
    assert "services" not in everybody
    assert theirs not in text(world, "/webhooks?tenant=acme")


def test_the_buttons_of_a_webhook(world: World) -> None:
    made = hook(world)
    log_in(world)
    assert press(world, "/webhooks/test", webhook_id=made, webhook=made).headers["location"] == f"/webhooks?webhook={made}"
    assert "webhook.test" in text(world, f"/webhooks?webhook={made}")
    with world.system() as session:
        delivery = session.query(WebhookDelivery).one().id
        failed = {"status": "failed", "attempts": 10, "run_id": new_id(), "last_error": "The address answered 500.", "response_code": 500}
        session.execute(update(WebhookDelivery).values(**failed))
        session.execute(update(Webhook).values(failures=3))
    shown = text(world, "/webhooks")
    assert "The address answered 500." in shown
    assert "Failing" in shown
    assert press(world, "/webhooks/disable", webhook_id=made).headers["location"] == "/webhooks"
    assert "Somebody switched it off." in text(world, "/webhooks")
    assert press(world, "/webhooks/redeliver", delivery_id=delivery).status_code == 409
    assert press(world, "/webhooks/enable", webhook_id=made).status_code == 303
    assert press(world, "/webhooks/redeliver", delivery_id=delivery, tenant="acme").headers["location"] == "/webhooks?tenant=acme"
    with world.system() as session:
        assert session.query(WebhookDelivery).one().status == "pending"
    assert form(world, "/webhooks/test", webhook_id=made).status_code == 403
    assert press(world, "/webhooks/explode", webhook_id=made).status_code == 422


def test_webhooks_of_others_are_unknown_and_a_user_sees_none(world: World) -> None:
    theirs = hook(world, world.globex.key)
    delivery = world.post(f"/api/webhooks/{theirs}/test", world.globex.key).json()["id"]
    log_in(world)
    for action in ("test", "enable", "disable"):
        assert press(world, f"/webhooks/{action}", webhook_id=theirs).status_code == 404
    assert press(world, "/webhooks/redeliver", delivery_id=delivery).status_code == 404
    assert delivery not in text(world, f"/webhooks?webhook={theirs}")
    world.http.cookies.clear()
    log_in(world, world.ann_key)
    assert page(world, "/webhooks").status_code == 403
    assert 'href="/webhooks"' not in text(world, "/")
    world.http.cookies.clear()
    log_in(world, world.admin_key)
    assert press(world, "/webhooks/disable", webhook_id=theirs).status_code == 303
    assert press(world, "/webhooks/test", webhook_id=theirs).status_code == 303
    with world.system() as session:
        assert not session.get_one(Webhook, theirs).is_active


@pytest.mark.parametrize("who", ["acme", "admin"])
def test_older_deliveries_are_a_page_further(world: World, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    monkeypatch.setattr(webhooks, "PAGE", 2)
    made = hook(world)
    told = [world.post(f"/api/webhooks/{made}/test").json()["id"] for _ in range(3)]
    log_in(world, world.admin_key if who == "admin" else "")
    newest = text(world, "/webhooks")
    seen = [each for each in told if each in newest]
    assert len(seen) == 2
    older = newest.split('href="/webhooks?cursor=')[1].split('"')[0]
    further = text(world, f"/webhooks?cursor={older}")
    assert [each for each in told if each in further] == [each for each in told if each not in seen]
    assert "Older page, not live" in further
    assert "← Newest" in further


def test_addresses_and_events_in_short() -> None:
    assert words.endpoint("https://u:p@a.example:8443/x/y?z=1", in_full=True) == "a.example:8443/x/…"
    assert words.endpoint("https://a.example/in/", in_full=True) == "a.example/in"
    assert words.endpoint("https://a.example", in_full=True) == "a.example"
    assert words.endpoint(f"https://a.example/{'t' * 17}", in_full=True) == "a.example/…"
    assert words.told_of(list(EVENTS)) == "everything"
    assert words.told_of(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert words.delivery_word("pending", 0)[0] == "Waiting"
    assert words.delivery_word("pending", 1)[0] == "Retrying"
    assert words.delivery_word("other", 1)[0] == "other"
