"""The control surface over HTTP: revoking by filter, batches, dead letters, pauses, limits, schedules, event streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Request
from httpx import Response
from periodiq import cron

from api import callers, events
from api.auth import Acting
from api.routes import events as event_routes
from brokers.queues import Queue
from core.clock import now
from core.tenancy import Identity
from runs.task import task
from storage.models import TaskRun
from storage.repositories.runs import RunFilter
from storage.repositories.schedules import Declared, Schedules
from storage.repositories.tenants import ApiKeys, Caller
from tests.unit.api_world import World, world

__all__ = ["world"]
STARTED: dict[str, Any] = {"state": "STARTED", "waiting_for": None, "publish_at": None, "worker_id": "w", "started_at": now()}


def dead(world: World, key: str = "", **columns: Any) -> str:
    run_id = world.add(key)
    facts = {"state": "FAILURE", "waiting_for": None, "publish_at": None, "reason": "permanent", "dead_lettered_at": now()}
    world.set_run(run_id, **{**facts, **columns})
    return run_id


def state(world: World, run_id: str) -> str:
    return str(world.get(f"/api/tasks/{run_id}", world.admin_key).json()["state"])


def test_a_running_run_says_that_its_revocation_was_requested(world: World) -> None:
    run_id = world.add()
    world.set_run(run_id, **STARTED)
    answer = world.post(f"/api/tasks/{run_id}/revoke")
    assert (answer.status_code, answer.json()["state"]) == (200, "STARTED")
    assert (answer.json()["revokeRequested"], answer.json()["ending"], answer.json()["ready"]) == (True, "revoke", False)
    by_force = world.post(f"/api/tasks/{run_id}/revoke", json={"terminate": True}).json()
    assert by_force["ending"] == "terminate"
    (row,) = world.get("/api/tasks?state=started").json()["items"]
    assert (row["revokeRequested"], row["ending"]) == (True, "terminate")
    assert world.post(f"/api/tasks/{run_id}/revoke", json={"terminate": "yes please"}).status_code == 422
    assert world.post(f"/api/tasks/{run_id}/revoke", json={"force": True}).status_code == 422


def test_many_are_revoked_for_a_count_that_was_told(world: World) -> None:
    mine, theirs = [world.add() for _ in range(3)], world.add(world.globex.key)
    world.set_run(mine[0], **STARTED)
    assert world.post("/api/tasks/revoke", json={"dryRun": True}).json()["count"] == 3
    assert world.post("/api/tasks/revoke", json={"task": "add"}).status_code == 422
    refused = world.post("/api/tasks/revoke", json={"expect": 4})
    assert (refused.status_code, refused.json()["count"], refused.json()["type"]) == (409, 3, "urn:mailroom:problem:count_changed")
    assert [state(world, each) for each in mine] == ["STARTED", "PENDING", "PENDING"]
    done = world.post("/api/tasks/revoke", json={"expect": 3, "terminate": True}).json()
    assert (done["revoked"], done["marked"], done["dryRun"]) == (2, 1, False)
    assert (state(world, mine[1]), state(world, theirs)) == ("REVOKED", "PENDING")
    assert world.post("/api/tasks/revoke", json={"tenant": "globex", "dryRun": True}).status_code == 404
    assert world.post("/api/tasks/revoke", world.admin_key, json={"tenant": "globex", "expect": 1}).json()["revoked"] == 1
    assert world.post("/api/tasks/revoke", json={"state": "asleep", "dryRun": True}).status_code == 422


def test_purging_a_queue_revokes_what_waits_in_it(world: World) -> None:
    mine, running, theirs = world.add(), world.add(), world.add(world.globex.key)
    world.set_run(running, **STARTED)
    assert world.post("/api/queues/default/purge", json={"dryRun": True}).json()["count"] == 1
    assert world.post("/api/queues/default/purge", json={"expect": 1}).json()["revoked"] == 1
    assert [state(world, each) for each in (mine, running, theirs)] == ["REVOKED", "STARTED", "PENDING"]
    assert world.post("/api/queues/nonsense/purge", json={"dryRun": True}).status_code == 404


def test_dead_letters_are_listed_replayed_and_purged(world: World) -> None:
    one, two, theirs = dead(world), dead(world, reason="crashed"), dead(world, world.globex.key)
    listed = world.get("/api/dead-letters").json()["items"]
    assert [item["taskId"] for item in listed] == [two, one]
    assert listed[0]["error"]["reason"] == "crashed"
    assert listed[0]["deadLetteredAt"].endswith("Z")
    for query, found in (("reason=crashed", [two]), ("queue=sync", []), ("task=add&limit=1", [two])):
        assert [item["taskId"] for item in world.get(f"/api/dead-letters?{query}").json()["items"]] == found
    assert world.post("/api/dead-letters/replay", json={"reason": "crashed", "dryRun": True}).json()["count"] == 1
    assert world.post("/api/dead-letters/replay", json={"ids": [two, theirs], "expect": 1}).json()["replayed"] == 1
    assert world.post("/api/dead-letters/purge", json={"ids": [theirs, "nonsense"], "dryRun": True}).json()["count"] == 0
    assert world.post("/api/dead-letters/purge", json={"expect": 1}).json()["purged"] == 1
    assert world.get("/api/dead-letters").json()["items"] == []
    assert [state(world, each) for each in (one, two, theirs)] == ["FAILURE", "PENDING", "FAILURE"]
    assert len(world.get("/api/dead-letters", world.admin_key).json()["items"]) == 1


# batches


def batch(world: World, items: Any, key: str = "", **options: Any) -> Response:
    return world.post("/api/tasks/batch", key, json=items, **options)


def test_good_items_are_recorded_together_and_bad_ones_get_a_problem_in_their_place(world: World) -> None:
    call = {"task": "add", "args": {"x": 1}}
    items = [
        call,
        {"task": "nope"},
        {"task": "add", "args": {}},
        {"task": "add", "args": {"x": 2}, "options": {"countdown": 60}},
        7,
        {"task": "sync_emails", "args": {"email_client_id": world.globex.client_id}},
        {"task": "sync_emails", "args": {"email_client_id": world.acme.client_id}},
        {**call, "options": {"uniqueKey": "k"}},
        {**call, "options": {"uniqueKey": "k"}},
        {**call, "tenant_id": "globex"},
        {"task": "add", "args": {"x": 2**70}},
        {**call, "options": {"priority": "high"}},
    ]
    answer = batch(world, items)
    assert answer.status_code == 202
    found = answer.json()["items"]
    assert [each.get("status") for each in found] == [
        "pending",
        404,
        422,
        "pending",
        422,
        404,
        "pending",
        "pending",
        "pending",
        403,
        422,
        "pending",
    ]
    assert (answer.json()["accepted"], answer.json()["refused"]) == (6, 6)
    assert found[7]["taskId"] == found[8]["taskId"]
    assert "needs the argument x" in found[2]["detail"]
    assert world.count(TaskRun) == 5
    with world.system() as session:
        runs = {run.id: run for run in session.query(TaskRun)}
        assert (runs[found[0]["taskId"]].args, runs[found[11]["taskId"]].priority) == ({"x": 1, "y": 1}, 2)
        assert {run.tenant_id for run in runs.values()} == {world.acme.tenant_id}
    assert world.get(found[3]["href"]).json()["waitingFor"] == "eta"


def test_lines_of_json_are_a_batch_too(world: World) -> None:
    lines = b'{"task": "add", "args": {"x": 1}}\n\n{"task": \n{"task": "nothing"}\n'
    answer = world.post("/api/tasks/batch", content=lines, headers={"Content-Type": "application/x-ndjson"}).json()
    assert [each["status"] for each in answer["items"]] == ["pending", 422, "pending"]
    assert "Line 3" in answer["items"][1]["detail"]


def test_a_repeated_batch_gives_the_same_runs(world: World) -> None:
    items = [{"task": "add", "args": {"x": number}} for number in range(3)]
    first, second = (batch(world, items, headers={"Idempotency-Key": "b"}).json() for _ in range(2))
    assert first == second
    assert world.count(TaskRun) == 3
    other = batch(world, [{"task": "add", "args": {"x": 9}}], headers={"Idempotency-Key": "b"}).json()
    assert other["items"][0]["status"] == 422


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{}", "application/json", 422),
        (b"[]", "application/json", 422),
        (b"[1", "application/json", 400),
        (b"[]", "text/plain", 415),
        (b"[" + b"1," * 10_000 + b"1]", "application/json", 413),
        (b" " * (8 * 2**20 + 1), "application/json", 413),
    ],
)
def test_what_is_no_batch_is_refused(world: World, content: bytes, kind: str, status: int) -> None:
    answer = world.post("/api/tasks/batch", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert world.count(TaskRun) == 0


# for admins


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[("POST", f"/api/{what}/{verb}") for what in ("queues/default", "task-types/add", "tenants/acme") for verb in ("pause", "resume")],
        *[("POST", f"/api/schedules/periodic_sync/{verb}") for verb in ("run", "pause", "resume")],
        ("GET", "/api/pauses"),
        ("GET", "/api/limits"),
        ("PUT", "/api/limits/host/imap.test"),
        ("DELETE", "/api/limits/host/imap.test"),
    ],
)
def test_what_concerns_every_tenant_is_for_admins(world: World, method: str, path: str) -> None:
    for key, headers in ((world.acme.key, {}), (world.admin_key, {"X-Tenant-Id": "acme"})):
        answer = world.call(method, path, key, json={"concurrency": 1}, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:mailroom:problem:tenant"), answer.text


def test_queues_tasks_and_tenants_are_paused_and_resumed(world: World) -> None:
    for kind, path, name in (
        ("queue", "queues/default", "default"),
        ("task", "task-types/add", "add"),
        ("tenant", "tenants/acme", world.acme.tenant_id),
    ):
        assert world.post(f"/api/{path}/pause", world.admin_key).json() == {"kind": kind, "name": name, "isPaused": True}
    paused = world.get("/api/pauses", world.admin_key).json()["items"]
    assert {(each["kind"], each["name"], each["tenant"]) for each in paused} == {
        ("queue", "default", None),
        ("task", "add", None),
        ("tenant", world.acme.tenant_id, "acme"),
    }
    assert world.get(f"/api/tasks/{world.add()}").json()["waitingFor"] == "pause"
    assert [each["name"] for each in world.get("/api/queues").json()["items"] if each["isPaused"]] == ["default"]
    for path in ("queues/default", "task-types/add", "tenants/acme"):
        assert world.post(f"/api/{path}/resume", world.admin_key).json()["isPaused"] is False
    assert world.get("/api/pauses", world.admin_key).json()["items"] == []
    for path in ("queues/defualt", "task-types/ad", "tenants/acne"):
        assert world.post(f"/api/{path}/pause", world.admin_key).status_code == 404


def test_limits_are_set_listed_and_removed(world: World) -> None:
    assert world.call("PUT", "/api/limits/tenant/acme", world.admin_key, json={"concurrency": 2, "perMinute": 60}).status_code == 200
    assert world.call("PUT", "/api/limits/host/imap.test", world.admin_key, json={"concurrency": 1}).status_code == 200
    found = {each["kind"]: each for each in world.get("/api/limits", world.admin_key).json()["items"]}
    assert (found["tenant"]["tenant"], found["tenant"]["perMinute"], found["host"]["perMinute"]) == ("acme", 60, None)
    for bad in ({}, {"concurrency": 0}, {"concurrency": "2"}):
        assert world.call("PUT", "/api/limits/host/x", world.admin_key, json=bad).status_code == 422
    assert world.call("DELETE", "/api/limits/tenant/acme", world.admin_key).status_code == 204
    assert world.call("DELETE", "/api/limits/tenant/acme", world.admin_key).status_code == 404
    assert world.call("PUT", "/api/limits/queue/default", world.admin_key, json={"concurrency": 1}).status_code == 422


def test_a_schedule_is_started_paused_and_resumed(world: World) -> None:
    def tick() -> None:
        """Tick."""

    task(queue=Queue.PERIODIC, periodic=cron("* * * * *"))(tick)
    with world.system() as session:
        Schedules(session).declare({"tick": Declared("*/5 * * * *", "Europe/Berlin")}, now())
    started = world.post("/api/schedules/tick/run", world.admin_key)
    assert (started.status_code, started.json()["queue"]) == (202, "periodic")
    assert world.post("/api/schedules/tick/pause", world.admin_key).json() == {"task": "tick", "isPaused": True}
    shown = world.get("/api/schedules").json()["items"][0]
    assert (shown["isPaused"], shown["nextTickAt"], shown["timezone"]) == (True, None, "Europe/Berlin")
    assert world.post("/api/schedules/tick/resume", world.admin_key).json()["isPaused"] is False
    with world.system() as session:
        Schedules(session).tick("tick", now(), started.json()["taskId"])
    shown = world.get("/api/schedules", world.admin_key).json()["items"][0]
    assert 0 < (datetime.fromisoformat(shown["nextTickAt"]) - now()).total_seconds() <= 300
    assert (shown["lastTaskId"], shown["lastState"], shown["catchUp"], shown["overlap"]) == (
        started.json()["taskId"], "PENDING", "once", "allow",
    )  # fmt: skip
    foreign = world.get("/api/schedules").json()["items"][0]
    assert (foreign["lastTaskId"], foreign["lastTickAt"]) == (None, shown["lastTickAt"])
    for verb in ("run", "pause", "resume"):
        assert world.post(f"/api/schedules/add/{verb}", world.admin_key).status_code == 404


def test_the_tasks_there_are_are_told(world: World) -> None:
    found = {each["task"]: each for each in world.get("/api/task-types").json()["items"]}
    assert (found["add"]["queue"], found["add"]["maxAttempts"], found["add"]["description"]) == ("default", 4, "Add two numbers.")


def test_lists_can_be_narrowed_to_what_runs_wait_for(world: World) -> None:
    due = world.add()
    later = world.post("/api/tasks", json={"task": "add", "args": {"x": 1}, "options": {"countdown": 60}}).json()["taskId"]
    for waits, found in (("queue,broker", [due]), ("eta", [later]), ("eta,queue", [later, due])):
        assert [item["taskId"] for item in world.get(f"/api/tasks?waitingFor={waits}").json()["items"]] == found
    assert world.get("/api/tasks?waitingFor=godot").status_code == 422


# streams


def taken(stream: AsyncIterator[str], number: int, between: Any = None) -> list[tuple[str, Any]]:
    """The first so many events; `between` happens after each."""

    async def collect() -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        async for text in stream:
            for event in text.split("\n\n"):
                if event.startswith("event: "):
                    name, data = event.removeprefix("event: ").split("\ndata: ")
                    found.append((name, json.loads(data)))
            if len(found) >= number:
                break
            if between is not None and found:
                await asyncio.to_thread(between, len(found))
        return found

    return asyncio.run(asyncio.wait_for(collect(), 20))


def request_of(world: World) -> Any:
    return SimpleNamespace(app=world.app)


def acting_of(world: World) -> Acting:
    identity = Identity(world.acme.tenant_id)
    return Acting(identity, Caller(identity, "", is_admin=False, tenant_name="acme"), world.engine)


def test_a_run_is_followed_to_its_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "EVERY_SECONDS", 0.02)
    monkeypatch.setattr(events, "REST_FACTOR", 0)
    run_id = world.add()
    steps = [STARTED, {"ending": "revoke"}, {"state": "REVOKED", "ending": None}]

    def step(seen: int) -> None:
        if seen <= len(steps):
            world.set_run(run_id, **steps[seen - 1])

    def look() -> Any:
        return {"run": world.get(f"/api/tasks/{run_id}").json()}

    found = taken(event_routes._run_events(request_of(world), "key", look), 5, step)
    assert [name for name, _ in found] == ["run", "run", "run", "run", "end"]
    assert [data["state"] for _, data in found[:4]] == ["PENDING", "STARTED", "STARTED", "REVOKED"]
    assert [data["revokeRequested"] for _, data in found[:4]] == [False, False, True, False]
    world.set_run(run_id, state="SUCCESS")
    answer = world.get(f"/api/tasks/{run_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("event: end\ndata: {}\n\n")
    assert world.get(f"/api/tasks/{run_id}/events", world.globex.key).status_code == 404


def test_all_runs_are_followed_and_no_foreign_one_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "EVERY_SECONDS", 0.02)
    monkeypatch.setattr(events, "REST_FACTOR", 0)
    monkeypatch.setattr(event_routes, "NEWEST", 1)
    first = world.add()
    world.add(world.globex.key)
    made: list[str] = []

    def step(_seen: int) -> None:
        if not made:
            made.append(world.add())  # pushes the first one off the list of the newest
        else:
            world.set_run(first, state="SUCCESS", waiting_for=None, publish_at=None)

    found = taken(event_routes._all_events(request_of(world), acting_of(world), RunFilter()), 6, step)
    runs = [(data["taskId"], data["state"]) for name, data in found if name == "run"]
    assert runs == [(first, "PENDING"), (made[0], "PENDING"), (first, "SUCCESS")]
    assert {name for name, _ in found} == {"run", "queues"}


def test_a_key_that_was_revoked_ends_its_streams(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_routes, "KEY_SECONDS", -1.0)
    monkeypatch.setattr(callers, "FRESH_SECONDS", 0.0)
    headers = [(b"authorization", f"Bearer {world.ann_key}".encode())]
    request = Request({"type": "http", "app": world.app, "headers": headers, "client": None, "state": {}})

    async def lasting() -> AsyncIterator[str]:
        yield events.event_of("hello", {})
        yield events.event_of("hello", {})
        with world.system() as session:
            ApiKeys(session).revoke(world.ann_key.split("_")[1])
        while True:
            yield ""

    said = [name for name, _ in taken(event_routes._while_welcome(request, lasting()), 3)]
    assert said == ["hello", "hello", "goodbye"]


def test_only_the_scope_and_no_header_makes_an_operator(world: World) -> None:
    assert world.get("/api/tasks", None, headers={"mailroom.operator": "True"}).status_code == 401
