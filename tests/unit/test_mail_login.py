"""Logging in with a token, and what servers say instead of letting us in."""

from __future__ import annotations

import base64

import pytest

from core.errors import MailroomError, TransientError
from mail.accounts import Secret, Security
from mail.errors import AuthenticationRefused, EncryptionRequired, MailboxProtocolError, ServerThrottled, ServerUnavailable
from tests.unit.imap_sessions import GREETING, error_of, mailbox_at
from tests.unit.scripted_server import ScriptedServer

TOKEN = {"token": Secret("t0ken"), "secret": Secret("hunter2"), "username": "jo,=@x.test"}
REFUSAL = base64.b64encode(b'{"status":"401","schemes":"bearer","scope":"mail"}')


def greeting(capabilities: str) -> tuple[str, bytes]:
    return ("", f"* OK [CAPABILITY IMAP4rev1 {capabilities}] hi\r\n".encode())


def said(server: ScriptedServer, line: int = 0) -> bytes:
    return base64.b64decode(server.lines[line].split()[-1])


def test_a_token_goes_as_oauthbearer_before_xoauth2_and_never_the_password() -> None:
    steps = [greeting("AUTH=PLAIN AUTH=XOAUTH2 AUTH=OAUTHBEARER SASL-IR"), ("AUTHENTICATE OAUTHBEARER ", b"%t OK [CAPABILITY X] in\r\n")]
    with ScriptedServer(*steps) as server, mailbox_at(server, **TOKEN):
        pass
    assert said(server) == f"n,a=jo=2C=3D@x.test,\1host=127.0.0.1\1port={server.port}\1auth=Bearer t0ken\1\1".encode()


def test_a_server_that_only_knows_xoauth2_gets_that() -> None:
    steps = [greeting("AUTH=PLAIN AUTH=XOAUTH2 SASL-IR"), ("AUTHENTICATE XOAUTH2 ", b"%t OK [CAPABILITY X] in\r\n")]
    with ScriptedServer(*steps) as server, mailbox_at(server, **TOKEN):
        pass
    assert said(server) == b"user=jo,=@x.test\1auth=Bearer t0ken\1\1"


def test_without_initial_response_the_token_waits_for_the_server() -> None:
    steps = [greeting("AUTH=XOAUTH2"), ("AUTHENTICATE XOAUTH2\r", b"+ \r\n"), ("^dXNlcj1", b"M1 OK [CAPABILITY X] in\r\n")]
    with ScriptedServer(*steps) as server, mailbox_at(server, **TOKEN):
        pass


@pytest.mark.parametrize(("mechanism", "answer"), [("XOAUTH2", "^\r\n$"), ("OAUTHBEARER", "^AQ==\r\n$")])
def test_a_refused_token_is_told_in_a_challenge_that_must_be_answered(mechanism: str, answer: str) -> None:
    steps = [
        greeting(f"AUTH={mechanism} SASL-IR"),
        ("AUTHENTICATE", b"+ " + REFUSAL + b"\r\n"),
        (answer, b"M1 NO [AUTHENTICATIONFAILED]\r\n"),
    ]
    assert type(error_of(*steps, **TOKEN)) is AuthenticationRefused


def test_a_server_that_challenges_for_ever_is_left() -> None:
    steps = [greeting("AUTH=XOAUTH2 SASL-IR"), ("AUTHENTICATE", b"+ a\r\n"), ("^\r\n", b"+ b\r\n")]
    assert isinstance(error_of(*steps, **TOKEN), MailboxProtocolError)


def test_a_token_is_not_sent_as_a_password() -> None:
    assert isinstance(error_of(greeting("AUTH=PLAIN LOGIN SASL-IR"), **TOKEN), AuthenticationRefused)


def test_a_token_needs_encryption_as_a_password_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mail.tls.is_private", lambda _ip: False)
    assert isinstance(error_of(greeting("AUTH=XOAUTH2 SASL-IR"), **TOKEN), EncryptionRequired)


