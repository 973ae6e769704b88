"""The outbox over HTTP: accepting, looking, cancelling, deciding; suppressed addresses and DKIM keys."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from brokers.queues import Queue
from core.clock import now
from core.ids import new_id
from runs.registry import OutboundEmailId
from runs.task import task
from storage.models import DkimKey, EmailClient, OutboundEmail, TaskRun
from tests.unit.api_world import World, _bound

MAIL = "/api/outbound-emails"


def send_outbound_email(email_id: OutboundEmailId) -> None:
    """Stand in for the real one."""


def retry_failed_email(email_id: OutboundEmailId) -> None:
    """Stand in for the real one."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with _bound(tmp_path) as made:
        for function in (send_outbound_email, retry_failed_email):
            task(queue=Queue.SEND)(function)
        with made.system() as session:
            session.execute(update(EmailClient).values(smtp_host="smtp.test"))
        yield made


def body(world: World, **changes: Any) -> dict[str, Any]:
    return {"emailClientId": world.acme.client_id, "to": ["Bob <bob@x.test>"], "subject": "Hi", "bodyText": "Hello", **changes}


def created(world: World, **changes: Any) -> dict[str, Any]:
    answer = world.post(MAIL, json=body(world, **changes))
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"{MAIL}/{answer.json()['id']}"
    return dict(answer.json())


def row(world: World, email_id: str) -> OutboundEmail:
    with world.system() as session:
        found: OutboundEmail = session.get_one(OutboundEmail, email_id)
    return found


def run_of(world: World, run_id: str) -> TaskRun:
    with world.system() as session:
        found: TaskRun = session.get_one(TaskRun, run_id)
    return found


def set_status(world: World, email_id: str, status: str) -> None:
    with world.system() as session:
        session.get_one(OutboundEmail, email_id).status = status


def test_a_mail_is_accepted_with_its_run(world: World) -> None:
    made = created(world, cc=["cy@x.test"], bcc=["di@x.test"], priority="high")
    assert (made["status"], made["priority"], made["from"]) == ("pending", "high", "ann@acme.test")
    assert sorted(each["address"] for each in made["recipients"]) == ["bob@x.test", "cy@x.test", "di@x.test"]
    run = run_of(world, made["runId"])
    assert (run.task, run.args, run.user_id, run.priority) == ("send_outbound_email", {"email_id": made["id"]}, world.acme.user_id, 2)
    source = row(world, made["id"]).source
    assert b"di@x.test" not in source
    assert made["messageId"].encode() in source


def test_a_scheduled_mail_has_a_run_that_waits(world: World) -> None:
    moment = now() + timedelta(hours=2)
    made = created(world, scheduledAt=moment.isoformat(), expiresAt=(moment + timedelta(hours=1)).isoformat())
    run = run_of(world, made["runId"])
    assert (run.waiting_for, run.eta) == ("eta", moment)
    assert made["scheduledAt"].endswith("Z")


def test_the_same_request_twice_makes_one_mail(world: World) -> None:
    key = {"Idempotency-Key": "one"}
    first, second = (world.post(MAIL, json=body(world), headers=key) for _ in range(2))
    assert first.json() == second.json()
    assert world.count(OutboundEmail) == 3  # with the two of the world
    assert world.post(MAIL, json=body(world, subject="other"), headers=key).status_code == 422
    assert world.count(OutboundEmail) == 3


def test_bulk_mail_says_how_to_get_off_the_list(world: World) -> None:
    made = created(world, listUnsubscribe={"url": "https://acme.test/u?t=a%20b", "mailto": "stop@acme.test"})
    message = email.message_from_bytes(row(world, made["id"]).source, policy=email.policy.default)
    assert message["List-Unsubscribe"] == "<https://acme.test/u?t=a%20b>, <mailto:stop@acme.test>"
    assert (message["List-Unsubscribe-Post"], message["Auto-Submitted"]) == ("List-Unsubscribe=One-Click", "auto-generated")
    plain = email.message_from_bytes(row(world, created(world)["id"]).source)
    assert (plain["List-Unsubscribe"], plain["Auto-Submitted"]) == (None, None)
    assert email.message_from_bytes(row(world, created(world, automatic=True)["id"]).source)["Auto-Submitted"] == "auto-generated"


