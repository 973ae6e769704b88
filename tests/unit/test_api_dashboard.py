"""The dashboard without a browser: sessions, forged forms, walls, escaping, plain words, hidden values and the stream."""

from __future__ import annotations

import asyncio
import html
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from httpx import Response
from starlette.datastructures import QueryParams

import api.dashboard
from api import events
from api.dashboard import live, words
from api.dashboard.regions import Filters
from api.dashboard.sessions import COOKIE, viewer_of
from core.clock import now
from core.errors import InvalidInputError, UnavailableError
from core.ids import new_id
from storage.models import DashboardSession, EmailClient, EmailMessage, TaskAttempt, TaskRun, Tenant
from storage.repositories.tenants import ApiKeys
from tests.unit.api_world import World, world

__all__ = ["world"]
XSS = "\"'><img src=x onerror=alert(1)>"
HERE = Path(api.dashboard.__file__).parent
TOKEN = re.compile(r'name="csrf_token" value="([^"]+)"')


def token_in(page: Response) -> str:
    found = TOKEN.search(page.text)
    assert found is not None, page.text[:500]
    return html.unescape(found.group(1))


def page(world: World, path: str, **options: Any) -> Response:
    answer: Response = world.http.get(path, headers={"Accept": "text/html"}, follow_redirects=False, **options)
    return answer


def form(world: World, path: str, headers: dict[str, str] | None = None, **fields: str) -> Response:
    answer: Response = world.http.post(path, data=fields, headers={"Accept": "text/html"} | (headers or {}), follow_redirects=False)
    return answer


def log_in(world: World, key: str = "", target: str = "/") -> Response:
    return form(world, "/login", csrf_token=token_in(page(world, "/login")), key=key or world.acme.key, next=target)


def test_without_a_session_every_page_leads_to_the_login(world: World) -> None:
    assert page(world, "/").headers["location"] == "/login"
    assert page(world, "/mail?tenant=x").headers["location"] == "/login?next=/mail%3Ftenant%3Dx"
    assert page(world, f"/runs/{new_id()}").status_code == 303
    assert form(world, f"/runs/{new_id()}/revoke").headers["location"] == "/login"
    assert "goodbye" in world.http.get("/live?page=overview").text


def test_a_key_opens_a_session_in_a_careful_cookie(world: World) -> None:
    answer = log_in(world, target="/mail")
    assert (answer.status_code, answer.headers["location"]) == (303, "/mail")
    cookie = next(value for value in answer.headers.get_list("set-cookie") if value.startswith(COOKIE))
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Secure" not in cookie
    assert page(world, "/").status_code == 200
    assert page(world, "/login").headers["location"] == "/"
    assert world.acme.key not in str(world.http.cookies)


def test_over_tls_the_cookie_is_secure(world: World) -> None:
    world.http.base_url = "https://testserver"
    assert all("Secure" in value for value in log_in(world).headers.get_list("set-cookie") if value.startswith(COOKIE))


@pytest.mark.parametrize("target", ["https://evil.test/", "//evil.test", "/\\evil.test", "javascript:alert(1)", "/\nx", ""])
def test_after_the_login_nobody_is_led_elsewhere(world: World, target: str) -> None:
    assert log_in(world, target=target).headers["location"] == "/"


def test_wrong_keys_are_told_and_counted(world: World) -> None:
    answers = [log_in(world, "mr_wrong_key") for _ in range(11)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429]
    assert "unknown" in answers[0].text
    assert "retry-after" in answers[-1].headers
    assert world.count(DashboardSession) == 0