def test_capabilities_can_be_left_unused() -> None:
    steps = [greeting("AUTH=PLAIN SASL-IR"), ('LOGIN "jo" "hunter2"', b"%t OK [CAPABILITY CONDSTORE X] in\r\n")]
    with ScriptedServer(*steps) as server, mailbox_at(server, without=frozenset({"AUTH=PLAIN", "CONDSTORE"})) as mailbox:
        assert mailbox._connection.capabilities == {"X"}


@pytest.mark.parametrize(
    ("answer", "kind", "seconds"),
    [
        (b"NO [LIMIT] Too many simultaneous connections", ServerThrottled, None),
        (b"NO [ALERT] Too many simultaneous connections. (Failure)", ServerThrottled, None),  # Gmail
        (b"NO [ALERT] Account exceeded command or bandwidth limits. (Failure)", ServerThrottled, None),  # Gmail
        (b"NO [OVERQUOTA] Account exceeded bandwidth limits", ServerThrottled, None),
        (b"NO [OVERQUOTA] Not now", ServerThrottled, None),
        (b"NO [THROTTLED] Account exceeded command or bandwidth limits", ServerThrottled, None),
        (b"NO Request is throttled. Suggested Backoff Time: 4500 milliseconds", ServerThrottled, 4.5),  # Office 365
        (b"BAD Request is throttled. Suggested Backoff Time: 90000 milliseconds", ServerThrottled, 90),
        (b"BAD User is authenticated but not connected.", ServerUnavailable, None),  # Office 365
        (b"NO [UNAVAILABLE] Temporary System Error", ServerUnavailable, None),  # Yahoo, iCloud
        (b"NO [UNAVAILABLE] LOGIN failure. Server error - please try again in 5 minutes", ServerUnavailable, 300),
        (b"NO [INUSE] Mailbox in use, retry in 30 seconds", ServerUnavailable, 30),
        (b"NO [SERVERBUG] LOGIN Server error - Please try again later", ServerThrottled, None),  # Yahoo
        (b"NO LOGIN Rate limit hit.", ServerThrottled, None),  # Yahoo
        (b"NO [CONTACTADMIN] see the administrator", ServerUnavailable, None),
        (b"NO [ALERT] Maximum number of connections from user+IP exceeded (mail_max_userip_connections=10)", ServerThrottled, None),
        (b"NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)", AuthenticationRefused, None),
        (b"NO [ALERT] Application-specific password required", AuthenticationRefused, None),
        (b"NO LOGIN failed.", AuthenticationRefused, None),
    ],
)
def test_a_pause_is_never_taken_for_a_wrong_password(answer: bytes, kind: type[MailroomError], seconds: float | None) -> None:
    error = error_of(GREETING, (" AUTH", b"%t " + answer + b"\r\n"))
    assert type(error) is kind
    assert (error.retry_after if isinstance(error, TransientError) else None) == seconds


@pytest.mark.parametrize(
    ("goodbye", "kind"),
    [
        (b"* BYE [UNAVAILABLE] later\r\n", ServerUnavailable),
        (b"* BYE Too many connections, try again in 2 minutes\r\n", ServerThrottled),
        (b"* BYE Autologout\r\n", ServerUnavailable),
    ],
)
@pytest.mark.parametrize("place", ["greeting", "capability", "starttls", "login"])
def test_a_goodbye_is_transient_wherever_it_comes(place: str, goodbye: bytes, kind: type[MailroomError]) -> None:
    capable = greeting("STARTTLS AUTH=PLAIN SASL-IR")
    steps = {
        "greeting": [("", goodbye)],
        "capability": [("", b"* OK hi\r\n"), ("CAPABILITY", goodbye)],
        "starttls": [capable, ("STARTTLS", goodbye)],
        "login": [capable, ("AUTHENTICATE", goodbye)],
    }[place]
    assert type(error_of(*steps, security=Security.STARTTLS if place == "starttls" else Security.PLAIN)) is kind
