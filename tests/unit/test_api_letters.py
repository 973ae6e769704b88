"""Templates and mail settings over HTTP, the commands and the pages: what is shown, what is refused in one sentence, and to whom."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from typer.testing import CliRunner, Result

from api.context import CONTENT_POLICY
from brokers.queues import Queue
from cli import client as cli_client
from cli.main import app as cli_app
from core.clock import now
from core.errors import MailroomError
from runs.registry import OutboundEmailId, SecretText
from runs.task import task
from storage.models import EmailClient, MailTemplate, OutboundEmail, TaskRun
from tests.toys import in_force
from tests.unit.api_world import World, _bound
from tests.unit.test_api_dashboard import form, log_in, page, token_in

TEMPLATES, SETTINGS = "/api/mail/templates", "/api/mail/settings"
OWN = {"subject": "Code for {{ username }}", "text": "Your code: {{ token }}", "html": "<p>{{ token }}</p>"}
TOKEN = "canary-token-9921"


def send_verification_email(to_email: str, username: str, token: SecretText) -> None:
    """Stand in for the real one."""


def retry_failed_email(email_id: OutboundEmailId) -> None:
    """Stand in for the real one."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with _bound(tmp_path) as made, in_force(made.settings):
        task(queue=Queue.HIGH_PRIORITY)(send_verification_email)
        task(queue=Queue.SEND)(retry_failed_email)
        yield made


def put(world: World, name: str = "verification", key: str = "", query: str = "?locale=en", **changes: Any) -> Any:
    return world.call("PUT", f"{TEMPLATES}/{name}{query}", key, json={**OWN, **changes})


def settings(world: World, key: str = "", **fields: Any) -> Any:
    return world.call("PUT", SETTINGS, key, json=fields)


def sentence(answer: Any, status: int = 422) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["detail"])


# -- templates --


def test_the_letters_are_listed_with_their_variables_and_languages(world: World) -> None:
    items = {item["name"]: item for item in world.get(TEMPLATES).json()["items"]}
    assert list(items) == ["verification", "password_reset", "welcome", "system"]
    assert items["verification"]["shippedLocales"] == ["de", "en"]
    assert items["verification"]["secretVariables"] == ["link", "token"]
    assert items["welcome"]["secretVariables"] == []
    assert "username" in items["welcome"]["variables"]


def test_a_tenants_own_words_take_the_place_of_what_ships_until_they_are_removed(world: World) -> None:
    assert world.get(f"{TEMPLATES}/verification").json()["isOwn"] is False
    made = put(world, query="?locale=de_at")
    assert made.status_code == 200, made.text
    assert (made.json()["locale"], made.json()["isOwn"], made.json()["updatedAt"] is not None) == ("de-AT", True, True)
    assert put(world, query="?locale=de_at", text="New: {{ token }}").json()["text"] == "New: {{ token }}"
    assert world.count(MailTemplate) == 1
    found = {locale: world.get(f"{TEMPLATES}/verification?locale={locale}").json() for locale in ("de-AT", "de", "fr")}
    assert {locale: (each["locale"], each["isOwn"]) for locale, each in found.items()} == {
        "de-AT": ("de-AT", True),
        "de": ("de", False),
        "fr": ("en", False),
    }
    assert world.get(TEMPLATES).json()["items"][0]["ownLocales"] == ["de-AT"]
    assert world.call("DELETE", f"{TEMPLATES}/verification?locale=de-AT").status_code == 204
    assert "no template verification of your own in de-AT" in sentence(world.call("DELETE", f"{TEMPLATES}/verification?locale=de-AT"), 404)


def test_another_tenant_keeps_its_own_words(world: World) -> None:
    put(world)
    assert world.get(f"{TEMPLATES}/verification", world.globex.key).json()["isOwn"] is False
    assert world.call("DELETE", f"{TEMPLATES}/verification", world.globex.key).status_code == 404
    assert world.get(f"{TEMPLATES}/verification").json()["isOwn"] is True


