"""Malformed and hostile mail: the table of shared research, the limits, and thousands of damaged messages; quick in every case."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail.mime import ParsedMessage, ParseLimits, attachment_content, parse_message
from mail.mime_headers import split_message
from tests.unit.mail_corpus import letter, mutated, texts_of

QUICK = 3.0
"""Seconds of CPU: coverage makes three of what is one without it, and what is quadratic takes minutes."""


def mail(head: str | bytes, body: str | bytes = b"") -> bytes:
    parts = [part.encode() if isinstance(part, str) else part for part in (head, body)]
    return b"\r\n\r\n".join(part.replace(b"\n", b"\r\n") for part in parts)


NESTED = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (number, number) for number in range(1000))
PDF = "--b\nContent-Type: application/pdf; name=a.pdf\nContent-Transfer-Encoding: base64\n\nQUJD\n"
INNER = "--b\n\nhi\n--b\nContent-Type: message/rfc822\n\nSubject: in\n\nner\n--b--"
MANY = "--b\n\nx\n" * 20_000 + "--b--"
CROWD = ", ".join(f"u{number}@x.yz" for number in range(20_000))
NAMED_CROWD = ", ".join(f'"U, {number}" <u{number}@x.yz>' for number in range(5_000))
HEADERS = "A: b\n" * 200_000
MIXED = "Content-Type: multipart/mixed; boundary=b"
# Those that test_mail_mime.py has in its tables of texts, subjects and file names are not repeated.
CASES: dict[str, tuple[bytes, Callable[[ParsedMessage], object]]] = {
    "encoded word inside quotes": (mail('From: "=?utf-8?Q?J=C3=BCrgen?=" <a@b.c>'), lambda p: p.sender and p.sender.name == "Jürgen"),
    "a comma in an encoded word": (
        mail("To: =?utf-8?Q?a=2C_b?= <a@b.c>, c@d.e"),
        lambda p: [each.name for each in p.to] == ["a, b", ""],
    ),
    "empty message": (b"", lambda p: p.text == "" and not p.attachments),
    "bare CR in a header": (b"Subject: a\rBcc: x@y.z\r\nFrom: a@b.c\r\n\r\nbody", lambda p: p.text == "body" and p.bcc == []),
    "garbage for a sender": (mail("From: <<>>@@,;\nTo: undisclosed-recipients:;", "b"), lambda p: p.text == "b" and p.to == []),
    "group with comments": (
        mail("To: A Group(c):Ed <joe@w.t>,john@x.t;, Pete(x) <pete@y.t>"),
        lambda p: [each.addr for each in p.to] == ["joe@w.t", "john@x.t", "pete@y.t"],
    ),
    "brackets in a Message-ID": (mail("Message-ID: <[abc]@x>"), lambda p: p.message_id == "<[abc]@x>"),
    "a name in Content-Type only": (
        mail(MIXED, f"--b\n\nhi\n{PDF}--b--\n"),
        lambda p: [(each.filename, each.size) for each in p.attachments] == [("a.pdf", 3)],
    ),
    "a message in the message": (
        mail(f"Subject: outer\n{MIXED}", INNER),
        lambda p: (p.subject, p.text, len(p.attachments)) == ("outer", "hi", 1),
    ),
    "thousand multiparts": (NESTED + b"Content-Type: text/plain\r\n\r\ndeep\r\n", lambda p: "too_deep" in p.defects),
    "20,000 parts": (mail(MIXED, MANY), lambda p: "too_many_parts" in p.defects),
    "a million parts": (
        mail(MIXED, "--b\n\nhi\n" + "--b\n" * 1_000_000),
        lambda p: "too_many_parts" in p.defects and p.text.startswith("hi"),
    ),
    "a header of 1 MB": (mail("Subject: s\nX-Big: " + "a " * 500_000, "body"), lambda p: (p.subject, p.text) == ("s", "body")),
    "100,000 beginnings of encoded words": (mail("Subject: s\nX: " + "=?utf-8?B?" * 100_000, "body"), lambda p: p.text == "body"),
    "a million parameters, and damaged base64": (
        mail(f"Content-Type: text/plain{';a' * 500_000}\nContent-Transfer-Encoding: base64", "YWJj*A"),
        lambda p: "encoding" in p.defects,
    ),
    "200,000 headers of a part, and damaged base64": (
        mail(MIXED, f"--b\nContent-Transfer-Encoding: base64\n\nYWJj*A\n--b\n{HEADERS}\nabc\n--b--"),
        lambda p: p.text.endswith("abc"),
    ),
    "a million lines and one, and damaged base64": (
        mail("Content-Transfer-Encoding: base64", "YWJj*A\n" + "\n" * 1_000_001),
        lambda p: "structure" in p.defects,
    ),
    "20,000 recipients": (mail(f"To: {CROWD}"), lambda p: len(p.to) == 1000),
    "20,000 recipients with names": (mail(f"To: {NAMED_CROWD}"), lambda p: len(p.to) > 0),
    "endless references": (mail("References: " + "<a@b> " * 10_000 + "x" * 60_000), lambda p: p.references == ["<a@b>"]),
    "endless encoded words": (mail("Subject: " + "=?utf-8?Q?a?= " * 5_000), lambda p: p.subject.startswith("aaa")),
    "unfinished encoded words": (mail("Subject: " + "=?" * 30_000), lambda p: p.subject.startswith("=?")),
    "unfinished angle brackets": (mail("References: " + "<" * 60_000), lambda p: p.references == []),
    "nested comments": (mail("From: " + "(" * 60_000), lambda p: p.sender is None),
    "a million empty lines": (b"Subject: s\r\n" + b"\r\n" * 1_000_000, lambda p: p.subject == "s"),
    "a million short headers": (b"a:b\r\n" * 1_000_000, lambda p: "headers_truncated" in p.defects),
    "a million folds": (b"Subject: s\r\n" + b" x\r\n" * 300_000, lambda p: "headers_truncated" in p.defects),
    "carriage returns": (b"a:" + b"\r" * 1_000_000, lambda p: True),
    "open tags": (mail("Content-Type: text/html", "<a" * 500_000), lambda p: True),
    "ends of others": (mail("Content-Type: text/html", "<font></b>" * 100_000), lambda p: True),
    "entities": (mail("Content-Type: text/html", "&amp" * 300_000), lambda p: True),
    "broken base64 without an end": (mail("Content-Transfer-Encoding: base64", "*" * 3_000_000), lambda p: True),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_read_quickly_and_without_an_error(name: str) -> None:
    raw, is_right = CASES[name]
    before = time.process_time()
    parsed = parse_message(raw)
    assert time.process_time() - before < QUICK
    assert "unparsable" not in parsed.defects
    assert is_right(parsed), parsed.defects
    texts_of(parsed).encode()


def test_two_thousand_damaged_messages_are_read() -> None:
    slowest, letters = 0.0, [small for number in range(200) if len(small := letter(number)) < 5000]
    for number in range(2000):
        raw = mutated(letters[number % len(letters)], random.Random(number))
        before = time.process_time()
        parsed = parse_message(raw)
        slowest = max(slowest, time.process_time() - before)
        text = texts_of(parsed)
        assert "unparsable" not in parsed.defects, number
        assert "\0" not in text, number
        text.encode()
    assert slowest < QUICK


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 300), st.integers())
def test_a_damaged_message_has_the_attachments_it_says(number: int, seed: int) -> None:
    raw = mutated(letter(number), random.Random(seed))
    for attachment in parse_message(raw).attachments:
        assert len(attachment_content(raw, attachment.part)) == attachment.size


def test_a_sound_letter_has_no_defects() -> None:
    for number in range(200):
        parsed = parse_message(letter(number))
        assert (parsed.defects, bool(parsed.text), parsed.sender is not None) == ([], True, True), number


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"a", b"b:"]), max_size=12).map(b"".join))
def test_the_header_ends_at_the_first_empty_line_of_any_kind(tail: bytes) -> None:
    head, body = split_message(b"x:" + tail)
    assert b"\n\n" not in head
    assert b"\r\r" not in head
    assert b"\n\r\n" not in head
    assert (b"x:" + tail).startswith(head)
    assert (b"x:" + tail).endswith(body)


# -- limits -----------------------------------------------------------------------------------------------------------------------


def test_of_a_message_over_the_limit_only_the_header_is_read() -> None:
    raw = mail("Subject: big", "x" * 500)
    parsed = parse_message(raw, ParseLimits(message=400))
    assert (parsed.subject, parsed.text, parsed.attachments, parsed.defects, parsed.size) == ("big", "", [], ["oversized"], len(raw))
    assert parse_message(raw, ParseLimits(message=len(raw))).defects == []


def test_a_header_over_the_limit_is_cut_and_the_body_still_there() -> None:
    raw = mail("Subject: s\nX-Big: " + "a" * 500 + "\nTo: a@b.c", "body")
    parsed = parse_message(raw, ParseLimits(header=100))
    assert (parsed.subject, parsed.to, parsed.text, parsed.defects) == ("s", [], "body", ["headers_truncated"])


def test_a_line_over_the_limit_is_cut() -> None:
    parsed = parse_message(mail("Subject: s", "x" * 50 + "\n" + "y" * 5), ParseLimits(line=20))
    assert (parsed.text, parsed.defects) == ("x" * 20 + "\n" + "y" * 5, ["text_truncated"])


def test_parts_and_depth_have_limits() -> None:
    many = mail(MIXED, PDF * 6 + "--b--\n")
    parsed = parse_message(many, ParseLimits(parts=4))
    assert (len(parsed.attachments), parsed.defects) == (4, ["too_many_parts"])
    nested = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (number, number) for number in range(4))
    assert parse_message(nested + b"\r\ndeep\r\n").text.strip() == "deep"
    assert "too_deep" in parse_message(nested + b"\r\ndeep\r\n", ParseLimits(depth=3)).defects


def test_a_message_id_fits_an_index() -> None:
    parsed = parse_message(mail(f"Message-ID: <{'語' * 800}@x>\nReferences: <{'語' * 800}@x>"))
    assert len(parsed.message_id.encode()) <= 1000
    assert (parsed.references, parsed.message_id[-1]) == ([parsed.message_id], ">")
