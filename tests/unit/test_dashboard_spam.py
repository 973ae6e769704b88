"""The dashboard's mail pages: verdicts in the list, a message with its signs, and the buttons that say otherwise."""

from __future__ import annotations

import pytest

from api.dashboard.words import codes, percent
from mail.spam.verdict import EngineScore, Indicator, Severity, Verdict
from storage.models import EmailMessage, SpamFeedback
from storage.repositories.spam_verdicts import SpamVerdicts
from tests.unit.api_world import World, world
from tests.unit.test_api_dashboard import form, log_in, page, token_in

__all__ = ["world"]
EVIL = "<script>alert(1)</script>"
SPAM = Verdict(
    0.97,
    True,
    0.8,
    (
        Indicator("image_only_body", Severity.LOW, ""),
        Indicator("ip_url", Severity.HIGH, EVIL),
        Indicator("engine_symbol", Severity.INFO, "x"),
    ),
    (),
    b"",
    3.5,
    engines=(EngineScore("rspamd", 12.25, 15.0, ()),),
    notes=("truncated",),
)


@pytest.fixture
def judged(world: World) -> World:
    with world.as_tenant(world.acme) as session:
        SpamVerdicts(session).put({world.acme.message_id: SPAM}, "model-1")
    log_in(world)
    return world


def path_of(world: World) -> str:
    return f"/mail/{world.acme.message_id}"


def test_the_list_says_what_is_spam_and_why(judged: World) -> None:
    text = page(judged, "/mail").text
    assert "97 %" in text
    assert "ip_url, image_only_body" in text
    assert f'href="{path_of(judged)}"' in text


def test_a_message_shows_the_signs_and_nothing_of_it_becomes_markup(judged: World) -> None:
    with judged.system() as session:
        message = session.get_one(EmailMessage, judged.acme.message_id)
        message.subject = message.body_text = EVIL
        message.sender = {"name": EVIL, "address": "x@x.test"}
    text = page(judged, path_of(judged)).text
    for expected in ("97 %", "spam from 80 %", "ip_url", "high", "12.2", "of 15.0", "truncated", "INBOX", "&lt;script&gt;"):
        assert expected in text, expected
    assert "<script>alert" not in text


def test_a_message_that_was_not_checked_says_so(world: World) -> None:
    log_in(world)
    assert "was not checked" in page(world, path_of(world)).text
    with world.system() as session:
        session.get_one(EmailMessage, world.acme.message_id).body_text = "word " * 10_000
    assert "It goes on" in page(world, path_of(world)).text


def test_people_say_otherwise_and_take_it_back(judged: World) -> None:
    def say(spam: str) -> str:
        token = token_in(page(judged, path_of(judged)))
        assert form(judged, f"{path_of(judged)}/spam", csrf_token=token, spam=spam).status_code == 303
        return page(judged, path_of(judged)).text

    assert "this is not spam." in say("no")
    assert "this is spam." in say("yes")
    assert "Take back" not in say("undo")
    assert judged.count(SpamFeedback) == 1
    refused = form(judged, f"{path_of(judged)}/spam", csrf_token="wrong", spam="yes")
    assert refused.status_code == 403


def test_mail_is_shown_to_its_own_people_only(judged: World) -> None:
    assert page(judged, f"/mail/{judged.globex.message_id}").status_code == 404
    judged.http.cookies.clear()
    log_in(judged, judged.admin_key)
    assert page(judged, path_of(judged)).status_code == 404
    token = token_in(page(judged, "/mail"))
    assert form(judged, f"{path_of(judged)}/spam", csrf_token=token, spam="yes").status_code == 404


def test_probabilities_and_signs_read_well() -> None:
    assert [percent(value) for value in (0.0, 0.004, 0.01, 0.5, 0.994, 1.0)] == ["< 1 %", "< 1 %", "1 %", "50 %", "> 99 %", "> 99 %"]
    assert codes([{"code": "b", "severity": "low"}, {"code": "a", "severity": "high"}, {"code": "b", "severity": "medium"}]) == "a, b"
