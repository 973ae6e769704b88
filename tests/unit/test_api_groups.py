"""Chains and groups over HTTP: started whole or not at all, looked at, revoked as a whole, and whose they are."""

from __future__ import annotations

from typing import Any

import pytest

from core.clock import now
from core.ids import new_id
from storage.models import TaskRun
from storage.repositories.groups import Groups
from storage.repositories.runs import TaskRuns
from tests.unit.api_world import World, shared_world, world

__all__ = ["shared_world", "world"]
ADD = {"task": "add", "args": {"x": 1}}
NOTHING = {"task": "nothing"}
Body = dict[str, Any]


def make_chain(world: World, *steps: Body, headers: dict[str, str] | None = None, **more: Any) -> Body:
    answer = world.post("/api/chains", json={"steps": list(steps) or [ADD, ADD, NOTHING], **more}, headers=headers or {})
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == (answer.json()["href"] or answer.json()["items"][-1]["href"])
    return dict(answer.json())


def make_group(world: World, *members: Any, headers: dict[str, str] | None = None, **more: Any) -> Body:
    answer = world.post("/api/groups", json={"members": list(members), "then": NOTHING, **more}, headers=headers or {})
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == answer.json()["href"]
    return dict(answer.json())


def ids(items: list[Any]) -> list[str]:
    return [run["taskId"] for item in items for run in (item if isinstance(item, list) else [item])]


def rows(world: World) -> dict[str, TaskRun]:
    with world.system() as session:
        return {run.id: run for run in session.query(TaskRun)}


def set_all(world: World, run_ids: list[str], state: str, **columns: Any) -> None:
    for run_id in run_ids:
        world.set_run(run_id, state=state, waiting_for=None, publish_at=None, finished_at=now(), **columns)


# Chains.


def test_a_chain_is_recorded_each_step_behind_the_one_before(world: World) -> None:
    delayed = {**ADD, "options": {"countdown": 60, "priority": "high"}}
    made = make_chain(world, ADD, delayed, NOTHING)
    first, second, third = ids(made["items"])
    found = rows(world)
    assert [found[run_id].after_run_id for run_id in (first, second, third)] == [None, first, second]
    assert {run.group_id for run in found.values()} == {made["chainId"]}
    assert (found[second].delay, found[second].priority) == (60, 2)
    assert made["items"][1] == {
        "taskId": second, "status": "pending", "state": "PENDING", "queue": "default", "href": f"/api/tasks/{second}",
    }  # fmt: skip
    shown = world.get(made["href"]).json()
    assert (ids(shown["items"]), shown["progress"], shown["ready"]) == ([first, second, third], {"done": 0, "total": 3}, False)
    assert [run["waitingFor"] for run in shown["items"]] == ["queue", "run", "run"]
    set_all(world, [first, second, third], "SUCCESS")
    assert world.get(made["href"]).json()["successful"]
    assert ids(world.get(f"/api/tasks?group={made['chainId']}").json()["items"]) == [third, second, first]


def test_a_chain_follows_a_run_that_there_is(world: World) -> None:
    made = make_chain(world, ADD, after=(run_id := world.add()))
    assert rows(world)[ids(made["items"])[0]].after_run_id == run_id
    assert len(world.get(made["href"]).json()["items"]) == 1
    for unknown in (new_id(), "x", world.add(world.globex.key)):
        answer = world.post("/api/chains", json={"steps": [ADD], "after": unknown})
        assert (answer.status_code, answer.json()["detail"]) == (404, "after: There is no task run with this id.")


def test_a_chain_asked_for_twice_under_its_unique_keys_is_the_one_that_lives(world: World) -> None:
    steps = [{**ADD, "options": {"uniqueKey": key}} for key in ("a", "b")]
    made, again = make_chain(world, *steps), make_chain(world, *steps)
    assert again == made
    other = make_chain(world, steps[0], NOTHING)
    assert ids(other["items"])[0] == ids(made["items"])[0]
    assert ids(world.get(other["href"]).json()["items"]) == ids(other["items"])[1:]  # the first step is the other's
    answer = world.post("/api/chains", json={"steps": [NOTHING, steps[1]]})
    assert (answer.status_code, answer.json()["detail"]) == (409, "steps.1: Another run of add holds the key 'b'.")
    held = {**ADD, "options": {"uniqueKey": "alone"}}
    world.post("/api/tasks", json=held)
    alone = make_chain(world, held)
    assert (alone["chainId"], alone["href"], len(alone["items"])) == (None, None, 1)


