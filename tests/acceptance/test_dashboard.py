"""The dashboard in a real browser, under its own strict policy: what a person sees, without a reload and without a complaint."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from api.serve import Server
from core.clock import now
from storage.models import OutboundEmail
from tests.conftest import missing
from tests.unit.api_world import World, world

__all__ = ["world"]
pytestmark = [pytest.mark.acceptance, pytest.mark.browser]
CHROMIUM = Path("/usr/bin/chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@dataclass
class Visit:
    """A page and everything the browser complained about or asked others for."""

    page: Page
    address: str
    complaints: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type in {"error", "warning"} else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: None if request.url.startswith(self.address) else self.elsewhere.append(request.url))

    def log_in(self, key: str) -> None:
        self.page.goto(self.address)
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Log in").click()
        expect(self.page.locator("#live")).to_have_text("Live")


@pytest.fixture(scope="module")
def browser(pytestconfig: pytest.Config) -> Iterator[Browser]:
    if not CHROMIUM.exists():
        missing(pytestconfig, "Chromium is not installed (Debian: chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield started
        started.close()


@pytest.fixture
def address(world: World) -> Iterator[str]:
    """The application served over HTTP."""
    config = uvicorn.Config(world.app, host="127.0.0.1", port=0, access_log=False, log_config=None, timeout_graceful_shutdown=2)
    server = Server(config, world.app.state.stopping)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    world.app.state.stopping.set()
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(params=[("light", 1280), ("dark", 380)], ids=["light, wide", "dark, narrow"])
def visit(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """A fresh browser profile. Whatever a test does, nothing may be complained about and nobody else be asked."""
    scheme, width = request.param
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    context.set_default_timeout(10_000)
    visited = Visit(context.new_page(), address)
    visited.watch()
    yield visited
    scrolled = visited.page.locator("html").evaluate("element => element.scrollWidth - element.clientWidth")
    context.close()
    assert visited.complaints == []
    assert visited.elsewhere == []
    assert scrolled == 0


def test_a_new_run_and_its_progress_appear_without_a_reload(world: World, visit: Visit) -> None:
    page = visit.page
    visit.log_in(world.acme.key)
    expect(page.get_by_text("No runs yet.")).to_be_visible()
    page.locator("html").evaluate("element => { element.dataset.loaded = 'once' }")
    run_id = world.add()
    row = page.get_by_role("row").filter(has_text=run_id[-8:])
    expect(row).to_contain_text("Waiting")
    link = row.get_by_role("link")
    link.focus()
    world.set_run(run_id, state="STARTED", attempt=1, started_at=now(), progress={"done": 3, "total": 10, "note": ""})
    expect(row).to_contain_text("Running")
    expect(row.get_by_role("progressbar")).to_have_attribute("value", "3")
    world.set_run(run_id, state="SUCCESS", result=3, finished_at=now(), duration_ms=1234)
    expect(row).to_contain_text("Succeeded")
    expect(row).to_contain_text("1.2 s")
    expect(page.locator("a.tile.done strong")).to_have_text("1")
    expect(link).to_be_focused()  # what changed was changed in place
    expect(page.locator("html")).to_have_attribute("data-loaded", "once")


def test_filtering_looking_revoking_and_replaying(world: World, visit: Visit) -> None:
    page = visit.page
    run_id = world.add()
    world.post("/api/tasks", json={"task": "send_email", "args": {"email_client_id": world.acme.client_id, "to": ["bob@acme.test"]}})
    visit.log_in(world.acme.key)
    page.get_by_role("combobox", name="Task").select_option("add")
    expect(page).to_have_url(f"{visit.address}?task=add")
    expect(page.locator("table.runs tbody tr")).to_have_count(1)
    expect(page.get_by_text("Filtered")).to_be_visible()
    page.locator("table.runs").get_by_role("link").click()
    expect(page.get_by_text("It waits in its queue for a free worker.").first).to_be_visible()
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("Somebody revoked it.")).to_be_visible()
    page.get_by_role("button", name="Replay").click()
    expect(page.get_by_role("button", name="Revoke")).to_be_visible()
    assert world.get(f"/api/tasks/{run_id}").json()["state"] == "PENDING"
    page.get_by_role("link", name="Runs", exact=True).first.click()
    expect(page.locator("table.runs tbody tr")).to_have_count(2)
    page.locator("table.runs tbody tr").filter(has_text="send_email").get_by_role("link").click()
    expect(page.get_by_text('["<address>"]')).to_be_visible()


def test_dead_letters_are_purged_after_a_second_look(world: World, visit: Visit) -> None:
    page = visit.page
    run_id, other = world.add(), world.add()
    for each, reason in ((run_id, "crashed"), (other, "permanent")):
        world.set_run(each, state="FAILURE", reason=reason, dead_lettered_at=now(), waiting_for=None, publish_at=None)
    visit.log_in(world.acme.key)
    page.get_by_role("link", name="Dead letters", exact=True).click()
    page.get_by_role("link", name="crashed").click()
    expect(page.locator("table.letters tbody tr")).to_have_count(1)
    page.get_by_text("Purge these 1…").click()
    page.get_by_role("button", name="Purge 1").click()
    expect(page.get_by_text("No dead letter matches these filters.")).to_be_visible()
    page.get_by_role("link", name="Clear filters ×").click()
    page.get_by_role("button", name="Replay add").click()
    expect(page.get_by_text("No dead letters.")).to_be_visible()
    assert [world.get(f"/api/tasks/{each}").json()["state"] for each in (run_id, other)] == ["FAILURE", "PENDING"]


def test_a_running_run_is_asked_and_then_forced_to_end(world: World, visit: Visit) -> None:
    page = visit.page
    run_id = world.add()
    world.set_run(run_id, state="STARTED", attempt=1, fence=1, started_at=now(), waiting_for=None, publish_at=None, worker_id="w")
    visit.log_in(world.acme.key)
    page.goto(f"{visit.address}runs/{run_id}")
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("it ends at its next checkpoint")).to_be_visible()
    page.get_by_role("button", name="End by force").click()
    expect(page.get_by_text("it is being interrupted")).to_be_visible()
    world.set_run(run_id, state="REVOKED", ending=None, reason="revoked", finished_at=now())
    expect(page.get_by_text("Somebody revoked it.")).to_be_visible()


def test_a_group_is_looked_at_and_revoked_and_a_webhook_tested(world: World, visit: Visit) -> None:
    page = visit.page
    add = {"task": "add", "args": {"x": 1}}
    made = world.post("/api/groups", json={"members": [add, [add, add]], "then": add}).json()
    world.post("/api/webhooks", json={"url": "https://hooks.example/in"})
    visit.log_in(world.acme.key)
    page.goto(f"{visit.address}runs/{made['items'][1][0]['taskId']}")
    expect(page.locator("ol.line li")).to_have_count(2)
    expect(page.get_by_text("0 of 3 members ended")).to_be_visible()
    world.set_run(made["items"][0]["taskId"], state="SUCCESS", waiting_for=None, publish_at=None, finished_at=now())
    expect(page.get_by_text("1 of 3 members ended")).to_be_visible()
    page.get_by_role("link", name="Show its members").click()
    expect(page.locator("table.runs tbody tr")).to_have_count(3)
    page.get_by_text("Revoke all of it…").click()
    page.get_by_role("button", name="Revoke it").click()
    expect(page.get_by_text("3 of 3 members ended")).to_be_visible()
    page.get_by_role("link", name="Webhooks", exact=True).click()
    page.get_by_role("button", name="Test hooks.example/in").click()
    expect(page.get_by_text("webhook.test")).to_be_visible()
    navigation = page.get_by_role("navigation", name="Pages").evaluate("element => element.scrollWidth - element.clientWidth")
    assert navigation == 0  # every word can be read, at any width


def test_mail_and_logging_out(world: World, visit: Visit) -> None:
    page = visit.page
    visit.log_in(world.acme.key)
    page.get_by_role("link", name="Mail", exact=True).click()
    expect(page.get_by_text("acme inbox").first).to_be_visible()
    expect(page.get_by_text("Hello acme")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("API key")).to_be_visible()


def test_a_letter_is_shown_with_its_styles_and_the_outbox_with_its_reasons(world: World, visit: Visit) -> None:
    page = visit.page
    script = "<script>parent.document.title = 'broken'</script><p style='color: rgb(1, 2, 3)'>Code {{ token }}</p>"
    template = {"subject": "Code for {{ username }}", "text": "{{ token }}", "html": script}
    assert world.call("PUT", "/api/mail/templates/verification?locale=de", json=template).status_code == 200
    with world.system() as session:
        mail = session.get_one(OutboundEmail, world.acme.outbound_id)
        mail.status, mail.last_error = "failed", "The mail server refused the recipient."
    visit.log_in(world.acme.key)
    page.get_by_role("link", name="Mail", exact=True).click()
    page.get_by_role("link", name="Outbox").click()
    expect(page.get_by_text("The mail server refused the recipient.")).to_be_visible()
    page.get_by_role("link", name="Templates").click()
    letter = page.frame_locator("iframe.letter")
    expect(letter.get_by_role("link", name="Verify e-mail address")).to_have_css("color", "rgb(255, 255, 255)")
    page.get_by_role("combobox", name="Language").select_option("de")
    expect(page.get_by_role("heading", name="Code for Robin")).to_be_visible()
    expect(letter.get_by_text("Code k7Qm2")).to_have_css("color", "rgb(1, 2, 3)")
    expect(page).to_have_title("Templates · Mailroom")
    visit.complaints[:] = [text for text in visit.complaints if "Blocked script execution" not in text and "script-src" not in text]


def test_what_strangers_wrote_stays_text_also_when_it_arrives_live(world: World, visit: Visit) -> None:
    page = visit.page
    visit.log_in(world.admin_key)
    text = "<img src=x onerror=alert(1)>" + "long" * 60
    run_id = world.add()
    world.set_run(run_id, state="FAILURE", error_type=text[:200], error=text, dead_lettered_at=now(), task="t" * 200)
    expect(page.locator("table.runs .sub")).to_contain_text("<img src=x")
    assert page.locator("table.runs img").count() == 0


def test_the_page_says_when_it_is_not_live_and_comes_back(world: World, visit: Visit) -> None:
    page = visit.page
    visit.log_in(world.acme.key)
    page.evaluate("() => { disconnect('paused') }")
    expect(page.locator("#live")).to_have_text("Paused")
    run_id = world.add()
    page.evaluate("() => connect()")
    expect(page.get_by_role("row").filter(has_text=run_id[-8:])).to_be_visible()
    expect(page.locator("#live")).to_have_text("Live")
