"""The command about groups and chains: what it says, and what it ends."""

from __future__ import annotations

import json

from tests.unit.api_world import World, world
from tests.unit.test_api_groups import ADD, ids, make_chain, make_group, set_all
from tests.unit.test_cli_control import Invoke, invoke

__all__ = ["invoke", "world"]


def test_a_group_is_shown_with_its_members_and_its_callback(world: World, invoke: Invoke) -> None:
    made = make_group(world, ADD, ADD, ADD)
    members, callback = ids(made["items"]), made["callback"]["taskId"]
    set_all(world, members[:1], "FAILURE", error_type="E", error="It broke.", reason="permanent")
    shown = invoke("group", made["groupId"])
    assert "members    3: 2 pending, 1 failure\nended      1 of 3\n" in shown.stdout
    assert f"callback   {callback} nothing PENDING\n" in shown.stdout
    assert [line.split()[0] for line in shown.stdout.splitlines() if "add" in line] == members
    assert "permanent It broke." in shown.stdout
    assert invoke("group", made["groupId"], "--state", "failure").stdout.splitlines()[-1].split()[0] == members[0]
    assert "No member is in this state." in invoke("group", made["groupId"], "--state", "retry").stderr
    assert "The first 2; --limit shows more." in invoke("group", made["groupId"], "-n", "2").stderr
    told = json.loads(invoke("group", made["groupId"], "--json").stdout)
    assert (told["progress"], ids(told["items"])) == ({"done": 1, "total": 3}, members)
    assert invoke("--tenant", "globex", "group", made["groupId"]).exit_code in {1, 3}
    assert "It has no members." in invoke("group", make_group(world)["groupId"]).stderr


def test_a_group_and_a_chain_are_ended_as_a_whole(world: World, invoke: Invoke) -> None:
    made = make_group(world, ADD, ADD)
    refused = invoke("group", made["groupId"], "--revoke")
    assert (refused.exit_code, refused.stderr[:40]) == (1, "Revoke 2 members and the callback? Nothi")
    assert "revoked  3" in invoke("group", made["groupId"], "--revoke", "--yes").stdout
    assert "nothing to do" in invoke("group", made["groupId"], "--revoke", "--yes").stderr
    chain = make_chain(world)
    world.set_run(ids(chain["items"])[0], state="STARTED", waiting_for=None, publish_at=None, worker_id="w")
    ended = invoke("group", chain["chainId"], "--revoke", "-y")
    assert "revoked  2\nmarked   1" in ended.stdout
    assert "Marked runs are running" in ended.stderr