def test_a_login_form_of_another_site_is_refused(world: World) -> None:
    token = token_in(page(world, "/login"))
    assert form(world, "/login", key=world.acme.key).status_code == 403
    assert form(world, "/login", key=world.acme.key, csrf_token="x").status_code == 403
    for headers in ({"Origin": "https://evil.test"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert form(world, "/login", headers, key=world.acme.key, csrf_token=token).status_code == 403
    assert (
        form(
            world, "/login", {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}, key=world.acme.key, csrf_token=token
        ).status_code
        == 303
    )


def test_every_form_of_a_session_needs_its_token(world: World) -> None:
    run_id = world.add()
    log_in(world)
    token = token_in(page(world, "/"))
    for path in (f"/runs/{run_id}/revoke", f"/runs/{run_id}/replay", "/logout"):
        assert form(world, path).status_code == 403
        assert form(world, path, csrf_token="forged").status_code == 403
        assert form(world, path, {"Origin": "https://evil.test"}, csrf_token=token).status_code == 403
    assert world.get(f"/api/tasks/{run_id}").json()["state"] == "PENDING"
    assert form(world, f"/runs/{run_id}/revoke", csrf_token=token).headers["location"] == f"/runs/{run_id}"
    assert world.get(f"/api/tasks/{run_id}").json()["state"] == "REVOKED"
    form(world, f"/runs/{run_id}/replay", csrf_token=token)
    assert world.get(f"/api/tasks/{run_id}").json()["state"] == "PENDING"
    conflict = form(world, f"/runs/{run_id}/replay", csrf_token=token)
    assert conflict.status_code == 409
    assert "can be replayed" in conflict.text


def test_a_running_run_is_asked_to_end_and_then_forced(world: World) -> None:
    run_id, waiting = world.add(), world.add()
    world.set_run(run_id, state="STARTED", waiting_for=None, publish_at=None, worker_id="w", started_at=now(), attempt=1, fence=1)
    log_in(world)
    fresh = page(world, f"/runs/{run_id}").text
    assert 'form="revoke"' in fresh
    assert 'form="terminate"' in fresh
    assert 'form="terminate"' not in page(world, f"/runs/{waiting}").text
    token = token_in(page(world, "/"))
    assert form(world, f"/runs/{run_id}/terminate").status_code == 403
    form(world, f"/runs/{run_id}/revoke", csrf_token=token)
    asked = page(world, f"/runs/{run_id}").text
    assert "it ends at its next checkpoint" in asked
    assert 'form="revoke"' not in asked
    assert 'form="terminate"' in asked
    assert "Revocation requested" in page(world, "/").text
    form(world, f"/runs/{run_id}/terminate", csrf_token=token)
    forced = page(world, f"/runs/{run_id}").text
    assert "by force" in forced
    assert 'form="terminate"' not in forced


def test_admins_pause_and_resume_queues_and_others_see_it(world: World) -> None:
    log_in(world)
    token = token_in(page(world, "/"))
    assert 'form="pause-queue"' not in page(world, "/").text
    assert form(world, "/queues/pause", csrf_token=token, queue="default").status_code == 403
    world.http.cookies.clear()
    log_in(world, world.admin_key)
    token = token_in(page(world, "/"))
    assert form(world, "/queues/pause", queue="default").status_code == 403
    assert form(world, "/queues/pause", csrf_token=token, queue="default").status_code == 303
    assert form(world, "/queues/pause", csrf_token=token, queue="nonsense").status_code == 404
    assert page(world, "/").text.count(">Paused<") == 1
    world.http.cookies.clear()
    log_in(world)
    assert page(world, "/").text.count(">Paused<") == 1
    world.http.cookies.clear()
    log_in(world, world.admin_key)
    form(world, "/queues/resume", csrf_token=token_in(page(world, "/")), queue="default")
    assert ">Paused<" not in page(world, "/").text


def test_dead_letters_say_why_and_are_replayed_or_purged_for_the_count_that_was_shown(world: World) -> None:
    facts = {"state": "FAILURE", "waiting_for": None, "publish_at": None, "dead_lettered_at": now(), "error_type": "E", "error": "No."}
    ids = {reason: world.add() for reason in ("crashed", "permanent", "attempts_exhausted", "expired")}
    for reason, run_id in ids.items():
        world.set_run(run_id, **facts, reason=reason)
    theirs = world.add(world.globex.key)
    world.set_run(theirs, **facts, reason="crashed")
    log_in(world)
    shown = page(world, "/dead-letters").text
    assert "Its worker process was lost while it ran." in shown
    assert "Purge all 4" in shown
    assert theirs not in shown
    token = token_in(page(world, "/dead-letters"))
    narrowed = page(world, "/dead-letters?reason=crashed").text
    assert ids["crashed"] in narrowed
    assert ids["permanent"] not in narrowed
    assert "Replay these 1" in narrowed
    for action in ("replay-one", "replay", "purge"):
        assert form(world, f"/dead-letters/{action}", expect="4", run_id=ids["crashed"]).status_code == 403
    assert form(world, "/dead-letters/replay-one", csrf_token=token, run_id=theirs).status_code == 404
    assert form(world, "/dead-letters/replay-one", csrf_token=token, run_id=ids["crashed"]).status_code == 303
    late = form(world, "/dead-letters/purge", csrf_token=token, expect="4")
    assert late.status_code == 409
    assert "There are 3 now" in late.text
    assert (
        form(world, "/dead-letters/replay", csrf_token=token, expect="1", reason="permanent")
        .headers["location"]
        .endswith("reason=permanent")
    )
    assert form(world, "/dead-letters/purge", csrf_token=token, expect="2").status_code == 303
    states = [world.get(f"/api/tasks/{run_id}").json()["state"] for run_id in ids.values()]
    assert states == ["PENDING", "PENDING", "FAILURE", "FAILURE"]
    assert "No dead letters." in page(world, "/dead-letters").text
    assert form(world, "/dead-letters/nonsense", csrf_token=token, expect="0").status_code in {404, 422}


def test_logging_out_ends_the_session_everywhere(world: World) -> None:
    log_in(world)
    kept = world.http.cookies.get(COOKIE)
    form(world, "/logout", csrf_token=token_in(page(world, "/")))
    world.http.cookies.set(COOKIE, str(kept))
    assert page(world, "/").status_code == 303


def test_a_revoked_key_or_an_expired_session_ends_it_too(world: World) -> None:
    log_in(world)
    with world.system() as session:
        for row in session.query(DashboardSession):
            row.expires_at = now() - timedelta(seconds=1)
    assert page(world, "/").status_code == 303
    log_in(world)
    assert page(world, "/").status_code == 200
    with world.system() as session:
        ApiKeys(session).revoke(world.acme.key.split("_")[1])
    assert page(world, "/").status_code == 303


def test_a_tenant_sees_its_own_and_an_admin_everything(world: World) -> None:
    mine, theirs = world.add(), world.add(world.globex.key)
    log_in(world)
    text = page(world, "/").text
    assert mine in text
    assert theirs not in text
    assert "Tenant</th>" not in text
    foreign = page(world, f"/runs/{theirs}")
    assert foreign.status_code == 404
    assert "There is no task run with this id." in foreign.text
    assert page(world, "/?tenant=globex").status_code == 403
    assert "globex inbox" not in page(world, "/mail").text
    assert "Hello acme" in page(world, "/mail").text
    world.http.cookies.clear()
    log_in(world, world.admin_key)
    text = page(world, "/").text
    assert mine in text
    assert theirs in text
    assert "Tenant</th>" in text
    narrowed = page(world, "/?tenant=globex").text
    assert theirs in narrowed
    assert mine not in narrowed
    assert "Clear filters" in narrowed
    assert page(world, f"/runs/{theirs}").status_code == 200
    mail = page(world, "/mail").text
    assert "globex inbox" in mail
    assert "Hello acme" not in mail  # subjects are for the tenant's own people
    assert "globex inbox" not in page(world, "/mail?tenant=acme").text


def test_filters_live_in_the_url_and_empty_lists_explain(world: World) -> None:
    log_in(world)
    assert "No runs yet." in page(world, "/").text
    world.add()
    text = page(world, "/?state=failure&queue=sync&task=add&q=zzz").text
    assert "No run matches these filters." in text
    assert "Filtered" in text
    assert 'value="zzz"' in text
    assert "page=overview&amp;state=failure&amp;queue=sync" in text
    assert page(world, "/?state=nonsense").status_code == 422


def test_older_pages_are_linked_and_not_live(world: World) -> None:
    for number in range(51):
        world.add(x=number)
    log_in(world)
    first = page(world, "/").text
    older = re.search(r'href="(/\?[^"]*cursor=[^"]+)">Older', first)
    assert older is not None
    second = page(world, html.unescape(older.group(1))).text
    assert "Older page, not live" in second
    assert "data-stream" not in second
    assert second.count('<tr data-key="01') == 1


def test_nothing_that_others_wrote_becomes_markup(world: World) -> None:
    run_id = world.add()
    world.set_run(
        run_id, state="FAILURE", task=XSS[:40], error_type=XSS, error=XSS, reason=XSS[:40], request_id=XSS,
        unique_key=XSS, result={XSS: XSS},
        args={XSS: XSS, "y": [XSS]}, progress={"done": 1, "total": 2, "note": XSS}, dead_lettered_at=now(), finished_at=now(),
    )  # fmt: skip
    with world.system() as session:
        fields = {"run_id": run_id, "tenant_id": world.acme.tenant_id, "attempt": 1, "state": "FAILURE"}
        session.add(TaskAttempt(**fields, fence=1, worker_id=XSS, error_type=XSS, error=XSS, traceback=[XSS], started_at=now()))
        client = session.get(EmailClient, world.acme.client_id)
        client.name = client.imap_host = client.last_error = XSS
        message = session.get(EmailMessage, world.acme.message_id)
        message.subject, message.sender = XSS, {"name": XSS, "address": XSS}
        session.get(Tenant, world.acme.tenant_id).name = XSS
        running = TaskRun(id=new_id(), tenant_id=world.acme.tenant_id, task="t", queue=XSS, args={}, state="STARTED", max_attempts=1)
        running.progress, running.started_at, running.worker_id = {"done": 1, "total": 2, "note": XSS}, now(), XSS
        session.add(running)
    for key in (world.acme.key, world.admin_key):
        world.http.cookies.clear()
        log_in(world, key)
        for path in ("/", f"/?q={XSS}", f"/runs/{run_id}", f"/runs/{running.id}", "/mail", "/dead-letters", f"/dead-letters?reason={XSS}"):
            answer = page(world, path)
            assert answer.status_code == 200
            assert "<img" not in answer.text
            assert "&lt;img" in answer.text, path
    assert "<img" not in page(world, f"/?state={XSS}").text
    assert "<img" not in page(world, f"/{XSS}").text


def test_private_values_are_hidden() -> None:
    shown = words.private(
        {
            "password": "hunter2", "api_token": "t", "body_text": "Dear", "body_html": None, "to": ["ann@acme.test"], "subject": "x" * 200,
            "nested": {"secret": 1, "count": 2}, "many": list(range(25)), "flag": True,
        }
    )  # fmt: skip
    assert shown["password"] == shown["api_token"] == shown["body_text"] == shown["nested"]["secret"] == "‹hidden›"
    assert shown["body_html"] is None
    assert shown["to"] == ["<address>"]
    assert shown["subject"] == "‹hidden: 200 characters›"
    assert shown["nested"]["count"] == 2
    assert shown["many"][-1] == "‹5 more›"
    assert "hunter2" not in words.shown({"deep": [{"password": "hunter2"}]})
    assert words.shown({"a": "b" * 70}).count("\n") == 2


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "–"),
        (0.34, "340 ms"),
        (0.9997, "1.0 s"),
        (3.14, "3.1 s"),
        (125, "2 min 5 s"),
        (120, "2 min"),
        (3780, "1 h 3 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations_read_well(seconds: float | None, expected: str) -> None:
    assert words.duration(seconds) == expected


def run_that(**columns: Any) -> TaskRun:
    return TaskRun(**({"created_at": now(), "state": "PENDING", "fence": 0, "attempt": 0} | columns))


def test_waiting_is_explained_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "now", lambda: datetime(2030, 1, 1, 12, tzinfo=UTC))
    eta = datetime(2030, 1, 1, 12, 1, 7, tzinfo=UTC)
    past = datetime(2030, 1, 1, 11, 59, 0, tzinfo=UTC)
    assert "its retry has been due since 11:59:00" in str(words.why_it_waits(run_that(state="RETRY", eta=past)))
    assert "It has been due since 11:59:00" in str(words.why_it_waits(run_that(waiting_for="eta", eta=past)))
    assert (words.waited(run_that(state="RETRY", eta=past)), words.waited(run_that(waiting_for="eta", eta=eta))) == (
        "due since 11:59:00",
        "until 12:01:07",
    )
    assert words.why_it_waits(run_that(state="RETRY", eta=eta)) == "The last attempt failed; it waits for its retry at 12:01:07."
    assert words.why_it_waits(run_that(waiting_for="eta", eta=eta)) == "It waits for its time, 12:01:07."
    for reason in ("queue", "limit", "pause", "broker"):
        assert str(words.why_it_waits(run_that(waiting_for=reason))).startswith("It waits")
    assert words.why_it_waits(run_that(state="SUCCESS")) is None
    assert words.why_it_ended(run_that(reason="expired")) == "It was not started in time and has expired."
    assert words.why_it_ended(run_that(reason="some_code")) == "Trying again cannot help (some code)."
    assert words.clock_time(eta - timedelta(days=400)).startswith((eta - timedelta(days=400)).strftime("%d %b"))
    assert words.waited(run_that(state="SUCCESS", fence=2, started_at=now())) == "–"


def test_the_templates_hold_no_script_and_no_style() -> None:
    for template in (HERE / "templates").glob("*.html"):
        text = template.read_text()
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?! defer src=\"/static/)", text), template.name
        assert "|safe" not in text
    assert all(
        "//" not in line or "http://www.w3.org" in line or "//" in line.split("url(")[0]
        for line in (HERE / "static/app.css").read_text().split()
    )