def test_an_admin_names_the_tenant(world: World) -> None:
    assert "name it in X-Tenant-Id" in sentence(put(world, key=world.admin_key), 403)
    assert put(world, key=world.admin_key).status_code == 403
    answer = world.call(
        "PUT",
        f"{TEMPLATES}/welcome",
        world.admin_key,
        json=OWN | {"text": "x", "html": "", "subject": "x"},
        headers={"X-Tenant-Id": "acme"},
    )
    assert answer.status_code == 200
    assert "X-Tenant-Id" in sentence(world.get(SETTINGS, world.admin_key), 403)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"html": "{% for i in range(10**9) %}{% endfor %}"}, "Template verification (en), html: line 1: templates may not use loops."),
        ({"text": "{{ nickname }} {{ link }}"}, "Template verification (en), text: there is no variable nickname;"),
        ({"html": "{{ link"}, "Template verification (en), html: line 1:"),
        ({"html": "{{ ''.__class__ }}"}, "may not use attributes"),
        ({"subject": "{{ token }}"}, "secret"),
        ({"text": ""}, "needs a subject and a text"),
        ({"html": "{{ link }}" + "x" * 200_000}, "200,000"),
        ({"extra": 1}, "not known"),
        ({"subject": 7}, "wrong"),
    ],
)
def test_a_template_that_cannot_be_is_refused_and_not_kept(world: World, changes: dict[str, Any], what: str) -> None:
    assert what in sentence(put(world, **changes))
    assert world.count(MailTemplate) == 0


def test_an_unknown_template_and_a_wrong_locale(world: World) -> None:
    assert "There is no template named 'birthday'" in sentence(world.get(f"{TEMPLATES}/birthday"), 404)
    assert "There is no template named" in sentence(put(world, "birthday"), 404)
    assert "language tag" in sentence(put(world, query="?locale=!"))
    assert "language tag" in sentence(world.post(f"{TEMPLATES}/welcome/preview", json={"locale": ".."}))


def test_a_preview_shows_what_would_be_sent(world: World) -> None:
    shown = world.post(f"{TEMPLATES}/verification/preview").json()
    assert (shown["subject"], shown["isOwn"], shown["locale"]) == ("Verify your e-mail address for acme", False, "en")
    assert "https://app.example.com/verify-email?token=" in shown["text"]
    draft = {**OWN, "variables": {"username": "<b>Ann</b>", "token": "123"}}
    tried = world.post(f"{TEMPLATES}/verification/preview", json=draft).json()
    assert (tried["subject"], tried["text"], tried["html"]) == ("Code for <b>Ann</b>", "Your code: 123\n", "<p>123</p>")
    assert world.count(MailTemplate) == 0
    assert "may not use loops" in sentence(world.post(f"{TEMPLATES}/welcome/preview", json={"text": "{% for x in y %}{% endfor %}"}))
    system = world.post(f"{TEMPLATES}/system/preview", json={"variables": {"content": "<p>Hello</p>"}}).json()
    assert "<p>Hello</p>" in system["html"]
    assert world.post(f"{TEMPLATES}/verification/preview", world.admin_key).json()["subject"].endswith("Mailroom")


# -- settings --


def test_settings_are_replaced_and_say_what_is_in_force(world: World) -> None:
    before = world.get(SETTINGS).json()
    assert (before["senderName"], before["inForce"]["from"], before["inForce"]["locale"]) == (None, None, "en")
    fields = {"senderName": "Acme", "locale": "de_AT", "appName": "Acme", "linkBaseUrl": "https://app.acme.test", "accentColor": "#112233"}
    after = settings(world, **fields, verificationPath="/v", verificationExpiresHours=2).json()
    assert (after["locale"], after["inForce"]["verificationExpiresHours"], after["inForce"]["appName"]) == ("de-AT", 2, "Acme")
    assert "Der Link gilt 2 Stunden." in world.post(f"{TEMPLATES}/verification/preview").json()["text"]
    assert "#112233" in world.post(f"{TEMPLATES}/verification/preview").json()["html"]
    assert settings(world, appName="Other").json()["locale"] is None
    assert world.get(SETTINGS, world.globex.key).json()["appName"] is None


def test_mails_may_go_over_an_account_of_the_tenant(world: World) -> None:
    assert "no SMTP server" in sentence(settings(world, clientId=world.acme.client_id))
    with world.system() as session:
        session.execute(update(EmailClient).values(smtp_host="smtp.acme.test"))
    made = settings(world, clientId=world.acme.client_id, senderAddress="hello@acme.test").json()
    assert (made["inForce"]["from"], made["inForce"]["server"]) == ("acme <hello@acme.test>", "smtp.acme.test")
    assert "no e-mail client" in sentence(settings(world, clientId=world.globex.client_id), 404)


def test_a_sender_over_the_systems_server_is_an_admins_to_set(world: World) -> None:
    refused = settings(world, senderAddress="boss@other.test")
    assert "only an admin key may set senderAddress" in sentence(refused, 403)
    headers = {"X-Tenant-Id": "acme"}
    made = world.call("PUT", SETTINGS, world.admin_key, json={"senderAddress": "Boss@Other.test"}, headers=headers)
    assert made.json()["senderAddress"] == "Boss@other.test"