def test_a_chain_is_revoked_as_a_whole(world: World) -> None:
    made = make_chain(world)
    first, second, _ = ids(made["items"])
    set_all(world, [first], "SUCCESS")
    world.set_run(second, state="STARTED", waiting_for=None, started_at=now(), worker_id="w")
    ended = world.post(f"{made['href']}/revoke", json={"terminate": True}).json()
    assert [(run["state"], run["ending"]) for run in ended["items"]] == [("SUCCESS", None), ("STARTED", "terminate"), ("REVOKED", None)]
    assert world.post(f"{made['href']}/revoke").status_code == 200


# Groups.


def test_a_group_is_recorded_with_its_chains_and_its_callback(world: World) -> None:
    made = make_group(world, ADD, [ADD, NOTHING], {"task": "add", "args": {"x": 3}})
    single, chained, last = made["items"]
    found = rows(world)
    assert [found[run_id].args.get("x") for run_id in ids(made["items"])] == [1, 1, None, 3]
    assert found[chained[1]["taskId"]].after_run_id == chained[0]["taskId"]
    assert {found[run_id].group_id for run_id in ids(made["items"])} == {made["groupId"]}
    assert found[made["callback"]["taskId"]].after_group_id == made["groupId"]
    shown = world.get(made["href"]).json()
    assert (shown["members"], shown["states"]["PENDING"], shown["progress"], shown["ready"]) == (4, 4, {"done": 0, "total": 4}, False)
    assert (shown["callback"]["taskId"], shown["finishedAt"]) == (made["callback"]["taskId"], None)
    set_all(world, [single["taskId"], last["taskId"]], "SUCCESS")
    set_all(world, ids([chained]), "FAILURE")
    shown = world.get(made["href"]).json()
    assert (shown["ready"], shown["successful"], shown["states"]["FAILURE"], shown["progress"]["done"]) == (True, False, 2, 4)
    assert shown["finishedAt"] is not None


def test_members_are_paged_in_their_order(world: World) -> None:
    made = make_group(world, *[{"task": "add", "args": {"x": number}} for number in range(7)])
    wanted = ids(made["items"])
    first = world.get(f"{made['href']}/members?limit=4").json()
    second = world.get(f"{made['href']}/members?limit=4&cursor={first['nextCursor']}").json()
    assert ids(first["items"] + second["items"]) == wanted
    assert second["nextCursor"] is None
    set_all(world, wanted[2:4], "FAILURE")
    assert ids(world.get(f"{made['href']}/members?state=failure").json()["items"]) == wanted[2:4]
    newest = world.get(f"/api/tasks?group={made['groupId']}&limit=3").json()
    assert ids(newest["items"]) == wanted[:3:-1]
    assert ids(world.get(f"/api/tasks?group={made['groupId']}&cursor={newest['nextCursor']}").json()["items"]) == wanted[3::-1]
    assert world.get("/api/tasks?group=x").json()["items"] == []
    assert world.get(f"{made['href']}/members?cursor=x").status_code == 422


def test_an_empty_group_is_one_and_has_nothing_that_could_follow(world: World) -> None:
    made = make_group(world)
    shown = world.get(made["href"]).json()
    assert (shown["members"], shown["ready"], shown["callback"]["waitingFor"]) == (0, True, "run")
    answer = world.post("/api/groups", json={"members": [], "then": NOTHING, "after": world.add()})
    assert (answer.status_code, answer.json()["detail"][:6]) == (422, "after:")


def test_a_group_follows_a_run(world: World) -> None:
    made = make_group(world, ADD, [ADD, ADD], after=(run_id := world.add()))
    found = rows(world)
    after = [found[each].after_run_id for each in ids(made["items"])]
    assert after == [run_id, run_id, ids(made["items"])[1]]


@pytest.mark.parametrize(("keeps", "callback"), [(False, "REVOKED"), (True, "PENDING")])
def test_a_group_is_revoked_as_a_whole(world: World, keeps: bool, callback: str) -> None:
    made = make_group(world, ADD, ADD, ADD)
    ended, running, waiting = ids(made["items"])
    set_all(world, [ended], "SUCCESS")
    world.set_run(running, state="STARTED", waiting_for=None, started_at=now(), worker_id="w")
    done = world.post(f"{made['href']}/revoke", json={"keepCallback": keeps}).json()
    assert (done["revoked"], done["marked"], done["callback"]["state"]) == (1 if keeps else 2, 1, callback)
    assert done["states"] == {"PENDING": 0, "STARTED": 1, "RETRY": 0, "SUCCESS": 1, "FAILURE": 0, "REVOKED": 1}
    assert rows(world)[running].ending == "revoke"
    again = world.post(f"{made['href']}/revoke", json={"keepCallback": keeps, "terminate": True}).json()
    assert (again["revoked"], again["marked"]) == (0, 1)
    assert rows(world)[waiting].reason == "revoked"