def test_static_files_are_served_and_revalidated(world: World) -> None:
    answer = world.http.get("/static/app.js")
    assert answer.headers["cache-control"] == "no-cache"
    assert world.http.get("/static/app.js", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert world.http.get("/static/../pages.py").status_code == 404


def test_people_get_error_pages_and_programs_problems(world: World) -> None:
    missing = page(world, "/nothing")
    assert missing.status_code == 404
    assert "Not found" in missing.text
    assert missing.headers["x-request-id"] in missing.text
    assert world.http.get("/nothing").headers["content-type"] == "application/problem+json"


def take(world: World, key: str, query: str, number: int, between: Any = None) -> list[str]:
    """The first events of a stream, without a server."""
    token = ""
    with world.system() as session:
        caller = ApiKeys(session).authenticate(key)
        assert caller is not None
        token = ApiKeys(session).open_session(caller)[0]
    viewer = viewer_of(world.engine, token)
    assert viewer is not None
    request: Any = SimpleNamespace(app=world.app, query_params=QueryParams(query))

    async def collect() -> list[str]:
        sent: AsyncIterator[str] = live.stream(request, viewer)
        found = []
        async for event in sent:
            found.append(event)
            if len(found) == number:
                break
            if between is not None and len(found) > 1:
                await asyncio.to_thread(between, viewer)
        await sent.aclose()  # type: ignore[attr-defined]
        return found

    return asyncio.run(asyncio.wait_for(collect(), 20))


def data_of(event: str) -> dict[str, str]:
    return dict(json.loads(event.split("data: ", 1)[1]))


def test_the_stream_sends_what_changed_and_only_that(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "EVERY_SECONDS", 0.02)
    monkeypatch.setattr(events, "REST_FACTOR", 0)
    monkeypatch.setattr(words, "waited", lambda _run: "–")
    added: list[str] = []

    def add_one(_viewer: object) -> None:
        if not added:
            added.append(world.add())

    sent = take(world, world.acme.key, "page=overview", 3, add_one)
    assert sent[0] == "retry: 2000\n\n"
    assert set(data_of(sent[1])) == {"tiles", "queues", "runs"}
    assert added[0] in data_of(sent[2])["runs"]
    assert sent[2].startswith("id: 2\nevent: regions\n")
    assert world.app.state.looks == {}


def test_viewers_of_the_same_share_one_look(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def counted(_before: object) -> dict[str, Any]:
        looked.append(1)
        return {"runs": f"look {len(looked)}"}

    look = events.Look(rest=60)

    async def several() -> list[Any]:
        return await asyncio.gather(*(events.fresh(look, counted) for _ in range(5)))

    assert asyncio.run(several()) == [{"runs": "look 1"}] * 5
    assert (look.rest or 0) >= events.EVERY_SECONDS


def test_the_stream_survives_the_database_and_ends_with_the_session(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "EVERY_SECONDS", 0.02)
    monkeypatch.setattr(events, "REST_FACTOR", 0)
    monkeypatch.setattr(live, "SESSION_SECONDS", 0.0)
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.05)

    def down(*_: object) -> None:
        raise UnavailableError("No database.")

    monkeypatch.setattr(live, "regions_of", down)
    beats = take(world, world.acme.key, "page=mail", 2)
    assert beats[1] == ": still here\n\n"

    def log_out(viewer: Any) -> None:
        with world.system() as session:
            ApiKeys(session).close_session(viewer.token)

    assert take(world, world.acme.key, "page=mail", 3, log_out)[2] == live.GOODBYE


def test_the_stream_ends_when_the_server_stops(world: World) -> None:
    world.app.state.stopping.set()
    assert take(world, world.acme.key, "page=overview", 5) == ["retry: 2000\n\n"]
    log_in(world)
    answer = world.http.get("/live?page=overview")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"


def test_only_our_pages_can_be_streamed(world: World) -> None:
    from api.dashboard.regions import regions_of

    viewer: Any = None
    with pytest.raises(InvalidInputError):
        regions_of(viewer, {"page": "nonsense"})
    assert Filters.of({"q": " a "}).query(state="failure") == "state=failure&q=a"