@pytest.mark.parametrize(
    "fields",
    [
        {"senderAddress": "nobody"},
        {"senderName": "Acme\r\nBcc: eve@x.test"},
        {"appName": "a\x00b"},
        {"locale": "german"},
        {"linkBaseUrl": "javascript:alert(1)"},
        {"linkBaseUrl": "https://x.test/?a=1"},
        {"verificationPath": "verify"},
        {"verificationPath": "//evil.test"},
        {"accentColor": "red;}"},
        {"verificationExpiresHours": 0},
        {"unknown": 1},
    ],
)
def test_settings_that_cannot_be_are_refused(world: World, fields: dict[str, Any]) -> None:
    headers = {"X-Tenant-Id": "acme"}
    answer = world.call("PUT", SETTINGS, world.admin_key, json=fields, headers=headers)
    assert answer.status_code == 422, answer.text
    assert "eve@" not in answer.text


# -- secrets in answers --


def test_a_token_is_in_no_answer_and_no_page(world: World) -> None:
    body = {"task": "send_verification_email", "args": {"to_email": "r@x.test", "username": "Robin", "token": TOKEN}}
    headers = {"Idempotency-Key": "once"}
    accepted = [world.post("/api/tasks", json=body, headers=headers) for _ in range(2)]
    run_id = accepted[0].json()["taskId"]
    assert accepted[1].json()["taskId"] == run_id
    other = {**body, "args": {**body["args"], "token": "another"}}  # type: ignore[dict-item]
    assert "different request" in sentence(world.post("/api/tasks", json=other, headers=headers))
    batch = world.post("/api/tasks/batch", json=[body, body])
    with world.system() as session:
        assert {run.args["token"] for run in session.query(TaskRun)} == {"•••"}
    log_in(world)
    shown = page(world, f"/runs/{run_id}")
    assert "•••" in shown.text
    answers = [*accepted, batch, shown, world.get(f"/api/tasks/{run_id}"), world.get("/api/tasks"), world.get("/openapi.json")]
    assert [answer.url for answer in answers if TOKEN in answer.text] == []
    wrong = {**body, "args": {"to_email": "r@x.test", "username": 7, "token": TOKEN}}
    assert TOKEN not in world.post("/api/tasks", json=wrong).text


# -- the outbox --


def failed(world: World, **columns: Any) -> str:
    with world.system() as session:
        row = session.get_one(OutboundEmail, world.acme.outbound_id)
        for name, value in {"status": "failed", "last_error": "It was refused.", "to_addresses": "bob@x.test", **columns}.items():
            setattr(row, name, value)
    return world.acme.outbound_id


def test_failed_mails_are_listed_with_reason_and_recipients(world: World) -> None:
    email_id = failed(world, kind="verification")
    (item,) = world.get("/api/outbound-emails?status=failed").json()["items"]
    assert (item["id"], item["lastError"], item["to"], item["kind"]) == (email_id, "It was refused.", "bob@x.test", "verification")
    assert "source" not in item


def test_an_erased_mail_is_not_tried_again(world: World) -> None:
    email_id = failed(world, erased_at=now(), source=b"")
    answer = world.post(f"/admin/emails/{email_id}/retry", world.admin_key, headers={"X-Tenant-Id": "acme"})
    assert sentence(answer, 409) == "Its content was secret and has been erased; ask for a new mail."
    assert world.get(f"/api/outbound-emails/{email_id}").json()["erasedAt"] is not None
    failed(world, status="uncertain")
    resolved = world.post(f"/api/outbound-emails/{email_id}/resolve", json={"outcome": "retry"})
    assert resolved.status_code == 409


# -- pages --


def test_the_outbox_page_says_why_and_tries_again(world: World) -> None:
    email_id = failed(world)
    log_in(world)
    shown = page(world, "/mail/outbox?status=failed")
    assert "It was refused." in shown.text
    assert "bob@x.test" in shown.text
    assert 'form="retry-mail"' not in shown.text  # for admins
    assert page(world, "/mail/outbox?status=nonsense").status_code == 422
    assert "No mail is sent." in page(world, "/mail/outbox?status=sent").text
    world.http.cookies.clear()
    log_in(world, world.admin_key)
    admins = page(world, "/mail/outbox")
    assert "bob@" not in admins.text
    assert "Out</span>" not in admins.text  # a subject is for the tenant's own people
    answer = form(world, "/mail/outbox/retry", csrf_token=token_in(admins), email_id=email_id)
    assert answer.headers["location"] == "/mail/outbox?status=pending"
    with world.system() as session:
        assert session.get_one(OutboundEmail, email_id).status == "pending"
        assert session.query(TaskRun).one().task == "retry_failed_email"
    assert "acme" in page(world, "/mail/outbox?tenant=acme").text
    assert form(world, "/mail/outbox/retry", csrf_token="forged", email_id=email_id).status_code == 403


