"""Spam over HTTP: verdicts on messages, feedback, a tenant's settings, lists and figures; and the walls around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from core.clock import now
from core.ids import new_id
from core.tenancy import Identity
from mail.spam.verdict import Indicator, Severity, Verdict
from storage.models import EmailClient, EmailFolder, EmailMessage, SpamFeedback, SpamVerdict, SpamWeights, TaskRun
from storage.repositories.spam_verdicts import SpamVerdicts
from storage.repositories.tenants import ApiKeys, Tenants
from tests.unit.api_world import Account, World, world

__all__ = ["world"]
SPAM = Verdict(0.97, True, 0.8, (Indicator("ip_url", Severity.MEDIUM, "http://192.0.2.1/"),), (), b"\1\0\0\0", 3.5, notes=("truncated",))


def judged(world: World, account: Account, verdict: Verdict = SPAM) -> None:
    with world.as_tenant(account) as session:
        SpamVerdicts(session).put({account.message_id: verdict}, "model-1")


def feedback_path(account: Account) -> str:
    return f"/api/email/messages/{account.message_id}/spam-feedback"


def runs(world: World) -> list[tuple[str, str | None]]:
    with world.system() as session:
        return [(run.task, run.unique_key) for run in session.query(TaskRun).order_by(TaskRun.id)]


def test_a_message_shows_its_verdict(world: World) -> None:
    path = f"/api/email/messages/{world.acme.message_id}"
    assert (world.get(path).json()["spam"], world.get(path).json()["spamFeedback"]) == (None, None)
    judged(world, world.acme)
    spam = world.get(path).json()["spam"]
    assert {name: spam[name] for name in ("isSpam", "score", "threshold", "notes", "source")} == {
        "isSpam": True, "score": 0.97, "threshold": 0.8, "notes": ["truncated"], "source": "embedded",
    }  # fmt: skip
    assert spam["indicators"] == [{"code": "ip_url", "severity": "medium", "evidence": "http://192.0.2.1/"}]
    assert "hashes" not in spam
    [listed] = world.get("/api/email/messages").json()["items"]
    assert listed["spam"] == spam


def test_the_list_can_be_narrowed_to_spam_or_to_the_rest(world: World) -> None:
    def found(spam: str) -> list[str]:
        return [each["id"] for each in world.get("/api/email/messages", params={"spam": spam}).json()["items"]]

    assert (found("true"), found("false")) == ([], [world.acme.message_id])
    judged(world, world.acme)
    judged(world, world.globex)
    assert (found("true"), found("false")) == ([world.acme.message_id], [])
    assert world.get("/api/email/messages", params={"spam": "perhaps"}).status_code == 422


def test_feedback_is_kept_once_and_starts_one_run_to_learn(world: World) -> None:
    judged(world, world.acme)
    first = world.post(feedback_path(world.acme), json={"spam": False})
    again = world.post(feedback_path(world.acme), json={"spam": False})
    assert first.status_code == 200
    assert {name: first.json()[name] for name in ("messageId", "spam", "wasSpam", "via")} == {
        "messageId": world.acme.message_id, "spam": False, "wasSpam": True, "via": "api",
    }  # fmt: skip
    assert again.json() == first.json()
    assert (world.count(SpamFeedback), runs(world)) == (1, [("learn_spam", "learn:0")])
    other = world.post(feedback_path(world.acme), json={"spam": True}).json()
    assert (other["spam"], world.count(SpamFeedback), len(runs(world))) == (True, 1, 1)
    assert world.get(f"/api/email/messages/{world.acme.message_id}").json()["spamFeedback"] is True


def put_in(world: World, role: str, *, moves_junk: bool | None = True) -> None:
    """Acme's message into a folder of that role, of an account that moves spam to Junk."""
    with world.system() as session:
        message = session.get_one(EmailMessage, world.acme.message_id)
        session.get_one(EmailFolder, message.folder_id).role = role
        session.get_one(EmailClient, message.client_id).moves_junk = moves_junk


