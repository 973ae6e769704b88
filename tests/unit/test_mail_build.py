"""Writing a mail: stable bytes that every server takes, and no way to write anything but one mail."""

from __future__ import annotations

import email
import email.policy
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InvalidInputError
from mail.addresses import Address
from mail.mime import attachment_content, parse_message
from mail.mime_build import OutgoingAttachment, OutgoingMail, build_message, needs_smtputf8, new_message_id

MAIL = OutgoingMail(
    message_id="<1@x.test>",
    date=datetime(2024, 1, 1, 12, tzinfo=UTC),
    sender=Address("Jo Ann", "jo@x.test"),
    to=[Address("", "a@x.test")],
    subject="hello",
    text="hi",
)


def test_a_mail_is_read_as_it_was_written() -> None:
    mail = replace(
        MAIL,
        sender=Address('Müller, "Jo"', "jo@x.test"),
        to=[Address("Ann, B.", "a@x.test"), Address("日本語", "b@x.test")],
        cc=[Address("", "c@x.test")],
        reply_to=Address("", "r@x.test"),
        subject="Grüße " * 40,
        text="Zażółć\n.dot\nFrom here\n" + "long " * 400,
        html="<p>日本語テキスト</p>",
        attachments=[
            OutgoingAttachment("Rechnung März.pdf", "application/pdf", b"\0\1\2" * 1000),
            OutgoingAttachment('a"b.txt', "text/plain", b"x"),
        ],
        headers=[("In-Reply-To", "<0@x.test>"), ("X-Note", "ü")],
    )
    raw = build_message(mail)
    parsed = parse_message(raw)
    assert parsed.defects == []
    assert parsed.sender == mail.sender
    assert (parsed.to, parsed.cc, parsed.reply_to) == (mail.to, mail.cc, [mail.reply_to])
    assert (parsed.subject, parsed.date, parsed.message_id, parsed.in_reply_to) == (
        mail.subject.strip(),
        mail.date,
        "<1@x.test>",
        "<0@x.test>",
    )
    assert (parsed.text.strip(), parsed.html.strip()) == (mail.text.strip(), mail.html)
    assert [each.filename for each in parsed.attachments] == ["Rechnung März.pdf", "a'b.txt"]
    assert attachment_content(raw, parsed.attachments[0].part) == b"\0\1\2" * 1000


def test_the_same_mail_is_the_same_bytes() -> None:
    mail = replace(MAIL, html="<p>", attachments=[OutgoingAttachment("a", "a/b", b"x")])
    assert build_message(mail) == build_message(mail)
    assert build_message(mail) != build_message(replace(mail, message_id="<2@x.test>"))


def test_the_bytes_are_ascii_with_crlf_and_short_lines() -> None:
    mail = replace(MAIL, subject="ü" * 300, text="é" * 5000, sender=Address("ö" * 100, "jo@x.test"), headers=[("X-Long", "word " * 60)])
    raw = build_message(mail)
    assert raw.isascii()
    assert b"\n" not in raw.replace(b"\r\n", b"")
    assert max(map(len, raw.split(b"\r\n"))) <= 78


def test_plain_english_is_sent_as_it_is() -> None:
    raw = build_message(MAIL)
    assert raw.endswith(b'Content-Type: text/plain; charset="utf-8"\r\nContent-Transfer-Encoding: 7bit\r\n\r\nhi\r\n')
    assert b"From: Jo Ann <jo@x.test>\r\n" in raw


def test_bcc_is_never_written() -> None:
    raw = build_message(replace(MAIL, to=[], bcc=[Address("", "secret@x.test")]))
    assert b"secret" not in raw
    assert b"To: undisclosed-recipients:;" in raw
    assert b"To:" not in build_message(replace(MAIL, to=[], cc=[Address("", "c@x.test")]))


def test_a_mail_may_be_html_only() -> None:
    assert parse_message(build_message(replace(MAIL, text="", html="<p>x</p>"))).text == ""


