"""What surrounds the routes: keys, walls, problems, request ids, headers, logs and the OpenAPI document."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from api.auth import FailedLogins
from api.context import request_id_of
from api.version import version
from core.clock import now
from core.ids import new_id
from storage.models import ApiKey, TaskRun, Tenant, User
from storage.repositories.tenants import ApiKeys
from tests.unit.api_world import World, world

__all__ = ["world"]


def every_route(world: World) -> list[tuple[str, str]]:
    """Method and path of the whole API, with acme's ids in place."""
    ids = {
        "task_id": world.add(),
        "client_id": world.acme.client_id,
        "message_id": world.acme.message_id,
        "attachment_id": new_id(),
        "email_id": world.acme.outbound_id,
        "queue": "default",
        "task": "add",
        "tenant": world.acme.tenant_id,
        "kind": "tenant",
        "name": world.acme.tenant_id,
        "webhook_id": new_id(),
        "delivery_id": new_id(),
        "entry_id": new_id(),
        "group_id": new_id(),
        "chain_id": new_id(),
    }
    document = world.get("/openapi.json", None).json()
    return [(method.upper(), path.format(**ids)) for path, methods in document["paths"].items() for method in methods]


def test_every_route_but_the_probes_wants_a_key(world: World) -> None:
    routes = every_route(world)
    assert len(routes) >= 25
    for method, path in routes:
        answer = world.call(method, path, None, json={} if method in {"POST", "PATCH", "PUT"} else None)
        if path in {"/health", "/health/live", "/health/ready"}:
            continue
        assert answer.status_code == 401, (method, path, answer.text)
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_every_id_of_another_tenant_is_unknown(world: World) -> None:
    ids = (world.acme.client_id, world.acme.message_id, world.acme.outbound_id)
    without_id = {"/api/tasks/batch", "/api/tasks/revoke"}
    routes = [
        (method, path)
        for method, path in every_route(world)
        if ("/api/tasks/" in path and path not in without_id) or any(each in path for each in ids)
    ]
    assert len(routes) >= 8
    for method, path in routes:
        body = {"spam": True} if path.endswith("/spam-feedback") else {}
        answer = world.call(method, path, world.globex.key, json=body if method in {"POST", "PATCH"} else None)
        assert answer.status_code == 404, (method, path, answer.text)
        unknown = world.call(
            method, path.replace(path.split("/")[3], new_id()) if "/api/tasks/" in path else path, world.globex.key, json=body
        )
        assert unknown.json()["detail"] == answer.json()["detail"]


def test_lists_show_only_ones_own(world: World) -> None:
    world.add()
    for path in ("/api/tasks", "/api/email/clients", "/api/email/messages", "/api/outbound-emails"):
        mine, theirs = (world.get(path, account.key).json()["items"] for account in (world.acme, world.globex))
        assert not {str(item) for item in mine} & {str(item) for item in theirs}, path
        assert mine, path
    counts = [queue["waiting"] for queue in world.get("/api/queues", world.globex.key).json()["items"]]
    assert sum(counts) == 0


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic abc", "mr_x_y"])
def test_without_a_bearer_key_it_is_401(world: World, header: str) -> None:
    answer = world.get("/api/tasks", None, headers={"Authorization": header})
    assert answer.status_code == 401
    assert answer.json()["type"] == "urn:mailroom:problem:unauthorized"


def test_an_unknown_wrong_revoked_or_expired_key_is_401(world: World) -> None:
    with world.system() as session:
        keys = ApiKeys(session)
        revoked, expired = keys.create(world.acme.tenant_id, "r"), keys.create(world.acme.tenant_id, "e", days=1)
        keys.revoke(revoked.split("_")[1])
        session.get(ApiKey, expired.split("_")[1]).expires_at = now() - timedelta(seconds=1)
    for key in ("mr_unknown_key", world.acme.key[:-1] + "!", revoked, expired):
        assert world.get("/api/tasks", key).status_code == 401