def test_a_long_outbox_has_pages(world: World) -> None:
    with world.system() as session:
        session.add_all(
            OutboundEmail(tenant_id=world.acme.tenant_id, message_id=f"<{n}@x>", subject=f"Mail {n}", sender="a@x.test", source=b"x")
            for n in range(60)
        )
    log_in(world)
    first = page(world, "/mail/outbox?status=pending")
    older = first.text.partition('href="/mail/outbox?')[2]
    assert "Older →" in first.text
    cursor = first.text.partition("cursor=")[2].partition('"')[0]
    second = page(world, f"/mail/outbox?status=pending&cursor={cursor}")
    assert older
    assert "Newest" in second.text
    assert "Older page, not live" in second.text


def test_the_templates_page_shows_a_letter_in_a_frame_without_loosening_its_own_policy(world: World) -> None:
    put(world, query="?locale=de", html="<p style='color:red'>{{ token }}</p><script>alert(1)</script>")
    log_in(world)
    shown = page(world, "/mail/templates?name=verification&locale=de")
    assert shown.headers["content-security-policy"] == CONTENT_POLICY + "; frame-src 'self'"
    assert '<iframe class="letter" title="The HTML of this mail" sandbox src="/mail/templates/frame?' in shown.text
    assert "Your own words, de" in shown.text
    assert "Code for Robin" in shown.text
    framed = page(world, "/mail/templates/frame?name=verification&locale=de")
    policy = framed.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert "script" not in policy
    assert framed.headers["x-frame-options"] == "SAMEORIGIN"
    assert "<p style='color:red'>" in framed.text
    assert page(world, "/mail/outbox").headers["content-security-policy"] == CONTENT_POLICY
    assert page(world, "/mail/templates?name=birthday").status_code == 404
    put(world, query="?locale=en", html="")
    assert "goes out as plain text" in page(world, "/mail/templates?locale=en").text
    world.http.cookies.clear()
    assert page(world, "/mail/templates/frame?name=welcome").status_code == 303
    log_in(world, world.globex.key)
    assert "As shipped, de" in page(world, "/mail/templates?name=verification&locale=de").text
    world.http.cookies.clear()
    log_in(world, world.admin_key)
    assert "Your own words, de" in page(world, "/mail/templates?name=verification&locale=de&tenant=acme").text
    assert "As shipped, de" in page(world, "/mail/templates?name=verification&locale=de").text


# -- commands --


@pytest.fixture
def command(world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A command line against the world's application, as an operator's."""

    def here(method: str, path: str, headers: dict[str, str], options: dict[str, Any]) -> Any:
        return world.call(method, path, world.admin_key, headers=headers, **options)

    monkeypatch.setattr(cli_client, "_here", here)

    def run(*words: str) -> Result:
        result = CliRunner().invoke(cli_app, ["mail", *words])
        assert result.exception is None or isinstance(result.exception, MailroomError | SystemExit), result.exception
        return result

    return run


def test_the_commands_show_letters(world: World, command: Any) -> None:
    put(world, "verification")
    shipped = command("preview", "verification").stdout
    assert "Verify your e-mail address for Mailroom" in shipped
    assert "as it ships" in shipped
    assert "Code for Robin" in command("preview", "verification", "--tenant", "acme").stdout
    assert command("preview", "welcome", "--locale", "de-AT", "--html").stdout.count("<!doctype html>") == 1
    assert "Guten Tag Robin," in command("preview", "welcome", "--locale", "de", "--text").stdout
    assert '"locale": "en"' in command("preview", "welcome", "--json").stdout
    assert "password_reset" in command("templates").stdout
    assert '"name": "system"' in command("templates", "--json").stdout
    assert "no template named" in str(command("preview", "birthday").exception)


def test_the_commands_list_failed_mails_and_try_again(world: World, command: Any) -> None:
    email_id = failed(world)
    listed = command("failed").stdout
    assert email_id in listed
    assert "It was refused." in listed
    assert '"lastError": "It was refused."' in command("failed", "--json").stdout
    run_id = command("retry", email_id).stdout.splitlines()[-1]
    with world.system() as session:
        assert session.get_one(TaskRun, run_id).task == "retry_failed_email"
    assert email_id not in command("failed").stdout