def test_the_standard_library_reads_it_without_complaint() -> None:
    raw = build_message(replace(MAIL, html="<p>ü</p>", attachments=[OutgoingAttachment("ü.bin", "application/x-y", b"123")]))
    parsed = email.message_from_bytes(raw, policy=email.policy.default)
    assert not [part for part in parsed.walk() if part.defects]
    assert [part.get_content_type() for part in parsed.walk()] == [
        "multipart/mixed", "multipart/alternative", "text/plain", "text/html", "application/x-y",
    ]  # fmt: skip


BREAK = "a\r\nBcc: evil@x.test"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"subject": BREAK}, "subject"),
        ({"subject": "a\u2028b"}, "subject"),
        ({"subject": "x" * 1000}, "subject"),
        ({"sender": Address(BREAK, "jo@x.test")}, "from"),
        ({"sender": Address("n" * 300, "jo@x.test")}, "from"),
        ({"to": [Address("", "a@x.test"), Address("", BREAK)]}, r"to\[1\]"),
        ({"cc": [Address("", "nobody")]}, r"cc\[0\]"),
        ({"reply_to": Address(BREAK, "jo@x.test")}, "reply-to"),
        ({"headers": [("X-A", BREAK)]}, "x-a"),
        ({"headers": [("X-A: b\r\nBcc", "x")]}, "headers"),
        ({"headers": [("Bcc", "evil@x.test")]}, "headers"),
        ({"headers": [("Content-Type", "text/html")]}, "headers"),
        ({"message_id": "<1@x.test>\r\nBcc: x"}, "message_id"),
        ({"message_id": "1@x.test"}, "message_id"),
        ({"date": datetime(2024, 1, 1)}, "date"),  # noqa: DTZ001
        ({"attachments": [OutgoingAttachment(BREAK, "a/b", b"")]}, r"attachments\[0\].filename"),
        ({"attachments": [OutgoingAttachment("", "a/b", b"")]}, r"attachments\[0\].filename"),
        ({"attachments": [OutgoingAttachment("a", "a/b\r\nBcc: x", b"")]}, r"attachments\[0\].content_type"),
        ({"attachments": [OutgoingAttachment("a", "multipart/mixed", b"")]}, r"attachments\[0\].content_type"),
    ],
)
def test_what_could_break_out_of_its_field_is_refused_by_name(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInputError, match=field) as caught:
        build_message(replace(MAIL, **changes))  # type: ignore[arg-type]
    assert "evil" not in str(caught.value)


def test_message_ids_are_new_and_safe() -> None:
    assert new_message_id("x.test") != new_message_id("x.test")
    assert new_message_id("x.test").endswith("@x.test>")
    with pytest.raises(InvalidInputError):
        new_message_id("x.test>\r\nBcc: y")


def test_only_addresses_in_other_scripts_need_smtputf8() -> None:
    assert needs_smtputf8(["jürgen@x.test"])
    assert not needs_smtputf8(["jo@x.test"])
    assert "From: jürgen@x.test\r\n".encode() in build_message(replace(MAIL, sender=Address("", "jürgen@x.test")))


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200), st.text(max_size=60), st.text(max_size=400), st.text(max_size=30))
def test_any_text_is_refused_or_arrives_and_writes_no_header_of_its_own(subject: str, name: str, text: str, filename: str) -> None:
    mail = replace(
        MAIL, subject=subject, sender=Address(name, "jo@x.test"), text=text, attachments=[OutgoingAttachment(filename, "a/b", b"x")]
    )
    try:
        raw = build_message(mail)
    except InvalidInputError:
        return
    parsed = parse_message(raw)
    assert [header for header, _ in parsed.headers] == ["Date", "Message-ID", "From", "To", "Subject", "MIME-Version", "Content-Type"]
    assert parsed.subject.split() == subject.encode("utf-8", "replace").decode().split() or not subject.isprintable() or "=?" in subject
    assert len(parsed.attachments) == 1
    assert max(map(len, raw.split(b"\r\n"))) <= 998