def test_an_inactive_tenants_key_is_401(world: World) -> None:
    with world.system() as session:
        session.get(Tenant, world.acme.tenant_id).is_active = False
    assert world.get("/api/tasks").status_code == 401
    assert world.get("/api/tasks", world.admin_key, headers={"X-Tenant-Id": "acme"}).status_code == 403


def test_too_many_wrong_keys_are_429_and_a_good_key_still_works(world: World) -> None:
    answers = [world.get("/api/tasks", "mr_wrong_key") for _ in range(12)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 2
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert answers[-1].json()["title"] == "Too Many Requests"
    assert world.get("/api/tasks").status_code == 200


def test_failed_logins_are_forgotten_in_time_and_memory() -> None:
    failures = FailedLogins(limit=1, per_seconds=0.05)
    assert failures.failed("a") == 0
    assert failures.failed("a") > 0
    for number in range(10_001):
        failures._failures.setdefault(str(number), failures._failures["a"].__class__([0.0]))
    failures.failed("b")
    assert len(failures._failures) < 10


def test_the_key_is_checked_before_the_body(world: World) -> None:
    for content, kind in ((b"{", "application/json"), (b"x", "multipart/form-data")):
        for path in ("/api/tasks", "/api/email/attachments"):
            assert world.post(path, None, content=content, headers={"Content-Type": kind}).status_code == 401


def test_an_admin_may_act_for_a_tenant_and_a_tenant_only_for_itself(world: World) -> None:
    for named in ("acme", world.acme.tenant_id):
        answer = world.post(
            "/api/tasks", world.admin_key, json={"task": "add", "args": {"x": 1}}, headers={"X-Tenant-Id": named, "X-User-Id": "Ann"}
        )
        assert answer.status_code == 202
    assert len(world.get("/api/tasks").json()["items"]) == 2
    assert world.get("/api/tasks", headers={"X-Tenant-Id": "acme"}).status_code == 200
    for named in ("globex", world.globex.tenant_id, "nobody", new_id()):
        assert world.get("/api/tasks", headers={"X-Tenant-Id": named}).status_code == 403
    assert world.get("/api/tasks", world.admin_key, headers={"X-Tenant-Id": "nobody"}).status_code == 403
    assert world.get("/api/tasks", world.admin_key, headers={"X-User-Id": "Ann"}).status_code == 403
    named_in_body = world.post("/api/tasks", world.admin_key, json={"task": "add", "args": {"x": 1, "tenant_id": "acme"}})
    assert named_in_body.status_code == 202
    assert world.post("/api/tasks", world.admin_key, json={"task": "add", "args": {"x": 1}}).status_code == 403


def test_x_user_id_narrows_to_one_user(world: World) -> None:
    with world.system() as session:
        other = User(tenant_id=world.acme.tenant_id, name="Otto")
        asleep = User(tenant_id=world.acme.tenant_id, name="Zoe", is_active=False)
        session.add_all([other, asleep])
    paths = ("/api/email/clients", "/api/email/messages", "/api/outbound-emails")
    for path in paths:
        assert len(world.get(path, headers={"X-User-Id": "Ann"}).json()["items"]) == 1
        assert world.get(path, headers={"X-User-Id": "Otto"}).json()["items"] == []
    otto = {"X-User-Id": "Otto"}
    assert world.get(f"/api/email/messages/{world.acme.message_id}", headers=otto).status_code == 404
    assert world.get(f"/api/email/clients/{world.acme.client_id}/folders", headers=otto).status_code == 404
    assert world.get("/api/tasks", headers={"X-User-Id": "Zoe"}).status_code == 403
    assert world.get("/api/tasks", headers={"X-User-Id": "Gus"}).status_code == 403
    assert world.get("/api/tasks", world.ann_key, headers={"X-User-Id": "Otto"}).status_code == 403
    assert world.get("/api/tasks", world.ann_key, headers={"X-User-Id": "Ann"}).status_code == 200
    assert len(world.get("/api/email/clients", world.ann_key).json()["items"]) == 1


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/api/nothing", 404), ("PUT", "/api/tasks", 405)])
def test_what_does_not_exist_is_a_problem_too(world: World, method: str, path: str, status: int) -> None:
    answer = world.call(method, path)
    assert answer.status_code == status
    problem = answer.json()
    assert set(problem) == {"type", "title", "status", "detail", "instance", "requestId"}
    assert answer.headers["content-type"] == "application/problem+json"
    if status == 405:
        assert "POST" in answer.headers["allow"] or "GET" in answer.headers["allow"]


def test_a_bug_is_500_and_tells_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr("api.routes.queues.get_queue_stats", broken)
    with capture_logs() as logs:
        answer = world.get("/api/queues", headers={"X-Request-Id": "r1"})
    assert answer.status_code == 500
    assert "hunter2" not in answer.text
    assert answer.json()["requestId"] == answer.headers["x-request-id"] == "r1"
    assert any(line["event"] == "request_failed" for line in logs)


def test_a_validation_problem_points_at_every_place(world: World) -> None:
    problem = world.post("/api/tasks", json={"task": 1, "args": [], "more": 1}).json()
    assert {each["pointer"] for each in problem["errors"]} == {"#/body/task", "#/body/args", "#/body/more"}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-request-id": "abc.DEF_1-2"}, "abc.DEF_1-2"),
        (
            {"x-request-id": "a b", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
            "4bf92f3577b34da6a3ce929d0e0e4736",
        ),
    ],
)
def test_the_request_id_is_the_callers_or_the_traces(headers: dict[str, str], expected: str) -> None:
    assert request_id_of(headers) == expected