@pytest.mark.parametrize(
    "changes",
    [
        {"to": []},
        {"to": ["bob"]},
        {"to": ["bob@x.test\r\nBcc: eve@x.test"]},
        {"to": ["Bob\r\nX: y <bob@x.test>"]},
        {"subject": "Hi\r\nBcc: eve@x.test"},
        {"replyTo": "a@b.test\nX: y"},
        {"replyTo": "nobody"},
        {"listUnsubscribe": {}},
        {"listUnsubscribe": {"url": "http://acme.test/u"}},
        {"listUnsubscribe": {"url": "https://acme.test/u>\r\nX: y"}},
        {"listUnsubscribe": {"url": "https://acme.test/ü"}},
        {"listUnsubscribe": {"mailto": "x@y.test>, <mailto:z@y.test"}},
        {"scheduledAt": "2026-01-01T00:00:00"},
        {"scheduledAt": "9999-01-01T00:00:00Z"},
        {"expiresAt": "2020-01-01T00:00:00Z"},
        {"priority": "urgent"},
        {"headers": []},
        {"to": ["a@b.test"] * 1001},
    ],
)
def test_what_cannot_be_sent_is_refused_and_leaves_nothing(world: World, changes: dict[str, Any]) -> None:
    answer = world.post(MAIL, json=body(world, **changes))
    assert answer.status_code == 422, answer.text
    assert "eve@" not in answer.text
    assert (world.count(OutboundEmail), world.count(TaskRun)) == (2, 0)