def moving_back(world: World) -> list[Any]:
    with world.system() as session:
        runs = [run for run in session.query(TaskRun) if run.task == "move_out_of_junk"]
        return [(run.args["email_ids"], run.tenant_id, run.unique_key) for run in runs]


def test_what_is_not_spam_and_lies_in_junk_starts_back_to_the_inbox_once(world: World) -> None:
    put_in(world, "junk")
    assert world.post(feedback_path(world.acme), json={"spam": True}).status_code == 200
    assert moving_back(world) == []
    for _ in range(2):
        assert world.post(feedback_path(world.acme), json={"spam": False}).status_code == 200
    message = world.acme.message_id
    assert moving_back(world) == [([message], world.acme.tenant_id, f"back:{message}")]


@pytest.mark.parametrize(("role", "moves_junk"), [("inbox", True), ("trash", True), ("junk", False), ("junk", None)])
def test_nothing_starts_back_from_elsewhere_or_where_spam_is_not_moved(world: World, role: str, moves_junk: bool | None) -> None:
    put_in(world, role, moves_junk=moves_junk)
    assert world.post(feedback_path(world.acme), json={"spam": False}).status_code == 200
    assert moving_back(world) == []


def test_an_account_that_says_nothing_follows_its_tenant_also_on_the_way_back(world: World) -> None:
    put_in(world, "junk", moves_junk=None)
    world.call("PUT", "/api/spam/settings", json={"movesJunk": True})
    assert world.post(feedback_path(world.acme), json={"spam": False}).status_code == 200
    assert len(moving_back(world)) == 1


def test_feedback_said_while_an_earlier_one_is_learned_gets_a_run_of_its_own(world: World) -> None:
    world.post(feedback_path(world.acme), json={"spam": True})
    with world.system() as session:
        session.get_one(SpamWeights, world.acme.tenant_id).learned_revision = 1
    world.post(feedback_path(world.acme), json={"spam": False})
    assert runs(world) == [("learn_spam", "learn:0"), ("learn_spam", "learn:1")]


def test_feedback_is_taken_back(world: World) -> None:
    assert world.call("DELETE", feedback_path(world.acme)).status_code == 404
    world.post(feedback_path(world.acme), json={"spam": True})
    assert world.call("DELETE", feedback_path(world.acme)).status_code == 204
    assert world.call("DELETE", feedback_path(world.acme)).status_code == 404
    assert world.get(f"/api/email/messages/{world.acme.message_id}").json()["spamFeedback"] is None
    assert world.post(feedback_path(world.acme), json={"spam": True}).json()["spam"] is True
    assert world.count(SpamFeedback) == 1


def test_a_user_cannot_say_any_number_of_things(world: World) -> None:
    with world.system() as session:
        session.add_all(
            SpamFeedback(tenant_id=world.acme.tenant_id, email_id=new_id(), is_spam=True, via="api", created_at=now()) for _ in range(100)
        )
    refused = world.post(feedback_path(world.acme), json={"spam": True})
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "600")
    assert world.post(feedback_path(world.acme), world.ann_key, json={"spam": True}).status_code == 200  # another user
    assert world.post(feedback_path(world.globex), world.globex.key, json={"spam": True}).status_code == 200


@pytest.mark.parametrize("body", [{}, {"spam": "yes"}, {"spam": 1}, {"spam": True, "more": 1}])
def test_feedback_that_says_nothing_is_refused(world: World, body: Mapping[str, Any]) -> None:
    assert world.post(feedback_path(world.acme), json=body).status_code == 422


