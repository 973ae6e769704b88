"""POP3 as servers speak it, well and badly: what is read once, what is left, and what each refusal means."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping

import pytest

from core.errors import MailroomError, TransientError
from mail import pop3, pop3_connection
from mail.accounts import Secret, Security
from mail.errors import (
    AuthenticationRefused,
    ConnectionFailed,
    EncryptionRequired,
    HostNotAllowed,
    MailboxProtocolError,
    ServerThrottled,
    ServerUnavailable,
)
from mail.pop3 import Pop3Mailbox, sync_pop3
from mail.sync import FolderCursor, SyncBatch
from tests.unit.imap_sessions import endpoint_at
from tests.unit.scripted_server import HANG_UP, ScriptedServer

HELLO = ("", b"+OK ready\r\n")


def capable(*names: str) -> tuple[str, bytes]:
    return ("^CAPA\r", b"+OK\r\n" + b"".join(name.encode() + b"\r\n" for name in names) + b".\r\n")


def opened(*names: str) -> list[tuple[str, bytes]]:
    """The script up to the login by USER and PASS; the server then has these capabilities."""
    return [HELLO, capable("USER"), ("^USER jo\r", b"+OK\r\n"), ("^PASS hunter2\r", b"+OK in\r\n"), capable(*names)]


def listed(sizes: Iterable[int], uidls: Iterable[str] | bytes) -> list[tuple[str, bytes]]:
    lines = b"".join(b"%d %d\r\n" % pair for pair in enumerate(sizes, 1))
    texts = uidls if isinstance(uidls, bytes) else b"".join(f"{number} {uidl}\r\n".encode() for number, uidl in enumerate(uidls, 1))
    return [("^LIST\r", b"+OK\r\n" + lines + b".\r\n"), ("^UIDL\r", b"+OK\r\n" + texts + b".\r\n" if texts != b"-" else b"-ERR no\r\n")]


def letter(number: int) -> bytes:
    return b"Message-ID: <%d@x>\r\nSubject: %d\r\n\r\nbody\r\n" % (number, number)


def retr(number: int, raw: bytes | None = None) -> tuple[str, bytes]:
    return (f"^RETR {number}\r", b"+OK\r\n" + (letter(number) if raw is None else raw) + b".\r\n")


def synced(*steps: tuple[str, bytes], known: Mapping[str, int] | None = None, next_uid: int = 1, **options: object) -> list[SyncBatch]:
    batch_size = options.pop("batch_size", 500)
    with ScriptedServer(*steps) as server, Pop3Mailbox(endpoint_at(server, **options)) as mailbox:
        return list(sync_pop3(mailbox, known or {}, next_uid, batch_size=batch_size))  # type: ignore[arg-type]


def error_of(*steps: tuple[str, bytes], **changes: object) -> MailroomError:
    with ScriptedServer(*steps) as server, pytest.raises(MailroomError) as caught, Pop3Mailbox(endpoint_at(server, **changes)) as mailbox:
        mailbox.entries()
    assert not any(told in str(caught.value) for told in ("hunter2", "jo@", "t0ken"))
    return caught.value


def test_new_messages_are_read_once_and_get_numbers_of_their_own() -> None:
    [batch] = synced(*opened(), *listed([9, 9, 9], ["aa", "bb", "cc"]), retr(2), retr(3), known={"aa": 4, "zz": 5}, next_uid=6)
    assert [(each.uid, each.remote_id, each.parsed.subject) for each in batch.new] == [(6, "bb", "2"), (7, "cc", "3")]
    assert (batch.gone, batch.cursor, batch.is_reset) == ([5], FolderCursor(1, 8, None), False)
    assert (batch.folder.name, batch.folder.role, batch.uid_validity, batch.done, batch.total) == ("INBOX", "inbox", 1, 2, 2)


def test_a_mailbox_without_news_yields_one_empty_batch_with_the_same_cursor() -> None:
    [batch] = synced(*opened(), *listed([9], ["aa"]), known={"aa": 4}, next_uid=6)
    assert (batch.new, batch.gone, batch.cursor.uid_next) == ([], [], 6)


def test_batches_carry_how_far_the_numbers_are_given() -> None:
    batches = synced(*opened(), *listed([9] * 3, "abc"), retr(1), retr(2), retr(3), known={"z": 9}, next_uid=10, batch_size=2)
    assert [([each.uid for each in batch.new], batch.gone, batch.cursor.uid_next) for batch in batches] == [
        ([10, 11], [9], 12),
        ([12], [], 13),
    ]


def test_retrievals_are_sent_ahead_where_the_server_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pop3, "_PIPELINE", 3)
    steps = [("^RETR 1\r", b""), ("^RETR 2\r", b""), ("^RETR 3\r", retr(1)[1] + retr(2)[1]), ("^RETR 4\r", retr(3)[1] + retr(4)[1])]
    [batch] = synced(*opened("PIPELINING"), *listed([9] * 4, "abcd"), *steps)
    assert [each.parsed.subject for each in batch.new] == ["1", "2", "3", "4"]


def test_dots_are_unstuffed_and_lines_may_be_long() -> None:
    long = b"y" * 65_536 + b"." * 65_536 + b".\r\n"  # a dot where a piece of the line begins
    raw = b"Subject: x\r\n\r\n..\r\n...\r\n" + long + b".end\r\n"
    [batch] = synced(*opened(), *listed([9], "a"), retr(1, raw))
    assert batch.new[0].raw == b"Subject: x\r\n\r\n.\r\n..\r\n" + long + b"end\r\n"


def test_a_message_that_is_gone_meanwhile_is_left_out() -> None:
    [batch] = synced(*opened(), *listed([9, 9], "ab"), ("^RETR 1", b"-ERR no such message\r\n"), retr(2))
    assert [(each.uid, each.remote_id) for each in batch.new] == [(1, "b")]


def test_a_message_too_large_for_memory_comes_as_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pop3, "MAX_LITERAL", 100)
    top = ("^TOP 2 0\r", b"+OK\r\nSubject: big\r\n\r\n.\r\n")
    batches = synced(*opened(), *listed([9, 101, 9], "abc"), retr(1), top, retr(3))
    [large] = batches[1].new
    assert (large.parsed.subject, large.size, large.parsed.defects) == ("big", 101, ["oversized"])
    assert [each.uid for batch in batches for each in batch.new] == [1, 2, 3]


def test_the_newest_received_line_says_when_it_came() -> None:
    raw = b"Received: from a by b; Mon, 1 Jan 2024 00:00:00 +0100\r\nReceived: x; Sun, 1 Jan 2023 00:00:00 +0000\r\n\r\n"
    [batch] = synced(*opened(), *listed([9, 9], "ab"), retr(1, raw), retr(2))
    assert [each.internal_date.isoformat() if each.internal_date else None for each in batch.new] == ["2023-12-31T23:00:00+00:00", None]


# -- UIDLs that are none ------------------------------------------------------------------------------------------------------


def digest(head: bytes) -> str:
    return "sha256 " + hashlib.sha256(head).hexdigest()


def top(number: int, raw: bytes) -> tuple[str, bytes]:
    return (f"^TOP {number} 0\r", b"+OK\r\n" + raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n.\r\n")


def test_without_uidls_messages_are_told_by_their_headers() -> None:
    steps = [*opened(), *listed([9, 9], b"-"), top(1, letter(1)), top(2, letter(2)), retr(2)]
    [batch] = synced(*steps, known={digest(b"Message-ID: <1@x>\r\nSubject: 1"): 1}, next_uid=2)
    assert [each.remote_id for each in batch.new] == [digest(b"Message-ID: <2@x>\r\nSubject: 2")]
    assert batch.gone == []


def test_uidls_that_are_missing_malformed_or_not_unique_are_not_believed() -> None:
    uidls = b"1 same\r\n2 same\r\n3\r\nx y\r\n5 " + b"l" * 71 + b"\r\n6 good\r\n99 stranger\r\n"
    heads = [top(number, letter(number)) for number in (1, 2, 3, 4, 5)]
    retrs = [retr(number) for number in (1, 2, 3, 4, 5, 6)]
    [batch] = synced(*opened(), *listed([9] * 6, uidls), *heads, *retrs)
    assert [each.remote_id == "good" for each in batch.new] == [False] * 5 + [True]
    assert len({each.remote_id for each in batch.new}) == 6


def test_the_very_same_mail_twice_is_one() -> None:
    steps = [*opened(), *listed([9, 9], ["same", "same"]), top(1, letter(7)), top(2, letter(7)), retr(1, letter(7))]
    [batch] = synced(*steps)
    assert len(batch.new) == 1


def test_without_top_the_whole_message_is_read_for_its_header() -> None:
    steps = [*opened(), *listed([9], b"-"), ("^TOP 1 0", b"-ERR what\r\n"), retr(1), retr(1)]
    [batch] = synced(*steps)
    assert batch.new[0].remote_id == digest(b"Message-ID: <1@x>\r\nSubject: 1")


# -- logging in ---------------------------------------------------------------------------------------------------------------


def said(server: ScriptedServer, line: int) -> bytes:
    return base64.b64decode(server.lines[line])


def test_a_password_goes_by_sasl_where_it_can() -> None:
    steps = [HELLO, capable("SASL PLAIN LOGIN"), ("^AUTH PLAIN\r", b"+ \r\n"), ("^AGpv", b"+OK\r\n"), capable()]
    with ScriptedServer(*steps) as server, Pop3Mailbox(endpoint_at(server)):
        pass
    assert said(server, 2) == b"\0jo\0hunter2"


@pytest.mark.parametrize(("mechanism", "last"), [("XOAUTH2", b"\r\n"), ("OAUTHBEARER", b"AQ==\r\n")])
def test_a_refused_token_is_told_in_a_challenge_that_must_be_answered(mechanism: str, last: bytes) -> None:
    steps = [HELLO, capable(f"SASL PLAIN {mechanism}"), (f"^AUTH {mechanism}\r", b"+\r\n"), ("^[a-z]", b"+ eyJ9\r\n")]
    server = ScriptedServer(*steps, ("", b""), (f"^{last.decode()}", b"-ERR [AUTH] no\r\n"))
    with server, pytest.raises(AuthenticationRefused), Pop3Mailbox(endpoint_at(server, token=Secret("t0ken"))):
        pass
    assert b"Bearer t0ken" in said(server, 2)
    assert server.lines[3] == last


def test_capa_is_not_needed() -> None:
    steps = [HELLO, ("^CAPA", b"-ERR what\r\n"), *opened()[2:4], ("^CAPA", b"-ERR what\r\n"), *listed([], [])]
    assert len(synced(*steps)) == 1


@pytest.mark.parametrize(
    ("answer", "kind", "seconds"),
    [
        (b"-ERR [AUTH] Username and password not accepted.", AuthenticationRefused, None),
        (b"-ERR Logon failure: unknown user name or bad password.", AuthenticationRefused, None),
        (b"-ERR [IN-USE] Unable to lock maildrop", ServerUnavailable, None),
        (b"-ERR mailbox is locked by another POP3 session", ServerUnavailable, None),
        (b"-ERR [LOGIN-DELAY] minimum time between mail checks, wait 30 seconds", ServerThrottled, 30),
        (b"-ERR [SYS/TEMP] Temporary system problem. Please try again later", ServerThrottled, None),
        (b"-ERR [SYS/TEMP] out of memory", ServerUnavailable, None),
        (b"-ERR Request is throttled. Suggested Backoff Time: 4000 milliseconds", ServerThrottled, 4),
        (b"-ERR [SYS/PERM] Your account is not enabled for POP access", MailboxProtocolError, None),
        (b"* OK this is IMAP", MailboxProtocolError, None),
        (HANG_UP, ConnectionFailed, None),
    ],
)
def test_a_login_that_fails_is_named_by_what_it_means(answer: bytes, kind: type[MailroomError], seconds: float | None) -> None:
    error = error_of(*opened()[:3], ("^PASS", answer + b"\r\n"))
    assert isinstance(error, kind)
    assert (error.retry_after if isinstance(error, TransientError) else None) == seconds


def test_a_password_with_a_line_break_is_not_sent() -> None:
    assert isinstance(error_of(HELLO, capable("USER"), secret=Secret("a\r\nDELE 1")), AuthenticationRefused)


def test_no_password_is_sent_where_it_must_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(error_of(HELLO, capable("USER"), secret=None), AuthenticationRefused)
    assert isinstance(error_of(HELLO, capable("USER"), security=Security.STARTTLS), EncryptionRequired)
    assert isinstance(error_of(HELLO, allow_private=False), HostNotAllowed)
    monkeypatch.setattr("mail.tls.is_private", lambda _ip: False)
    assert isinstance(error_of(HELLO, capable("USER")), EncryptionRequired)


# -- hostile servers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("greeting", "kind"),
    [
        (b"-ERR [SYS/TEMP] busy\r\n", ServerUnavailable),
        (b"-ERR go away\r\n", MailboxProtocolError),
        (b"220 smtp\r\n", MailboxProtocolError),
        (b"+OK " + b"x" * 10_000, MailboxProtocolError),
        (b"", ConnectionFailed),
        (HANG_UP, ConnectionFailed),
    ],
)
def test_a_strange_greeting_is_no_login(greeting: bytes, kind: type[MailroomError]) -> None:
    assert isinstance(error_of(("", greeting), timeout=0.3), kind)


def test_answers_without_end_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pop3_connection, "MAX_LITERAL", 10_000)
    for flood in (b"+OK\r\n" + b"1 1\r\n" * 5000, b"+OK\r\n" + b"x" * 200_000):
        assert isinstance(error_of(*opened(), ("^LIST", flood)), MailboxProtocolError)
    assert isinstance(error_of(*opened(), ("^LIST", b"+OK\r\n1 1\r\n"), timeout=0.3), ConnectionFailed)
    assert isinstance(error_of(*opened(), ("^LIST", b"+OK\r\n1 1\r\n" + HANG_UP)), ConnectionFailed)


def test_a_server_that_challenges_for_ever_is_left() -> None:
    steps = [HELLO, capable("SASL PLAIN"), ("^AUTH", b"+ \r\n"), ("^A", b"+ \r\n")]
    assert isinstance(error_of(*steps), MailboxProtocolError)


def test_sizes_and_numbers_that_are_none_are_passed_over() -> None:
    lines = b"+OK\r\n0 5\r\nx 1\r\n1 -3\r\n" + b"9" * 30 + b" 1\r\n2\r\n\r\n1 7\r\n.\r\n"
    with ScriptedServer(*opened(), ("^LIST", lines), ("^UIDL", b"+OK\r\n1 a\r\n.\r\n")) as server, Pop3Mailbox(endpoint_at(server)) as box:
        assert [(entry.number, entry.size, entry.key) for entry in box.entries()] == [(1, 7, "a")]


def test_a_lost_mailbox_says_so_and_stays_closed() -> None:
    with ScriptedServer(*opened(), ("^LIST", HANG_UP)) as server, Pop3Mailbox(endpoint_at(server)) as mailbox:
        for _ in range(2):
            with pytest.raises(ConnectionFailed):
                mailbox.entries()