@pytest.mark.parametrize("given", ["", "x" * 129, "a\nb", "ü", "00"])
def test_any_other_request_id_is_replaced(given: str) -> None:
    made = request_id_of({"x-request-id": given if given != "00" else "", "traceparent": f"00-{'0' * 32}-{'1' * 16}-01"})
    assert made != given
    assert len(made) == 36


def test_every_answer_has_the_security_headers(world: World) -> None:
    for path, key in (("/health", None), ("/api/tasks", ""), ("/api/tasks", None), ("/api/nothing", "")):
        headers = world.get(path, key).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "x-request-id" in headers


def test_one_log_line_a_request_without_the_query(world: World) -> None:
    with capture_logs() as logs:
        world.get("/api/tasks?q=secret", headers={"X-Request-Id": "r2"})
        world.get(f"/api/tasks/{new_id()}")
        world.get("/nothing/secret")
    lines = [line for line in logs if line["event"] == "request"]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("GET", "/api/tasks", 200),
        ("GET", "/api/tasks/{task_id}", 404),
        ("GET", "unknown", 404),
    ]
    assert lines[0]["tenant_id"] == world.acme.tenant_id
    assert all("duration_ms" in line for line in lines)
    assert "secret" not in str(lines)


def test_openapi_lists_each_task_with_its_own_arguments(world: World) -> None:
    document: dict[str, Any] = world.get("/openapi.json", None).json()
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    assert schemas["add_arguments"]["required"] == ["x"]
    assert schemas["add_arguments"]["properties"]["x"]["type"] == "integer"
    body = document["paths"]["/api/tasks"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["discriminator"]["mapping"]["sync_emails"] == "#/components/schemas/sync_emails_request"
    assert len(body["oneOf"]) == 8
    assert schemas["add_request"]["properties"]["task"]["const"] == "add"
    assert "args" not in schemas["nothing_request"]["required"]
    sync = document["paths"]["/api/email/sync"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert sync == {"$ref": "#/components/schemas/sync_emails_arguments"}
    assert "HTTPValidationError" not in schemas
    assert world.get("/docs").status_code == 404


def test_the_version_is_the_projects() -> None:
    assert version() != "unknown"


def test_a_wrong_key_leaves_no_row(world: World) -> None:
    assert world.post("/api/tasks", "mr_a_b", json={"task": "add", "args": {"x": 1}}).status_code == 401
    assert world.count(TaskRun) == 0