def test_settings_are_the_defaults_until_they_are_set_and_each_put_sets_all(world: World) -> None:
    defaults = world.get("/api/spam/settings").json()
    assert defaults == {
        "threshold": None, "falsePositiveBudget": None, "movesJunk": False, "isLearning": True,
        "trustedAuthservIds": [], "ownDomains": [], "brands": {},
    }  # fmt: skip
    wanted = {
        "threshold": 0.9, "falsePositiveBudget": 0.002, "movesJunk": True, "isLearning": False,
        "trustedAuthservIds": ["MX.acme.test"], "ownDomains": ["Acme.Test", "bücher.example"], "brands": {"Acme": ["acme.test"]},
    }  # fmt: skip
    domains = {"ownDomains": ["acme.test", "xn--bcher-kva.example"], "brands": {"acme": ["acme.test"]}}
    answer = world.call("PUT", "/api/spam/settings", json=wanted)
    assert answer.status_code == 200
    assert answer.json() == world.get("/api/spam/settings").json() == {
        **wanted, "trustedAuthservIds": ["mx.acme.test"], **domains
    }  # fmt: skip
    assert world.get("/api/spam/settings", world.globex.key).json() == defaults
    assert world.call("PUT", "/api/spam/settings", json={"movesJunk": True}).json() == {**defaults, "movesJunk": True}
    assert runs(world) == []  # nothing was learned yet


def test_another_threshold_is_worked_into_what_was_learned(world: World) -> None:
    world.post(feedback_path(world.acme), json={"spam": True})
    with world.system() as session:
        session.get_one(SpamWeights, world.acme.tenant_id).learned_revision = 1
    world.call("PUT", "/api/spam/settings", json={"falsePositiveBudget": 0.01})
    assert runs(world)[-1] == ("learn_spam", "learn:1")


@pytest.mark.parametrize(
    "body",
    [
        {"threshold": 0},
        {"threshold": 1.5},
        {"threshold": "0.5"},
        {"falsePositiveBudget": 0.9},
        {"ownDomains": ["no domain"]},
        {"ownDomains": ["ann@acme.test"]},
        {"trustedAuthservIds": ["a b"]},
        {"brands": {"x": ["acme.test"]}},
        {"movesJunk": None},
        {"unknown": 1},
    ],
)
def test_settings_that_cannot_be_are_refused(world: World, body: Mapping[str, Any]) -> None:
    assert world.call("PUT", "/api/spam/settings", json=body).status_code == 422
    assert world.get("/api/spam/settings").json()["threshold"] is None


def test_lists_hold_addresses_and_domains_each_once(world: World) -> None:
    def add(kind: str, pattern: str) -> dict[str, Any]:
        answer = world.post("/api/spam/lists", json={"kind": kind, "pattern": pattern})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    first = add("block", "Crook@SPAM.test")
    assert (first["kind"], first["pattern"]) == ("block", "crook@spam.test")
    assert add("allow", "crook@spam.test")["id"] == first["id"]
    add("block", "@bad.example")
    add("block", "*.worse.example")
    items = world.get("/api/spam/lists").json()["items"]
    assert {(each["kind"], each["pattern"]) for each in items} == {
        ("allow", "crook@spam.test"), ("block", "bad.example"), ("block", "worse.example"),
    }  # fmt: skip
    assert len(world.get("/api/spam/lists", params={"kind": "block"}).json()["items"]) == 2
    page = world.get("/api/spam/lists", params={"limit": 2}).json()
    rest = world.get("/api/spam/lists", params={"limit": 2, "cursor": page["nextCursor"]}).json()
    assert (len(page["items"]), len(rest["items"]), rest["nextCursor"]) == (2, 1, None)
    assert world.call("DELETE", f"/api/spam/lists/{first['id']}").status_code == 204
    assert world.call("DELETE", f"/api/spam/lists/{first['id']}").status_code == 404
    for wrong in ("nonsense", "a@b@c", "@", "exa mple.com"):
        assert world.post("/api/spam/lists", json={"kind": "block", "pattern": wrong}).status_code == 422, wrong


def test_figures_say_what_was_checked_said_and_learned(world: World) -> None:
    judged(world, world.acme)
    judged(world, world.globex)
    world.post(feedback_path(world.acme), json={"spam": False})
    stats = world.get("/api/spam/stats").json()
    assert (stats["checked"], stats["spam"], stats["junked"], stats["engines"]) == (1, 1, 0, [])
    assert stats["feedback"] == {"spam": 0, "ham": 1, "missed": 0, "falsePositives": 1}
    assert (stats["learning"]["isActive"], stats["learning"]["isBehind"]) == (False, True)


