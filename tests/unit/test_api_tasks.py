"""Enqueueing, looking, listing, revoking and replaying over HTTP, and every bad input that must leave nothing behind."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.clock import now
from storage.models import TaskAttempt, TaskRun
from tests.unit.api_world import World, shared_world, world

__all__ = ["shared_world", "world"]


def test_a_task_is_accepted_recorded_and_published(world: World) -> None:
    answer = world.post("/api/tasks", json={"task": "add", "args": {"x": 2}}, headers={"X-Request-Id": "req-1"})
    assert answer.status_code == 202
    body = answer.json()
    assert body == {
        "taskId": body["taskId"],
        "status": "pending",
        "state": "PENDING",
        "queue": "default",
        "href": f"/api/tasks/{body['taskId']}",
    }
    assert answer.headers["location"] == body["href"]
    assert answer.headers["x-request-id"] == "req-1"
    run = world.get(body["href"]).json()
    assert run["requestId"] == "req-1"  # bound to the logs, and so stored in the run
    world.broker.close()
    assert world.stub.published == 1


def test_one_run_has_exactly_the_documented_shape(world: World) -> None:
    run = world.get(f"/api/tasks/{world.add()}").json()
    expected = (
        "taskId task queue state status waitingFor ready successful result info error progress attempts createdAt startedAt finishedAt"
    )
    assert set(run) == {*expected.split(), "requestId", "revokeRequested", "ending"}
    assert (run["state"], run["status"], run["waitingFor"], run["ready"], run["successful"]) == (
        "PENDING",
        "pending",
        "queue",
        False,
        False,
    )
    assert run["createdAt"].endswith("Z")
    assert run["error"] is None
    assert run["attempts"] == []


def test_a_failed_run_tells_type_text_and_reason_and_its_attempts(world: World) -> None:
    run_id = world.add()
    moment = now()
    world.set_run(run_id, state="FAILURE", error_type="ValueError", error="No.", reason="permanent", finished_at=moment)
    with world.system() as session:
        session.add(
            TaskAttempt(
                run_id=run_id,
                fence=1,
                tenant_id=world.acme.tenant_id,
                attempt=1,
                state="FAILURE",
                worker_id="w1",
                error_type="ValueError",
                error="No.",
                started_at=moment,
                finished_at=moment,
                duration_ms=12,
            )
        )
    run = world.get(f"/api/tasks/{run_id}").json()
    assert run["ready"] is True
    assert run["info"] == "No."
    assert run["error"] == {"type": "ValueError", "message": "No.", "reason": "permanent"}
    (attempt,) = run["attempts"]
    assert set(attempt) == {"attempt", "state", "worker", "startedAt", "finishedAt", "durationMs", "error"}
    assert (attempt["worker"], attempt["durationMs"], attempt["error"]["message"]) == ("w1", 12, "No.")


def test_a_successful_run_gives_its_result(world: World) -> None:
    run_id = world.add()
    world.set_run(run_id, state="SUCCESS", result={"total_sum": 2}, finished_at=now())
    run = world.get(f"/api/tasks/{run_id}").json()
    assert run["successful"] is True
    assert run["result"] == run["info"] == {"total_sum": 2}


def test_options_reach_the_run(world: World) -> None:
    eta = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    options = {"eta": eta.isoformat(), "expires": 3600, "priority": "high", "uniqueKey": "k"}
    run_id = world.post("/api/tasks", json={"task": "add", "args": {"x": 1}, "options": options}).json()["taskId"]
    with world.system() as session:
        run = session.get(TaskRun, run_id)
        assert (run.eta, run.priority, run.unique_key, run.waiting_for) == (eta, 2, "k", "eta")
        assert timedelta(minutes=59) < run.expires_at - now() < timedelta(minutes=61)
    again = world.post("/api/tasks", json={"task": "add", "args": {"x": 5}, "options": {"uniqueKey": "k"}})
    assert again.json()["taskId"] == run_id  # a live duplicate returns the run that exists


BAD: list[tuple[str, dict[str, Any], int, str]] = [
    ("unknown task", {"task": "nonsense"}, 404, "no task named 'nonsense'"),
    ("missing argument", {"task": "add", "args": {}}, 422, "needs the argument x"),
    ("extra argument", {"task": "add", "args": {"x": 1, "z": 1}}, 422, "no argument 'z'"),
    ("wrong type", {"task": "add", "args": {"x": "1"}}, 422, "argument x is wrong"),
    ("boolean for a number", {"task": "add", "args": {"x": True}}, 422, "argument x is wrong"),
    ("no task", {"args": {}}, 422, "task is required"),
    ("args no object", {"task": "add", "args": [1]}, 422, "args is wrong"),
    ("unknown field", {"task": "add", "args": {"x": 1}, "kwargs": {}}, 422, "kwargs is not known"),
    ("unknown option", {"task": "add", "args": {"x": 1}, "options": {"retries": 9}}, 422, "options.retries is not known"),
    ("negative countdown", {"task": "add", "args": {"x": 1}, "options": {"countdown": -1}}, 422, "countdown is wrong"),
    ("endless countdown", {"task": "add", "args": {"x": 1}, "options": {"countdown": 1e300}}, 422, "countdown is wrong"),
    ("text for a countdown", {"task": "add", "args": {"x": 1}, "options": {"countdown": "5"}}, 422, "countdown"),
    ("naive eta", {"task": "add", "args": {"x": 1}, "options": {"eta": "2030-01-01T00:00:00"}}, 422, "eta is wrong"),
    ("eta before time", {"task": "add", "args": {"x": 1}, "options": {"eta": "0001-01-01T00:00:00+14:00"}}, 422, "eta is wrong"),
    ("unknown priority", {"task": "add", "args": {"x": 1}, "options": {"priority": "urgent"}}, 422, "priority is wrong"),
    ("number for a tenant", {"task": "add", "args": {"x": 1, "tenant_id": 7}}, 422, "ids in text form"),
    ("foreign tenant", {"task": "add", "args": {"x": 1, "tenant_id": "globex"}}, 403, "may not act for that tenant"),
    ("foreign user", {"task": "add", "args": {"x": 1, "user_id": "Gus"}}, 403, "no active user"),
    ("an id that is none", {"task": "sync_emails", "args": {"email_client_id": "7"}}, 404, "no email client"),
    ("NUL", {"task": "send_email", "args": {"email_client_id": "\x00", "to": []}}, 422, "NUL"),
    ("half a surrogate", {"task": "send_email", "args": {"email_client_id": "\ud800", "to": []}}, 422, "surrogate"),
    ("more than 64 bits", {"task": "add", "args": {"x": 2**70}}, 422, "64 bits"),
]


@pytest.mark.parametrize(("name", "body", "status", "sentence"), BAD, ids=[case[0] for case in BAD])
def test_bad_input_is_refused_in_one_sentence_and_leaves_no_row(
    shared_world: World, name: str, body: dict[str, Any], status: int, sentence: str
) -> None:
    answer = shared_world.post("/api/tasks", content=json.dumps(body), headers={"Content-Type": "application/json"})
    problem = answer.json()
    assert answer.status_code == status, problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert sentence in problem["detail"]
    assert problem["status"] == status
    assert problem["instance"] == "/api/tasks"
    assert problem["requestId"] == answer.headers["x-request-id"]
    assert shared_world.count(TaskRun) == 0


RAW = [
    ("malformed", b'{"task": ', "application/json", 400),
    ("not UTF-8", b'{"task": "\xff"}', "application/json", 400),
    ("bottomless", b"[" * 100_000, "application/json", 400),
    ("deep", b'{"task":"add","args":' + b"[" * 500 + b"]" * 500 + b"}", "application/json", 422),
    ("NaN", b'{"task":"add","args":{"x":NaN}}', "application/json", 422),
    ("not an object", b"[1]", "application/json", 422),
    ("null", b"null", "application/json", 422),
    ("nothing", b"", "application/json", 422),
    ("a form", b"task=add", "application/x-www-form-urlencoded", 415),
    ("no type", b"{}", "", 415),
]


@pytest.mark.parametrize(("name", "content", "kind", "status"), RAW, ids=[case[0] for case in RAW])
def test_a_bad_body_is_a_problem(shared_world: World, name: str, content: bytes, kind: str, status: int) -> None:
    answer = shared_world.post("/api/tasks", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"].endswith(".")
    assert shared_world.count(TaskRun) == 0


def test_a_foreign_account_is_as_unknown_as_none(world: World) -> None:
    answer = world.post("/api/email/sync", json={"email_client_id": world.globex.client_id})
    assert answer.status_code == 404
    assert world.count(TaskRun) == 0


@pytest.mark.parametrize("declares_length", [True, False])
def test_an_oversized_body_is_refused_before_it_is_parsed(world: World, declares_length: bool) -> None:
    content = b'{"task": "' + b"x" * 2**20 + b'"}'
    answer = world.post("/api/tasks", content=content if declares_length else iter([content]), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["requestId"] == answer.headers["x-request-id"]
    assert world.count(TaskRun) == 0


def test_tenant_and_user_beside_the_arguments_are_accepted_and_left_out(world: World) -> None:
    args = {"x": 1, "tenant_id": world.acme.tenant_id, "user_id": world.acme.user_id}
    answer = world.post("/api/tasks", json={"task": "add", "args": args})
    assert answer.status_code == 202
    with world.system() as session:
        run = session.get(TaskRun, answer.json()["taskId"])
        assert (run.args, run.user_id) == ({"x": 1, "y": 1}, world.acme.user_id)


def test_the_same_idempotency_key_gives_the_same_run(world: World) -> None:
    request: dict[str, Any] = {"json": {"task": "add", "args": {"x": 1}}, "headers": {"Idempotency-Key": "once"}}
    first, second = world.post("/api/tasks", **request), world.post("/api/tasks", **request)
    quoted = world.post("/api/tasks", json=request["json"], headers={"Idempotency-Key": '"once"'})
    assert first.json() == second.json() == quoted.json()
    assert world.count(TaskRun) == 1
    other = world.post("/api/tasks", json={"task": "add", "args": {"x": 2}}, headers={"Idempotency-Key": "once"})
    assert other.status_code == 422
    long = world.post("/api/tasks", json={"task": "add", "args": {"x": 2}}, headers={"Idempotency-Key": "k" * 256})
    assert long.status_code == 422
    assert world.count(TaskRun) == 1


def test_the_common_tasks_have_routes_of_their_own(world: World) -> None:
    account = world.acme.client_id
    assert world.post("/api/email/sync", json={"email_client_id": account}).json()["queue"] == "sync"
    assert world.post("/api/email/send", json={"email_client_id": account, "to": ["a@b.test"]}).json()["queue"] == "send"
    for path in ("/api/email/delete", "/api/email/spam-check"):
        assert world.post(path, json={"email_id": "1"}).status_code == 404  # until those tasks exist
    keyed: dict[str, Any] = {"json": {"email_client_id": account}, "headers": {"Idempotency-Key": "s"}}
    assert world.post("/api/email/sync", **keyed).json() == world.post("/api/email/sync", **keyed).json()


def test_lists_are_paged_by_cursor_newest_first(world: World) -> None:
    made = [world.add(x=number) for number in range(5)]
    seen: list[str] = []
    cursor = ""
    for size in (2, 2, 1):
        page = world.get(f"/api/tasks?limit=2&cursor={cursor}").json()
        assert len(page["items"]) == size
        seen += [item["taskId"] for item in page["items"]]
        cursor = page["nextCursor"]
    assert cursor is None
    assert seen == made[::-1]
    assert world.get("/api/tasks?limit=2&cursor=nonsense").status_code == 422
    assert world.get("/api/tasks?limit=0").status_code == 422
    assert world.get("/api/tasks?limit=201").status_code == 422


def test_lists_are_narrowed(world: World) -> None:
    run_id = world.add()
    world.post("/api/tasks", json={"task": "nothing"})
    world.set_run(run_id, state="FAILURE")

    def found(query: str) -> list[str]:
        return [item["task"] for item in world.get(f"/api/tasks?{query}").json()["items"]]

    assert found("state=failure,retry") == ["add"]
    assert found("task=nothing") == found("q=noth") == ["nothing"]
    assert found(f"q={run_id}") == ["add"]
    assert found("queue=sync") == []
    assert len(found("queue=default&state=&task=&q=")) == 2
    assert world.get("/api/tasks?state=WHAT").status_code == 422
    assert world.get("/api/tasks?q=a%00b").status_code == 422


def test_a_tenant_filter_is_for_admins_and_ones_own(world: World) -> None:
    world.add()
    world.add(world.globex.key)
    assert len(world.get("/api/tasks?tenant=globex", world.admin_key).json()["items"]) == 1
    assert len(world.get("/api/tasks", world.admin_key).json()["items"]) == 2
    assert len(world.get("/api/tasks?tenant=acme").json()["items"]) == 1
    assert world.get("/api/tasks?tenant=globex").status_code == 404
    assert world.get("/api/tasks?tenant=nobody", world.admin_key).status_code == 404


def test_revoke_and_replay(world: World) -> None:
    run_id = world.add()
    revoked = world.post(f"/api/tasks/{run_id}/revoke")
    assert (revoked.status_code, revoked.json()["state"]) == (200, "REVOKED")
    assert revoked.json()["error"]["reason"] == "revoked"
    assert world.post(f"/api/tasks/{run_id}/revoke").status_code == 200  # twice is fine
    replayed = world.post(f"/api/tasks/{run_id}/retry")
    assert (replayed.status_code, replayed.json()["state"]) == (202, "PENDING")
    assert world.post(f"/api/tasks/{run_id}/replay").status_code == 409
    world.set_run(run_id, state="SUCCESS")
    assert world.post(f"/api/tasks/{run_id}/revoke").status_code == 409


def test_wait_answers_as_soon_as_the_run_has_ended(world: World) -> None:
    run_id = world.add()
    timer = threading.Timer(0.3, lambda: world.set_run(run_id, state="SUCCESS", result=3))
    timer.start()
    began = time.monotonic()
    assert world.get(f"/api/tasks/{run_id}?wait=30").json()["result"] == 3
    assert time.monotonic() - began < 20
    timer.join()


def test_wait_ends_in_time_and_has_a_limit(world: World) -> None:
    run_id = world.add()
    assert world.get(f"/api/tasks/{run_id}?wait=0.3").json()["state"] == "PENDING"
    assert world.get(f"/api/tasks/{run_id}?wait=31").status_code == 422
    world.app.state.stopping.set()
    began = time.monotonic()
    world.get(f"/api/tasks/{run_id}?wait=30")
    assert time.monotonic() - began < 20


def test_without_the_database_it_is_503_with_retry_after(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.errors import UnavailableError

    def down(*_: object, **__: object) -> None:
        raise UnavailableError("The database cannot be reached; nothing was changed.", retry_after=5)

    monkeypatch.setattr("api.routes.tasks.enqueue_by_name", down)
    answer = world.post("/api/tasks", json={"task": "add", "args": {"x": 1}})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def test_brokers_down_is_still_accepted(world: World) -> None:
    world.stub.is_down = True
    assert world.add()
