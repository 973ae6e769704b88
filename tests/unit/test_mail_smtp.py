"""Handing mail over: who is refused, what is retried, and what nobody can know."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path

import pytest

from core.errors import InvalidInputError, MailroomError, UnavailableError
from mail.accounts import Endpoint, Secret, Security
from mail.delivery import DeliveryOutcome, deliver
from mail.errors import (
    AuthenticationRefused,
    CertificateRefused,
    ConnectionFailed,
    DeliveryUncertain,
    EncryptionRequired,
    Greylisted,
    HostNotAllowed,
    MessageRejected,
    SenderRejected,
    ServerThrottled,
    ServerUnavailable,
)
from mail.fake import FakeTransport
from mail.replies import SmtpReply, retry_hint, smtp_error
from mail.smtp import SmtpTransport
from tests.servers.certificate import write_self_signed
from tests.unit.scripted_server import HANG_UP, START_TLS, ScriptedServer

RAW = b"Subject: hello\r\n\r\nbody\r\n"
HELLO = [("", b"220 ready\r\n"), ("^EHLO", b"250-hi\r\n250-SIZE 1000\r\n250 8BITMIME\r\n")]
MAIL = ("^MAIL FROM:<a@x.test>", b"250 ok\r\n")
RCPT = ("^RCPT TO:<b@x.test>", b"250 ok\r\n")
DATA = ("^DATA", b"354 go\r\n")
BODY = [("^Subject", b""), ("^\r", b""), ("^body", b"")]
DOT = ("^\\.\r", b"250 2.0.0 queued\r\n")


def transport_to(server: ScriptedServer, **changes: object) -> SmtpTransport:
    settings: dict[str, object] = {
        "host": server.host,
        "port": server.port,
        "security": Security.PLAIN,
        "allow_private": True,
        "timeout": 2,
    }
    return SmtpTransport(Endpoint(**(settings | changes)))  # type: ignore[arg-type]


def delivered(
    *steps: tuple[str, bytes], recipients: tuple[str, ...] = ("b@x.test",), raw: bytes = RAW, sender: str = "a@x.test"
) -> DeliveryOutcome:
    with ScriptedServer(*steps) as server, transport_to(server) as transport:
        return deliver(raw, sender=sender, recipients=recipients, via=transport)


def failure(*steps: tuple[str, bytes], **changes: object) -> MailroomError:
    """The error that handing over one mail ends with; it names nobody."""
    with ScriptedServer(*steps) as server, pytest.raises(MailroomError) as caught, transport_to(server, **changes) as transport:
        deliver(RAW, sender="a@x.test", recipients=["b@x.test"], via=transport)
    assert "@" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    return caught.value


# -- the real transport -------------------------------------------------------------------------------------------------------


def test_a_mail_is_announced_with_its_size_and_handed_over() -> None:
    with ScriptedServer(*HELLO, MAIL, RCPT, DATA, *BODY, DOT) as server, transport_to(server) as transport:
        outcome = deliver(RAW, sender="a@x.test", recipients=["b@x.test", "b@x.test"], via=transport)
    assert outcome == DeliveryOutcome(["b@x.test"], [], None, 250, "2.0.0")
    assert b"MAIL FROM:<a@x.test> SIZE=24 BODY=8BITMIME\r\n" in server.lines
    assert server.lines[0] == b"EHLO [127.0.0.1]\r\n"


def test_two_mails_go_over_one_connection() -> None:
    one = [MAIL, RCPT, DATA, *BODY, DOT]
    with ScriptedServer(*HELLO, *one, *one) as server, transport_to(server) as transport:
        for _ in range(2):
            assert deliver(RAW, sender="a@x.test", recipients=["b@x.test"], via=transport).accepted == ["b@x.test"]


def test_lines_that_begin_with_a_dot_arrive_as_they_were() -> None:
    steps = [MAIL, RCPT, DATA, ("^\\.\\.first\r", b""), ("^\\.\\.\r", b""), ("^bare\r", b""), ("^last\r", b""), DOT]
    with ScriptedServer(*HELLO, *steps) as server, transport_to(server) as transport:
        deliver(b".first\r\n.\nbare\rlast", sender="a@x.test", recipients=["b@x.test"], via=transport)


def test_the_mark_is_written_after_the_body_and_before_the_dot() -> None:
    with ScriptedServer(*HELLO, MAIL, RCPT, DATA, *BODY, DOT) as server, transport_to(server) as transport:
        seen: list[bool] = []
        deliver(
            RAW, sender="a@x.test", recipients=["b@x.test"], via=transport, before_final_dot=lambda: seen.append(b".\r\n" in server.lines)
        )
    assert seen == [False]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), UnavailableError("The database is away."), KeyboardInterrupt()])
def test_a_mark_that_cannot_be_written_stops_the_mail(error: BaseException) -> None:
    def fails() -> None:
        raise error

    with ScriptedServer(*HELLO, MAIL, RCPT, DATA, *BODY) as server, transport_to(server) as transport:
        with pytest.raises(type(error)):
            deliver(RAW, sender="a@x.test", recipients=["b@x.test"], via=transport, before_final_dot=fails)
        assert not transport.is_open
        with pytest.raises(ConnectionFailed):
            deliver(RAW, sender="a@x.test", recipients=["b@x.test"], via=transport)
    assert b".\r\n" not in server.lines


def test_refused_recipients_do_not_stop_the_others() -> None:
    refusals = [("<gone@", b"550 5.1.1 <gone@x.test> unknown\r\n"), ("<full@", b"452 4.2.2 try again in 10 minutes\r\n")]
    outcome = delivered(*HELLO, MAIL, *refusals, RCPT, DATA, *BODY, DOT, recipients=("gone@x.test", "full@x.test", "b@x.test"))
    assert outcome.accepted == ["b@x.test"]
    assert (outcome.bounced, outcome.deferred, outcome.retry_after) == (["gone@x.test"], ["full@x.test"], 600)
    assert outcome.refused[0].reason == "The mail server refused the recipient (550 5.1.1): there is no such mailbox."


def test_when_everybody_is_refused_no_body_is_sent() -> None:
    outcome = delivered(*HELLO, MAIL, ("^RCPT", b"550 no\r\n"), ("^RSET", b"250 ok\r\n"))
    assert (outcome.accepted, outcome.bounced, outcome.reply_code) == ([], ["b@x.test"], 550)


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([("^MAIL", b"550 5.7.1 a@x.test not yours\r\n"), ("RSET", b"250 ok\r\n")], SenderRejected),
        ([("^MAIL", b"451 4.7.1 later\r\n"), ("RSET", b"250 ok\r\n")], Greylisted),
        ([("^MAIL", b"530 5.7.0 log in first\r\n")], AuthenticationRefused),
        ([("^MAIL", b"421 closing\r\n")], ServerUnavailable),
        ([MAIL, ("^RCPT", b"530 log in\r\n")], AuthenticationRefused),
        ([MAIL, ("^RCPT", b"421 too much\r\n")], ServerUnavailable),
        ([MAIL, ("^RCPT", HANG_UP)], ConnectionFailed),
        ([MAIL, RCPT, ("^DATA", b"554 no valid\r\n"), ("RSET", HANG_UP)], MessageRejected),
        ([MAIL, RCPT, ("^DATA", HANG_UP)], ConnectionFailed),
        ([MAIL, RCPT, DATA, *BODY, ("^\\.", b"554 5.7.1 spam\r\n"), ("RSET", b"250\r\n")], MessageRejected),
        ([MAIL, RCPT, DATA, *BODY, ("^\\.", b"451 4.3.0 disk\r\n"), ("RSET", b"250\r\n")], Greylisted),
        ([MAIL, RCPT, DATA, *BODY, ("^\\.", HANG_UP)], DeliveryUncertain),
        ([MAIL, RCPT, DATA, *BODY, ("^\\.", b"nonsense\r\n" + HANG_UP)], DeliveryUncertain),
        ([MAIL, RCPT, DATA, *BODY, ("^\\.", b"399 what\r\n")], DeliveryUncertain),
    ],
)
def test_a_failed_mail_is_named_by_what_it_means(steps: list[tuple[str, bytes]], kind: type[MailroomError]) -> None:
    assert type(failure(*HELLO, *steps)) is kind


def test_silence_after_the_dot_is_uncertain_and_silence_before_it_is_not() -> None:
    assert isinstance(failure(*HELLO, MAIL, RCPT, DATA, *BODY, ("^\\.", b""), timeout=0.5), DeliveryUncertain)
    assert isinstance(failure(*HELLO, ("^MAIL", b""), timeout=0.3), ConnectionFailed)


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([("", b"554 5.7.1 you are listed\r\n")], SenderRejected),
        ([("", b"421 busy, wait 30 seconds\r\n")], ServerUnavailable),
        ([("", HANG_UP)], ConnectionFailed),
        ([("", b"220 hi\r\n"), ("EHLO", b"502 no\r\n"), ("HELO", b"550 no\r\n")], SenderRejected),
    ],
)
def test_a_server_that_does_not_want_us_is_no_fault_of_the_recipient(steps: list[tuple[str, bytes]], kind: type[MailroomError]) -> None:
    assert type(failure(*steps)) is kind


def test_an_old_server_without_extensions_is_enough() -> None:
    assert delivered(("", b"220 hi\r\n"), ("EHLO", b"502 no\r\n"), ("HELO", b"250 hi\r\n"), MAIL, RCPT, DATA, *BODY, DOT).accepted


def test_a_mail_the_server_cannot_take_is_not_offered() -> None:
    small = [("", b"220 hi\r\n"), ("EHLO", b"250-hi\r\n250 SIZE 10\r\n")]
    assert "at most 10 bytes" in str(failure(*small))
    plain = [("", b"220 hi\r\n"), ("EHLO", b"250 hi\r\n")]
    with pytest.raises(MessageRejected, match="8-bit"):
        delivered(*plain, raw="Subject: ä\r\n\r\n".encode())
    with pytest.raises(MessageRejected, match="ASCII"):
        delivered(*plain, recipients=("jürgen@x.test",))


def test_addresses_in_other_scripts_go_to_servers_that_know_them() -> None:
    hello = [("", b"220 hi\r\n"), ("EHLO", b"250-hi\r\n250 SMTPUTF8\r\n")]
    mail = ("MAIL FROM:<a@x.test> SMTPUTF8", b"250 ok\r\n")
    outcome = delivered(*hello, mail, ("RCPT TO:<j", b"250 ok\r\n"), DATA, *BODY, DOT, recipients=("jürgen@x.test",))
    assert outcome.accepted == ["jürgen@x.test"]


@pytest.mark.parametrize("address", ["b@x.test>\r\nRCPT TO:<c@x.test", "b c@x.test", "<b@x.test>"])
def test_an_address_cannot_hold_another_command(address: str) -> None:
    with pytest.raises(InvalidInputError):
        delivered(*HELLO, MAIL, recipients=(address,))


LOGIN_HELLO = [("", b"220 hi\r\n"), ("^EHLO", b"250-hi\r\n250 AUTH PLAIN\r\n")]
ACCOUNT = {"username": "jo", "secret": Secret("hunter2")}


def test_a_login_sends_the_password_the_server_asked_for() -> None:
    with ScriptedServer(*LOGIN_HELLO, ("^AUTH PLAIN", b"235 in\r\n")) as server, transport_to(server, **ACCOUNT):
        pass
    assert base64.b64decode(server.lines[1].split()[-1]) == b"\0jo\0hunter2"


def test_the_older_login_is_answered_word_by_word() -> None:
    hello = [("", b"220 hi\r\n"), ("^EHLO", b"250-hi\r\n250 AUTH LOGIN\r\n")]
    steps = [("^AUTH LOGIN", b"334 VXNlcg==\r\n"), ("^am8=", b"334 UGFzcw==\r\n"), ("^cMOkcw==", b"235 in\r\n")]
    with ScriptedServer(*hello, *steps) as server, transport_to(server, username="jo", secret=Secret("päs")):
        pass


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"535 5.7.8 jo@x.test bad", AuthenticationRefused),
        (b"454 4.7.0 too many login attempts, wait 2 minutes", ServerThrottled),
        (b"451 4.3.0 database", ServerUnavailable),
        (b"421 bye", ServerUnavailable),
    ],
)
def test_a_refused_login_is_wrong_or_only_early(answer: bytes, kind: type[MailroomError]) -> None:
    error = failure(*LOGIN_HELLO, ("^AUTH", answer + b"\r\n"), **ACCOUNT)
    assert type(error) is kind
    if isinstance(error, ServerThrottled):
        assert error.retry_after == 120


def test_a_login_the_server_does_not_offer_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(failure(*HELLO, **ACCOUNT), EncryptionRequired)
    assert isinstance(failure(("", b"220 hi\r\n"), ("EHLO", b"250-hi\r\n250 AUTH GSSAPI\r\n"), **ACCOUNT), EncryptionRequired)
    monkeypatch.setattr("mail.tls.is_private", lambda _ip: False)
    assert isinstance(failure(*LOGIN_HELLO, **ACCOUNT), EncryptionRequired)


def test_a_private_server_is_refused_unless_allowed() -> None:
    assert isinstance(failure(("", b""), allow_private=False), HostNotAllowed)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    directory = tmp_path_factory.mktemp("tls")
    write_self_signed(directory / "certificate.pem", directory / "key.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "certificate.pem", directory / "key.pem")
    return context, directory / "certificate.pem"


STARTTLS_HELLO = [("", b"220 hi\r\n"), ("^EHLO", b"250-hi\r\n250 STARTTLS\r\n")]


def test_starttls_comes_before_the_password(certificate: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    steps = [*STARTTLS_HELLO, ("STARTTLS", b"220 go\r\n" + START_TLS), ("EHLO", b"250-hi\r\n250 AUTH PLAIN\r\n"), ("AUTH", b"235 in\r\n")]
    with ScriptedServer(*steps, tls=certificate[0]) as server, transport_to(server, security=Security.STARTTLS, **ACCOUNT):
        pass
    assert [line.split()[0].upper() for line in server.lines[:4]] == [b"EHLO", b"STARTTLS", b"EHLO", b"AUTH"]


def test_tls_from_the_first_byte(certificate: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    with ScriptedServer(*HELLO, tls=certificate[0], tls_at_once=True) as server, transport_to(server, security=Security.TLS):
        pass


@pytest.mark.parametrize("security", [Security.TLS, Security.STARTTLS])
def test_a_certificate_nobody_vouches_for_is_refused_unless_told_otherwise(
    certificate: tuple[ssl.SSLContext, Path], security: Security
) -> None:
    at_once = security is Security.TLS
    steps = HELLO if at_once else [*STARTTLS_HELLO, ("STARTTLS", b"220 go\r\n" + START_TLS), ("EHLO", b"250 hi\r\n")]
    with ScriptedServer(*steps, tls=certificate[0], tls_at_once=at_once) as server, pytest.raises(CertificateRefused):
        transport_to(server, security=security).__enter__()
    with (
        ScriptedServer(*steps, tls=certificate[0], tls_at_once=at_once) as server,
        transport_to(server, security=security, verify_tls=False),
    ):
        pass


def test_a_server_without_tls_is_not_used_without_it() -> None:
    assert isinstance(failure(*HELLO, security=Security.STARTTLS), EncryptionRequired)
    assert isinstance(failure(*STARTTLS_HELLO, ("STARTTLS", b"454 not now\r\n"), security=Security.STARTTLS), ServerUnavailable)
    assert isinstance(failure(("", b"220 plain text here\r\n"), security=Security.TLS), CertificateRefused)
    assert isinstance(failure(("", HANG_UP), security=Security.TLS), ConnectionFailed)


# -- replies and delivery over the fake ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("try again in 5 minutes", 300),
        ("wait 30 seconds", 30),
        ("90000 milliseconds", 90),
        ("in 2 hours", 7200),
        ("99999 hours", 86400),
        ("later", None),
        ("0 s", None),
        ("0 seconds", 1),
    ],
)
def test_a_hint_in_the_text_becomes_seconds(text: str, seconds: float | None) -> None:
    assert retry_hint(text) == seconds


def test_a_temporary_reply_without_a_hint_waits_five_minutes() -> None:
    error = smtp_error(SmtpReply(450, "greylisted"), "recipient", where="mx:25")
    assert isinstance(error, Greylisted)
    assert error.retry_after == 300
    assert not SmtpReply(450).is_permanent


def test_a_refused_recipient_does_not_stop_the_others() -> None:
    transport = FakeTransport(refuses={"gone@example.com"}, defers={"later@example.com": SmtpReply(451, "wait 60 seconds")})
    with transport:
        outcome = deliver(RAW, sender="a@x.test", recipients=["gone@example.com", "here@example.com", "later@example.com"], via=transport)
    assert (outcome.bounced, outcome.deferred, outcome.retry_after) == (["gone@example.com"], ["later@example.com"], 60)
    assert transport.delivered_to == ["here@example.com"]


def test_the_fake_fails_where_the_real_one_does() -> None:
    marks: list[str] = []

    def failing(**options: object) -> type[BaseException]:
        transport = FakeTransport(**options)  # type: ignore[arg-type]
        with pytest.raises(MailroomError) as caught:
            deliver(RAW, sender="a@x.test", recipients=["b@x.test"], via=transport, before_final_dot=lambda: marks.append("marked"))
        return caught.type

    assert failing(fails_before_dot=True) is ConnectionFailed
    assert failing(rejects_sender=SmtpReply(550)) is SenderRejected
    assert marks == []
    assert failing(rejects_message=SmtpReply(554)) is MessageRejected
    assert failing(drops_after_dot=True) is DeliveryUncertain
    assert marks == ["marked", "marked"]
    assert deliver(RAW, sender="a@x.test", recipients=["b@x.test"], via=FakeTransport(refuses={"b@x.test"})).accepted == []


def test_a_mail_without_recipients_is_not_tried() -> None:
    with pytest.raises(InvalidInputError):
        deliver(RAW, sender="a@x.test", recipients=[], via=FakeTransport())
