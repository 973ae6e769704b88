"""The demo's messages are what mail programs send: parseable, of many kinds, the same every time."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest

from demo.messages import acme_inbox, globex_inbox, small_pdf, small_png

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def parsed() -> list[EmailMessage]:
    return [message_from_bytes(seed.raw, policy=policy.default) for seed in acme_inbox(NOW) + globex_inbox(NOW)]


def with_subject(text: str) -> EmailMessage:
    return next(message for message in parsed() if text in str(message["Subject"]))


def test_two_mailboxes_hold_forty_messages() -> None:
    assert (len(acme_inbox(NOW)), len(globex_inbox(NOW))) == (22, 18)


def test_the_same_moment_gives_the_same_bytes() -> None:
    assert acme_inbox(NOW) == acme_inbox(NOW)


def test_dates_rise_and_end_just_before_the_moment() -> None:
    for inbox in (acme_inbox(NOW), globex_inbox(NOW)):
        dates = [seed.received_at for seed in inbox]
        assert dates == sorted(dates)
        assert NOW - timedelta(hours=1) < dates[-1] < NOW
        assert dates[0] > NOW - timedelta(days=7)


def test_message_ids_are_unique_and_every_address_is_an_example() -> None:
    everything = b"".join(seed.raw for seed in acme_inbox(NOW) + globex_inbox(NOW)).decode("latin-1")
    ids = [message["Message-ID"] for message in parsed()]
    assert len(set(ids)) == 40
    assert all(domain.endswith(".example") for domain in re.findall(r"[\w.-]+@([\w.-]+\w)", everything))


def test_replies_name_their_whole_thread() -> None:
    reply = with_subject("Re: Průvlak v ose C")
    last = [message for message in parsed() if str(message["Subject"]) == "Re: Průvlak v ose C"][-1]
    assert reply["References"] == "<statics@statika.example>"
    assert last["References"] == "<statics@statika.example> <statics-a@globex.example>"
    assert last["In-Reply-To"] == "<statics-a@globex.example>"


@pytest.mark.parametrize(
    ("subject", "charset", "text"),
    [
        ("Größe der Schaufel", "iso-8859-1", "größere Kinder"),
        ("在庫の確認", "iso-2022-jp", "剪定ばさみの在庫はありますか。"),
        ("Gracias", "utf-8", "¡Mil gracias"),
        ("Průvlak", "utf-8", "průvlak v ose C"),
    ],
)
def test_texts_survive_their_character_set(subject: str, charset: str, text: str) -> None:
    message = with_subject(subject)
    part = message.get_body(("plain",))
    assert part is not None
    assert part.get_content_charset() == charset
    assert text in part.get_content()


def test_attachments_carry_their_names_and_look_like_what_they_are() -> None:
    attachments = {part.get_filename(): part.get_payload(decode=True) for message in parsed() for part in message.iter_attachments()}
    assert len(attachments) == 13
    for name, content in attachments.items():
        assert isinstance(content, bytes)
        start = {"pdf": b"%PDF-1.4", "png": b"\x89PNG\r\n\x1a\n", "csv": b"article,count,price"}[str(name)[-3:]]
        assert content.startswith(start)
    assert small_pdf("a") != small_pdf("b")
    assert small_png("a") != small_png("b")


def test_html_comes_with_plain_text() -> None:
    message = with_subject("Our offer for 48 windows")
    html = message.get_body(("html",))
    assert message.get_content_type() == "multipart/mixed"
    assert message.get_body(("plain",)) is not None
    assert html is not None
    assert "<h1>Our offer for 48 windows</h1>" in html.get_content()


def test_newsletters_can_be_left_with_one_click() -> None:
    message = with_subject("Ten bulbs")
    assert message["List-Unsubscribe"].startswith("<https://gardenweekly.example/unsubscribe/")
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"


def test_one_message_is_broken_on_purpose() -> None:
    broken = [message for message in parsed() if message.get_content_charset() == "x-fax-7"]
    assert len(broken) == 1
    assert broken[0].defects
    assert all(len(line) <= 998 for seed in acme_inbox(NOW) + globex_inbox(NOW) for line in seed.raw.split(b"\r\n"))


def test_every_other_message_is_seven_bit_with_network_line_ends() -> None:
    sound = [seed.raw for seed in acme_inbox(NOW) + globex_inbox(NOW) if b"x-fax-7" not in seed.raw]
    assert len(sound) == 39
    assert all(raw.isascii() and not re.search(rb"(?<!\r)\n", raw) for raw in sound)
    assert not any(message.defects for message in parsed() if message.get_content_charset() != "x-fax-7")