def test_a_callback_that_runs_is_marked_and_one_that_ends_meanwhile_is_let_be(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_group(world, ADD)
    callback = made["callback"]["taskId"]
    world.set_run(callback, state="STARTED", waiting_for=None, started_at=now(), worker_id="w")
    assert world.post(f"{made['href']}/revoke").json()["marked"] == 1
    set_all(world, [callback], "SUCCESS")
    monkeypatch.setattr(Groups, "live_callbacks", lambda *_: [callback])
    assert world.post(f"{made['href']}/revoke").json()["callback"]["state"] == "SUCCESS"


# What is wrong.


BAD: dict[str, tuple[str, Body, int, str]] = {
    "no steps": ("chains", {"steps": []}, 422, "steps is wrong: list should have at least 1 item"),
    "no body": ("chains", {}, 422, "steps is required."),
    "too long": ("chains", {"steps": [ADD] * 101}, 422, "steps.100: a chain has at most 100 steps; this one has 101."),
    "step, no task": ("chains", {"steps": [ADD, {"args": {}}]}, 422, "steps.1.task is required."),
    "step, unknown": ("chains", {"steps": [ADD, {"task": "ad"}]}, 404, "steps.1: There is no task named 'ad'. Known tasks: add,"),
    "step, argument": ("chains", {"steps": [{"task": "add"}]}, 422, "steps.0: add needs the argument x."),
    "step, option": ("chains", {"steps": [{**ADD, "options": {"eat": 1}}]}, 422, "steps.0.options.eat is not known; remove it."),
    "step, no object": ("chains", {"steps": [3]}, 422, "steps.0 is wrong: a task is an object with task, args and options."),
    "no callback": ("groups", {"members": []}, 422, "then is required."),
    "callback": ("groups", {"members": [], "then": {"task": "add", "args": {"x": "1"}}}, 422, "then: add: the argument x is wrong:"),
    "member": ("groups", {"members": [ADD, {"task": "nothing", "args": {"x": 1}}], "then": NOTHING}, 422, "members.1: nothing has no"),
    "step of a member": ("groups", {"members": [[ADD, {}]], "then": NOTHING}, 422, "members.0.1.task is required."),
    "empty member": ("groups", {"members": [ADD, []], "then": NOTHING}, 422, "members.1: a chain has one step at least."),
    "long member": ("groups", {"members": [[ADD] * 101], "then": NOTHING}, 422, "members.0.100: a chain has at most 100 steps"),
    "foreign account": (
        "groups", {"members": [{"task": "sync_emails", "args": {"email_client_id": new_id()}}], "then": NOTHING},
        404, "members.0: email_client_id: there is no email client with this id.",
    ),
    "two owners": ("chains", {"steps": [ADD], "tenant_id": "a", "user_id": 3}, 422, "user_id is wrong:"),
    "not text": ("chains", {"steps": [{"task": "add", "args": {"x": 1, "tenant_id": 3}}]}, 422, "steps.0: tenant_id and user_id are ids"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_told_with_its_place_and_leaves_no_row(shared_world: World, name: str) -> None:
    noun, body, status, sentence = BAD[name]
    answer = shared_world.post(f"/api/{noun}", json=body)
    assert (answer.status_code, answer.json()["detail"][: len(sentence)]) == (status, sentence)
    assert shared_world.count(TaskRun) == 0


def test_every_wrong_place_is_pointed_at(world: World) -> None:
    answer = world.post("/api/groups", json={"members": [{}, [ADD, {"task": 3}]], "then": {}})
    assert [each["pointer"] for each in answer.json()["errors"]] == ["#/body/members/0/task", "#/body/members/1/1/task", "#/body/then/task"]


def test_too_many_runs_are_413(world: World) -> None:
    answer = world.post("/api/groups", json={"members": [[ADD] * 100] * 100 + [ADD], "then": NOTHING})
    assert (answer.status_code, answer.json()["detail"]) == (413, "A group has at most 10,000 runs; this one has 10,001.")


def test_a_key_that_is_held_refuses_the_whole_group(world: World) -> None:
    keyed = {**ADD, "options": {"uniqueKey": "k"}}
    answer = world.post("/api/groups", json={"members": [ADD, keyed, [ADD, keyed]], "then": NOTHING})
    assert (answer.status_code, answer.json()["detail"]) == (409, "members.2.1: Another run of add holds the key 'k'.")
    assert world.count(TaskRun) == 0


# The same request again.


def test_an_idempotency_key_gives_the_same_group_or_chain(world: World) -> None:
    key = {"Idempotency-Key": '"once"'}
    made = make_group(world, ADD, [ADD, NOTHING], headers=key)
    set_all(world, [made["items"][0]["taskId"]], "SUCCESS")
    again = make_group(world, ADD, [ADD, NOTHING], headers=key)
    assert (again["groupId"], ids(again["items"]), again["items"][0]["state"]) == (made["groupId"], ids(made["items"]), "SUCCESS")
    chain_key = {"Idempotency-Key": "chain"}
    held = {**ADD, "options": {"uniqueKey": "k"}}
    world.post("/api/tasks", json=held)
    for steps in ([ADD], [ADD, ADD, NOTHING]):
        chain_key = {"Idempotency-Key": f"chain{len(steps)}"}
        assert make_chain(world, *steps, headers=chain_key) == make_chain(world, *steps, headers=chain_key)
    shared = {"Idempotency-Key": "shared"}
    assert make_chain(world, held, ADD, headers=shared) == make_chain(world, held, ADD, headers=shared)
    for path, body in (
        ("/api/groups", {"members": [ADD], "then": NOTHING}),
        ("/api/groups", {"members": [[ADD], ADD, NOTHING], "then": NOTHING}),
        ("/api/chains", {"steps": [NOTHING]}),
        ("/api/tasks", NOTHING),
    ):
        answer = world.post(path, json=body, headers=key)
        assert (answer.status_code, answer.json()["detail"][:36]) == (422, "This Idempotency-Key was used for a ")
    with world.system() as session:
        session.delete(session.get_one(TaskRun, made["items"][0]["taskId"]))
    answer = world.post("/api/groups", json={"members": [ADD, [ADD, NOTHING]], "then": NOTHING}, headers=key)
    assert answer.status_code == 409


@pytest.mark.parametrize("path", ["/api/groups", "/api/chains"])
def test_the_same_request_at_the_same_time_is_answered_by_the_one_that_came_first(
    world: World, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    body = {"members": [ADD], "then": NOTHING} if path == "/api/groups" else {"steps": [ADD, NOTHING]}
    key = {"Idempotency-Key": "once"}
    first = world.post(path, json=body, headers=key).json()
    look, looks = TaskRuns.by_idempotency_key, []

    def too_early(*given: Any) -> str | None:
        looks.append(given)
        return None if len(looks) == 1 else look(*given)

    monkeypatch.setattr(TaskRuns, "by_idempotency_key", too_early)
    count = world.count(TaskRun)
    assert world.post(path, json=body, headers=key).json() == first
    assert world.count(TaskRun) == count


# Whose they are.


def test_chains_and_groups_of_others_are_unknown(world: World) -> None:
    group, chain = make_group(world, ADD, ADD), make_chain(world)
    before = {run_id: run.state for run_id, run in rows(world).items()}
    for method, path in (
        ("GET", group["href"]), ("GET", f"{group['href']}/members"), ("POST", f"{group['href']}/revoke"),
        ("GET", chain["href"]), ("POST", f"{chain['href']}/revoke"),
    ):  # fmt: skip
        for key in (world.globex.key, world.ann_key):
            foreign = world.call(method, path, key)
            unknown = world.call(method, path.replace(path.split("/")[3], new_id()), key)
            malformed = world.call(method, path.replace(path.split("/")[3], "x"), key)
            assert foreign.status_code == unknown.status_code == malformed.status_code == 404, (method, path)
            assert foreign.json()["detail"] == unknown.json()["detail"] == malformed.json()["detail"]
    assert {run_id: run.state for run_id, run in rows(world).items()} == before
    assert world.get(f"/api/tasks?group={group['groupId']}", world.globex.key).json()["items"] == []
    assert world.get(f"/api/chains/{group['groupId']}").status_code == 404
    assert world.get(chain["href"], world.admin_key).status_code == 200


def test_tenant_and_user_beside_the_tasks_must_be_the_key_s_and_the_same(world: World) -> None:
    acme, globex = world.acme.tenant_id, world.globex.tenant_id
    made = make_chain(world, {**ADD, "tenant_id": acme}, {"task": "add", "args": {"x": 1, "user_id": world.acme.user_id}}, tenant_id=acme)
    assert {run.user_id for run in rows(world).values()} == {world.acme.user_id}
    assert world.get(made["href"], world.ann_key).status_code == 200
    answer = world.post("/api/chains", json={"steps": [{**ADD, "tenant_id": acme}, {**ADD, "tenant_id": globex}]})
    assert (answer.status_code, answer.json()["detail"]) == (422, "steps.1: a chain or a group belongs to one tenant and one user.")
    assert world.post("/api/chains", json={"steps": [ADD], "tenant_id": globex}).status_code == 403
    refused = world.post("/api/chains", world.admin_key, json={"steps": [ADD, ADD]})
    assert (refused.status_code, refused.json()["detail"][:9]) == (403, "steps.0: ")
    taken = world.post("/api/chains", world.admin_key, json={"steps": [ADD], "tenant_id": globex})
    assert taken.status_code == 202
    assert world.get(taken.json()["href"], world.globex.key).status_code == 200
