"""Delivery reports: what they say of each recipient, in the shapes that servers really send, and in none at all."""

from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail.bounces import BounceReport, read_bounce

STATUS = """Reporting-MTA: dns; mx.globex.test
Original-Envelope-Id: 018f-77+2B8

Original-Recipient: rfc822;jo+2Bnews@globex.test
Final-Recipient: rfc822; jo@inside.globex.test
Action: failed
Status: 5.1.1 (no such user)
Diagnostic-Code: smtp; 550 5.1.1 <jo@inside.globex.test>... User
    unknown

Final-Recipient: rfc822; <late@globex.test>
Action: Delayed
Status: 4.4.7
"""
ORIGINAL = "Received: by somebody\nMessage-ID: <one@acme.test>\nSubject: Hi\n"


def report(status: str = STATUS, original: str = ORIGINAL, *, kind: str = "text/rfc822-headers", status_head: str = "") -> bytes:
    text = (
        "From: MAILER-DAEMON@globex.test\nTo: ann@acme.test\nMIME-Version: 1.0\n"
        'Content-Type: multipart/report; report-type=delivery-status;\n boundary="b"\n\n'
        "--b\n\nSorry.\n--b\nContent-Type: message/delivery-status\n"
        f"{status_head}\n{status}\n--b\nContent-Type: {kind}\n\n{original}\n--b--\n"
    )
    return text.replace("\n", "\r\n").encode()


EXPECTED = [
    BounceReport("<one@acme.test>", "018f-77+8", "jo+news@globex.test", "failed", "5.1.1"),
    BounceReport("<one@acme.test>", "018f-77+8", "late@globex.test", "delayed", "4.4.7"),
]


@pytest.mark.parametrize("kind", ["text/rfc822-headers", "message/rfc822", "message/global-headers"])
def test_each_recipient_of_a_report_is_told(kind: str) -> None:
    found = read_bounce(report(kind=kind))
    assert found == EXPECTED
    assert [each.is_permanent for each in found or []] == [True, False]


def test_bare_line_feeds_and_an_encoded_status_are_read_too() -> None:
    assert read_bounce(report().replace(b"\r\n", b"\n")) == EXPECTED
    encoded = base64.encodebytes(STATUS.encode()).decode()
    assert read_bounce(report(encoded, status_head="Content-Transfer-Encoding: base64\n")) == EXPECTED


def test_what_did_not_come_back_is_none() -> None:
    (only,) = (
        read_bounce(report("Reporting-MTA: dns; x\n\nFinal-Recipient: rfc822;a@b.test\nAction: failed\n", original="Subject: x\n")) or []
    )
    assert only == BounceReport(None, None, "a@b.test", "failed", "5.0.0")


def test_the_status_may_stand_in_the_server_s_words_only() -> None:
    (only,) = read_bounce(report("A: b\n\nFinal-Recipient: rfc822;a@b.test\nAction: failed\nDiagnostic-Code: smtp; 552 5.2.2 full\n")) or []
    assert only.status == "5.2.2"


HEAD = (
    b"Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; x\r\n\r\n"
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "field",
    [
        b"Final-Recipient: rfc822; " + b"a" * 300_000,
        b"Original-Recipient: rfc822;" + b"+41" * 300_000,
        b"Final-Recipient: rfc822; b@x.test\r\nDiagnostic-Code: smtp; " + b"5.1." * 300_000,
        b"Final-Recipient: rfc822; b@x.test\r\n\r\n" * 30_000,
    ],
    ids=["address", "xtext", "status", "recipients"],
)
def test_an_endless_field_costs_bounded_time(field: bytes) -> None:
    began = time.process_time()
    reports = read_bounce(HEAD + field + b"\r\n\r\n--b--\r\n")
    assert reports is not None
    assert len(reports) <= 1000
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"Subject: hello\r\n\r\nbody multipart/report\r\n",
        b"Content-Type: multipart/report; boundary=b\r\n\r\nno parts",
        b"Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\n\r\nhi\r\n--b--",
        report()[:40],
    ],
)
def test_what_is_no_report_is_none(raw: bytes) -> None:
    assert read_bounce(raw) is None


@given(st.binary(max_size=400), st.integers(0, 900), st.integers(0, 900))
def test_damage_never_raises(noise: bytes, start: int, end: int) -> None:
    whole = report()
    read_bounce(whole[:start] + noise + whole[end:])