def test_a_mailbox_is_checked_once_at_a_time(world: World) -> None:
    body = {"email_client_id": world.acme.client_id}
    first, again = (world.post("/api/spam/backfill", json=body) for _ in range(2))
    assert (first.status_code, first.json()["taskId"]) == (202, again.json()["taskId"])
    folder = world.post("/api/spam/backfill", json={**body, "folder_id": world.acme.folder_id})
    assert folder.json()["taskId"] != first.json()["taskId"]
    assert world.post("/api/spam/backfill", json={"email_client_id": world.globex.client_id}).status_code == 404
    assert world.post("/api/spam/backfill", json={}).status_code == 422


def test_what_is_another_tenants_is_unknown(world: World) -> None:
    judged(world, world.acme)
    entry = world.post("/api/spam/lists", json={"kind": "block", "pattern": "spam.test"}).json()["id"]
    world.post(feedback_path(world.acme), json={"spam": True})
    key = world.globex.key
    assert world.post(feedback_path(world.acme), key, json={"spam": False}).status_code == 404
    assert world.call("DELETE", feedback_path(world.acme), key).status_code == 404
    assert world.call("DELETE", f"/api/spam/lists/{entry}", key).status_code == 404
    assert world.get("/api/spam/lists", key).json()["items"] == []
    assert world.get("/api/spam/stats", key).json()["checked"] == 0
    assert world.get("/api/email/messages", key, params={"spam": "true"}).json()["items"] == []
    assert (world.count(SpamFeedback), world.count(SpamVerdict)) == (1, 1)


def test_another_user_of_the_tenant_does_not_speak_of_a_message_that_is_not_theirs(world: World) -> None:
    with world.system() as session:
        message = session.get_one(EmailMessage, world.acme.message_id)
        bob = Tenants(session).add_user(message.tenant_id, "bob")
        key = ApiKeys(session).create(message.tenant_id, "bob's", user_id=bob.id)
    assert world.post(feedback_path(world.acme), key, json={"spam": True}).status_code == 404


def test_an_admin_names_a_tenant_first(world: World) -> None:
    for method, path, body in (
        ("GET", "/api/spam/settings", None),
        ("PUT", "/api/spam/settings", {}),
        ("POST", "/api/spam/lists", {"kind": "block", "pattern": "spam.test"}),
        ("GET", "/api/spam/stats", None),
        ("POST", feedback_path(world.acme), {"spam": True}),
    ):
        assert world.call(method, path, world.admin_key, json=body).status_code in {403, 422}, path
        named = world.call(method, path, world.admin_key, json=body, headers={"X-Tenant-Id": "acme"})
        assert named.status_code in {200, 201}, named.text


def test_teaching_the_engines_is_an_operators_choice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = world.settings.model_copy(update={"spam_teach_engines": True, "rspamd_url": "http://127.0.0.1:1"})
    monkeypatch.setattr(world.app.state, "settings", asked)
    world.post(feedback_path(world.acme), json={"spam": True})
    assert [task for task, _ in runs(world)] == ["learn_spam", "teach_engines"]
    assert world.get("/api/spam/stats").json()["engines"] == ["rspamd"]


def test_an_account_has_wishes_of_its_own(world: World) -> None:
    path = f"/api/email/clients/{world.acme.client_id}"
    assert {name: world.get(path).json()[name] for name in ("checksSpam", "movesJunk")} == {"checksSpam": None, "movesJunk": None}
    changed = world.call("PATCH", path, json={"checks_spam": True, "moves_junk": False}).json()
    assert (changed["checksSpam"], changed["movesJunk"]) == (True, False)
    assert world.call("PATCH", path, json={"checks_spam": None}).json()["checksSpam"] is None


def test_the_tenants_weights_are_nobody_elses(world: World) -> None:
    world.post(feedback_path(world.acme), json={"spam": True})
    with world.as_tenant(world.globex) as session:
        assert session.info["identity"] == Identity(world.globex.tenant_id)
        assert world.get("/api/spam/stats", world.globex.key).json()["learning"]["isBehind"] is False