def test_attachments_have_a_size_together(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [world.post("/api/email/attachments", files={"file": (f"{n}.txt", b"12345", "text/plain")}).json()["id"] for n in range(2)]
    assert b'filename="1.txt"' in row(world, created(world, attachmentIds=files)["id"]).source
    monkeypatch.setattr("storage.drafts.LARGEST_ATTACHMENTS", 9)
    assert world.post(MAIL, json=body(world, attachmentIds=files)).status_code == 422
    monkeypatch.undo()
    for path in world.settings.files.rglob("*"):
        if path.is_file():
            path.unlink()
    assert world.post(MAIL, json=body(world, attachmentIds=files)).status_code == 404
    assert world.post(MAIL, json=body(world, attachmentIds=[new_id()])).status_code == 404


def test_a_foreign_account_is_unknown(world: World) -> None:
    assert world.post(MAIL, world.globex.key, json=body(world)).status_code == 404
    assert world.post(MAIL, world.admin_key, json=body(world)).status_code == 403
    assert world.post(MAIL, world.admin_key, json=body(world), headers={"X-Tenant-Id": "acme"}).status_code == 202


def test_a_waiting_mail_is_cancelled_with_its_run(world: World) -> None:
    made = created(world, scheduledAt=(now() + timedelta(hours=1)).isoformat())
    for _ in range(2):
        assert world.post(f"{MAIL}/{made['id']}/cancel").json()["status"] == "cancelled"
    assert run_of(world, made["runId"]).state == "REVOKED"
    for status in ("sending", "sent", "failed", "uncertain"):
        set_status(world, made["id"], status)
        assert world.post(f"{MAIL}/{made['id']}/cancel").status_code == 409


def test_a_mail_whose_run_has_begun_is_cancelled_and_the_run_told(world: World) -> None:
    made = created(world)
    world.set_run(made["runId"], state="STARTED")
    assert world.post(f"{MAIL}/{made['id']}/cancel").json()["status"] == "cancelled"
    assert run_of(world, made["runId"]).ending == "revoke"


def test_uncertain_mails_are_listed_and_decided(world: World) -> None:
    made = created(world)
    set_status(world, made["id"], "uncertain")
    world.set_run(made["runId"], state="FAILURE")
    (listed,) = world.get(f"{MAIL}?status=uncertain").json()["items"]
    assert listed["id"] == made["id"]
    path = f"{MAIL}/{made['id']}/resolve"
    assert world.post(path, json={"outcome": "perhaps"}).status_code == 422
    assert world.post(path, world.globex.key, json={"outcome": "sent"}).status_code == 404
    decided = world.post(path, json={"outcome": "sent"}).json()
    assert (decided["status"], decided["recipients"][0]["status"], decided["sentAt"] is not None) == ("sent", "sent", True)
    assert world.post(path, json={"outcome": "failed"}).status_code == 409


def test_an_uncertain_mail_may_be_sent_once_more(world: World) -> None:
    made = created(world)
    set_status(world, made["id"], "uncertain")
    world.set_run(made["runId"], state="FAILURE")
    assert world.post(f"{MAIL}/{made['id']}/resolve", json={"outcome": "retry"}).json()["status"] == "pending"
    with world.system() as session:
        runs = session.query(TaskRun).filter(TaskRun.state == "PENDING").all()
    assert [(run.task, run.args) for run in runs] == [("send_outbound_email", {"email_id": made["id"]})]


def test_a_failed_mail_is_retried_by_an_admin(world: World) -> None:
    made = created(world)
    set_status(world, made["id"], "failed")
    path = f"/admin/emails/{made['id']}/retry"
    assert world.post(path).status_code == 403
    assert world.post(path, world.globex.key).status_code == 404
    assert world.post(path, world.admin_key, headers={"X-Tenant-Id": "globex"}).status_code == 404
    answer = world.post(path, world.admin_key)
    assert (answer.status_code, answer.headers["location"]) == (202, answer.json()["href"])
    run = run_of(world, answer.json()["taskId"])
    assert (run.task, run.tenant_id, run.user_id) == ("retry_failed_email", world.acme.tenant_id, world.acme.user_id)
    assert world.post(path, world.admin_key, headers={"X-Tenant-Id": "acme"}).json()["taskId"] == run.id  # while it is live
    assert row(world, made["id"]).status == "pending"
    for status in ("sent", "sending", "uncertain"):
        set_status(world, made["id"], status)
        assert world.post(path, world.admin_key).status_code == 409


def test_suppressed_addresses_are_kept_listed_and_removed(world: World) -> None:
    made = world.post("/api/suppressions", json={"address": "Gone@X.test", "detail": "asked to"})
    assert (made.status_code, made.json()["address"], made.json()["reason"]) == (201, "gone@x.test", "manual")
    assert world.post("/api/suppressions", json={"address": "GONE@x.test", "reason": "complaint"}).json() == made.json()
    world.post("/api/suppressions", json={"address": "also@x.test"})
    first = world.get("/api/suppressions?limit=1").json()
    second = world.get(f"/api/suppressions?limit=1&cursor={first['nextCursor']}").json()
    assert [first["items"][0]["address"], second["items"][0]["address"], second["nextCursor"]] == ["also@x.test", "gone@x.test", None]
    assert world.get("/api/suppressions", world.globex.key).json()["items"] == []
    for name in (made.json()["id"], "gone@x.test"):
        assert world.call("DELETE", f"/api/suppressions/{name}", world.globex.key).status_code == 404
    assert world.call("DELETE", f"/api/suppressions/{made.json()['id']}").status_code == 204
    assert world.call("DELETE", "/api/suppressions/also@x.test").status_code == 204
    assert world.call("DELETE", "/api/suppressions/also@x.test").status_code == 404
    assert world.post("/api/suppressions", json={"address": "nobody"}).status_code == 422
    assert world.post("/api/suppressions", world.admin_key, json={"address": "a@x.test"}).status_code == 403


@pytest.mark.parametrize("algorithm", ["rsa-sha256", "ed25519-sha256"])
def test_a_dkim_key_is_made_told_and_used_and_never_leaves(world: World, algorithm: str) -> None:
    made = world.post("/api/dkim-keys", json={"domain": "ACME.test", "selector": "s1", "algorithm": algorithm})
    assert made.status_code == 201, made.text
    key = made.json()
    assert (key["domain"], key["algorithm"], key["recordName"]) == ("acme.test", algorithm, "s1._domainkey.acme.test")
    assert "".join(key["recordStrings"]) == key["recordValue"]
    assert world.get("/api/dkim-keys").json()["items"] == [key]
    assert world.get("/api/dkim-keys", world.globex.key).json()["items"] == []
    assert "PRIVATE" not in world.get("/api/dkim-keys").text
    with world.system() as session:
        assert b"PRIVATE" not in session.query(DkimKey).one().private_key
    source = row(world, created(world)["id"]).source
    assert source.startswith(f"DKIM-Signature: v=1; a={algorithm}; c=relaxed/relaxed; d=acme.test".encode()[:60])
    assert world.post("/api/dkim-keys", json={"domain": "acme.test"}).status_code == 409
    assert world.call("DELETE", "/api/dkim-keys/acme.test", world.globex.key).status_code == 404
    assert world.call("DELETE", f"/api/dkim-keys/{key['id']}").status_code == 204
    assert not row(world, created(world)["id"]).source.startswith(b"DKIM")


def test_a_dkim_key_needs_a_domain_and_a_selector(world: World) -> None:
    for given in ({"domain": "a b.test"}, {"domain": "x.te\r\nst"}, {"domain": "x.test", "selector": "A.b"}, {"domain": "x@y.test"}):
        assert world.post("/api/dkim-keys", json=given).status_code == 422, given
    assert world.post("/api/dkim-keys", world.admin_key, json={"domain": "x.test"}).status_code == 403


def test_a_run_is_published_once_its_mail_is_committed_and_not_earlier(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def publish(envelopes: list[Any]) -> None:
        with world.system() as session:  # another connection
            seen.extend(session.get(TaskRun, each.run_id) is not None for each in envelopes)

    monkeypatch.setattr(world.broker.publisher, "publish", publish)
    created(world)
    assert seen == [True]
