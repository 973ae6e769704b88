"""Servers that mean harm, or are broken as if they did: each ends with a clear error, in time and within memory."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from core.errors import MailroomError
from mail import imap_connection, imap_reader, steady
from mail.accounts import Endpoint, Secret, Security
from mail.errors import (
    CertificateRefused,
    ConnectionFailed,
    EncryptionRequired,
    FolderMissing,
    MailboxProtocolError,
    ServerUnavailable,
)
from mail.folder_names import RemoteFolder
from mail.imap import ImapMailbox
from mail.mailbox import Span
from mail.sync import sync_mailbox
from tests.servers.certificate import write_self_signed
from tests.unit.imap_sessions import GREETING, INBOX, OPENED, TRASH, error_of, logged_in, mailbox_at
from tests.unit.scripted_server import HANG_UP, START_TLS, ScriptedServer

BIG = 2**40
COMMANDS: dict[str, Callable[[ImapMailbox], object]] = {
    "LIST": lambda mailbox: mailbox.list_folders(),
    "STATUS": lambda mailbox: mailbox.states([INBOX]),
    "EXAMINE": lambda mailbox: mailbox.examine(INBOX),
    "UID FETCH": lambda mailbox: mailbox.fetch_raw(1),
    "UID SEARCH": lambda mailbox: mailbox.find_message_id("<a@b>"),
    "UID STORE": lambda mailbox: mailbox.expunge([1]),
    "UID MOVE": lambda mailbox: mailbox.move([1], TRASH),
    "APPEND": lambda mailbox: mailbox.append(TRASH, b"x"),
    "ENABLE": lambda mailbox: mailbox.examine(INBOX),
}


def failing(answer: bytes, *, timeout: float = 5.0) -> MailroomError:
    """The error that this answer to a FETCH of the message 1 ends with."""
    with (
        ScriptedServer(*logged_in(), ("UID FETCH 1:1", answer)) as server,
        mailbox_at(server, timeout=timeout) as mailbox,
        pytest.raises(MailroomError) as caught,
    ):
        list(mailbox.fetch([Span(1, 1)]))
    assert not mailbox._connection.is_open
    return caught.value


@pytest.mark.parametrize("greeting", [b"", b"* OK hel", b"* OK " + b"x" * 5000])
def test_a_greeting_that_never_comes_ends_in_a_time_out(greeting: bytes) -> None:
    before = time.monotonic()
    assert isinstance(error_of(("", greeting), timeout=0.3), ConnectionFailed)
    assert time.monotonic() - before < 20


def test_a_greeting_without_end_is_cut_off() -> None:
    assert isinstance(error_of(("", b"* OK " + b"x" * 2_000_000)), MailboxProtocolError)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"* 1 FETCH (UID 1 BODY[] {20}\r\nfive!)\r\n%t OK\r\n", ConnectionFailed),  # longer than what comes
        (b"* 1 FETCH (UID 1 BODY[] {20}\r\nfive!" + HANG_UP, ConnectionFailed),
        (b"* 1 FETCH (UID 1 BODY[] {%d}\r\nx" % BIG, MailboxProtocolError),
        (b"* 1 FETCH (UID 1 BODY[] {600000}\r\n" + b"x" * 600_000 + b" X {600000}\r\n", MailboxProtocolError),
        (b"* 1 FETCH (" + b"x" * 2_000_000, MailboxProtocolError),
        (b"* 1 FETCH (UID 1 BODY[] " + b"{0}\r\n " * 2000 + b")\r\n", MailboxProtocolError),
        (b"* BYE\r\n", ServerUnavailable),
        (b"%t NO what\r\n", MailboxProtocolError),
        (b"%t\r\n", ConnectionFailed),
    ],
)
def test_an_answer_that_lies_about_itself_ends_the_connection(
    answer: bytes, kind: type[MailroomError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imap_reader, "MAX_LITERAL", 1_000_000)
    with (
        ScriptedServer(*logged_in(), ("UID FETCH 1:1", answer)) as server,
        mailbox_at(server, timeout=0.5 if kind is ConnectionFailed else 20) as mailbox,
        pytest.raises(kind),
    ):
        list(mailbox.fetch([Span(1, 1)]))


def test_a_literal_shorter_than_what_comes_gives_no_other_message() -> None:
    answer = b"* 1 FETCH (UID 1 BODY[] {3}\r\nfive! * 2 FETCH (UID 1 BODY[] evil))\r\n%t OK\r\n"
    with ScriptedServer(*logged_in(), ("UID FETCH 1:1", answer)) as server, mailbox_at(server) as mailbox:
        [messages] = mailbox.fetch([Span(1, 1)])
    assert [message.raw for message in messages] == [b"fiv"]


def test_answers_without_end_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imap_connection, "MAX_ANSWER", 100_000)
    assert isinstance(failing(b"* 1 EXISTS\r\n" * 20_000), MailboxProtocolError)
    assert isinstance(
        failing(
            b"* 1 FETCH (UID 1 BODY[] {60000}\r\n" + b"x" * 60_000 + b")\r\n* 1 FETCH (UID 1 BODY[] {60000}\r\n" + b"x" * 60_000 + b")\r\n"
        ),
        MailboxProtocolError,
    )


@pytest.mark.parametrize("piece", [b"x", b"* OK still here\r\n"])
def test_an_answer_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    monkeypatch.setattr(steady, "PATIENCE", 0.5)
    monkeypatch.setattr(steady, "SLOWEST", 10_000)
    ours, theirs = socket.socketpair()
    ours.settimeout(1)
    connection = imap_connection.ImapConnection(Endpoint("x", 143, Security.PLAIN, timeout=1))
    connection._use(ours)

    def drip() -> None:
        with suppress(OSError):
            while True:
                theirs.sendall(piece)
                time.sleep(0.05)

    threading.Thread(target=drip, daemon=True).start()
    before = time.monotonic()
    with pytest.raises(ConnectionFailed, match="too slowly"):
        connection.run(b"NOOP")
    assert 0.4 < time.monotonic() - before < 20
    theirs.close()


def test_an_answer_that_is_long_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady, "PATIENCE", 0.1)
    monkeypatch.setattr(steady, "SLOWEST", 100)
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    connection = imap_connection.ImapConnection(Endpoint("x", 143, Security.PLAIN, timeout=20))
    connection._use(ours)

    def answer() -> None:
        for _ in range(8):
            theirs.sendall(b"* OK " + b"x" * 500 + b"\r\n")
            time.sleep(0.05)
        theirs.sendall(b"M1 OK\r\n")

    threading.Thread(target=answer, daemon=True).start()
    assert len(connection.run(b"NOOP")) == 9
    connection.close()
    theirs.close()


def test_numbers_beyond_every_bound_are_not_believed() -> None:
    opened = b"* 99999999999999999999 EXISTS\r\n* OK [UIDVALIDITY 7]\r\n* OK [UIDNEXT %d]\r\n"
    opened += b"* OK [HIGHESTMODSEQ 9999999999999999999]\r\n%%t OK\r\n"
    with ScriptedServer(*logged_in(), ("EXAMINE", opened % BIG)) as server, mailbox_at(server) as mailbox:
        state = mailbox.examine(INBOX)
    assert (state.messages, state.uid_next, state.highest_modseq) == (0, 1, None)
    sizes = b"* 1 FETCH (UID 1 RFC822.SIZE %d)\r\n* 2 FETCH (UID %d RFC822.SIZE 1)\r\n* 3 FETCH (UID 0 RFC822.SIZE 1)\r\n%%t OK\r\n"
    with ScriptedServer(*logged_in(), ("UID FETCH", sizes % (BIG, BIG))) as server, mailbox_at(server) as mailbox:
        assert mailbox.sizes(1, 2**50) == [(1, 2**31 - 1)]


def test_nul_bytes_reach_neither_names_nor_flags() -> None:
    listing = b'* LIST (\\HasNoChildren) "/" {3}\r\na\0b\r\n* LIST () "/" fine\r\n%t OK\r\n'
    flags = b"* 1 FETCH (UID 1 FLAGS (\\Seen a\0b))\r\n%t OK\r\n"
    with ScriptedServer(*logged_in(), ("LIST", listing), ("UID FETCH", flags)) as server, mailbox_at(server) as mailbox:
        folders = mailbox.list_folders()
        assert mailbox.flags(1, 1) == {1: {"\\Seen", "ab"}}
        assert mailbox.states(folders[:1]) == {}  # it can be shown and not asked for
    assert [folder.name for folder in folders] == ["ab", "fine"]


def test_messages_nobody_asked_for_are_not_stored() -> None:
    listed = b"* 1 FETCH (UID 8 RFC822.SIZE 9)\r\n* 2 FETCH (UID 800 RFC822.SIZE 9)\r\n%t OK\r\n"
    bodies = b"".join(b"* 1 FETCH (UID %d BODY[] {1}\r\nx)\r\n" % uid for uid in (0, 3, 8, 9, 800)) + b"%t OK\r\n"
    steps = [("LIST", b'* LIST () "/" INBOX\r\n%t OK\r\n'), ("STATUS", b"%t NO\r\n"), ("EXAMINE", OPENED)]
    with ScriptedServer(*logged_in(), *steps, ("SIZE", listed), ("BODY", bodies)) as server, mailbox_at(server) as mailbox:
        batches = list(sync_mailbox(mailbox, {}))
    assert [[each.uid for each in batch.new] for batch in batches] == [[8]]


@pytest.mark.parametrize("goodbye", [b"* BYE [UNAVAILABLE] later\r\n", b"* BYE\r\n", HANG_UP])
@pytest.mark.parametrize("place", COMMANDS)
def test_a_goodbye_in_any_place_is_transient(place: str, goodbye: bytes) -> None:
    ask = COMMANDS[place]
    with (
        ScriptedServer(*logged_in("MOVE", "UIDPLUS", "CONDSTORE", "ENABLE"), (place, goodbye)) as server,
        mailbox_at(server, without=frozenset() if place == "ENABLE" else frozenset({"ENABLE"})) as mailbox,
        pytest.raises((ServerUnavailable, ConnectionFailed)),
    ):
        ask(mailbox)
    assert not mailbox._connection.is_open


def test_a_folder_name_cannot_end_a_command() -> None:
    for name in ("a\r\nM9 DELETE INBOX", "a\nb", "a\0b"):
        folder = RemoteFolder(name, name)
        with ScriptedServer(*logged_in("MOVE")) as server, mailbox_at(server) as mailbox:
            with pytest.raises(FolderMissing):
                mailbox.select(folder)
            with pytest.raises(FolderMissing):
                mailbox.append(folder, b"x")
            with pytest.raises(FolderMissing):
                mailbox.move([1], folder)
        assert not any(b"DELETE" in line for line in server.lines)


# -- TLS ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's side, with a certificate for localhost and 127.0.0.1 that this test trusts."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    write_self_signed(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


class OtherName(ScriptedServer):
    host = "127.0.0.2"


@pytest.mark.parametrize("security", [Security.TLS, Security.STARTTLS])
def test_a_certificate_for_another_name_is_refused(tls: ssl.SSLContext, security: Security) -> None:
    at_once = security is Security.TLS
    greeting = ("", b"* OK [CAPABILITY IMAP4rev1 STARTTLS AUTH=PLAIN SASL-IR] hi\r\n")
    upgrade = (
        [] if at_once else [("STARTTLS", b"%t OK go\r\n" + START_TLS), ("CAPABILITY", b"* CAPABILITY AUTH=PLAIN SASL-IR\r\n%t OK\r\n")]
    )
    steps = [greeting, *upgrade, ("AUTHENTICATE", b"%t OK [CAPABILITY X]\r\n")]
    with ScriptedServer(*steps, tls=tls, tls_at_once=at_once) as server, mailbox_at(server, security=security):
        pass
    with OtherName(*steps, tls=tls, tls_at_once=at_once) as server, pytest.raises(CertificateRefused):
        mailbox_at(server, security=security).__enter__()
    assert not any(b"AUTH" in line for line in server.lines)


def test_what_was_said_before_tls_does_not_count(tls: ssl.SSLContext) -> None:
    """The injection of CVE-2011-0411, the other way round: answers slipped in behind the one to STARTTLS."""
    injected = b"%t OK go\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\nM2 OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] injected\r\n" + START_TLS
    steps = [
        ("", b"* OK [CAPABILITY IMAP4rev1 STARTTLS AUTH=PLAIN] hi\r\n"),
        ("STARTTLS", injected),
        ("CAPABILITY", b"* CAPABILITY IMAP4rev1 AUTH=XOAUTH2 SASL-IR\r\n%t OK\r\n"),
        ("AUTHENTICATE XOAUTH2", b"%t OK [CAPABILITY X] in\r\n"),
    ]
    with ScriptedServer(*steps, tls=tls) as server, mailbox_at(server, security=Security.STARTTLS, token=Secret("t0ken")) as mailbox:
        assert mailbox._connection.capabilities == {"X"}


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([("", b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi\r\n")], EncryptionRequired),
        ([("", b"* PREAUTH [CAPABILITY IMAP4rev1 STARTTLS] in\r\n")], EncryptionRequired),
        ([("", b"* OK [CAPABILITY STARTTLS] hi\r\n"), ("STARTTLS", b"%t NO not now\r\n")], MailboxProtocolError),
        ([("", b"* OK [CAPABILITY STARTTLS] hi\r\n"), ("STARTTLS", b"%t OK go\r\nin clear text, please\r\n")], MailroomError),
    ],
)
def test_encryption_is_never_talked_away(steps: list[tuple[str, bytes]], kind: type[MailroomError]) -> None:
    server = ScriptedServer(*steps)
    with server, pytest.raises(kind):
        mailbox_at(server, security=Security.STARTTLS, timeout=1 if kind is MailroomError else 20).__enter__()
    assert not any(b"AUTH" in line or b"LOGIN" in line for line in server.lines)


def test_tls_that_never_answers_ends_in_a_time_out() -> None:
    with ScriptedServer(("\0", b"")) as server, pytest.raises(ConnectionFailed):
        mailbox_at(server, security=Security.TLS, timeout=0.3).__enter__()


def test_the_connection_is_closed_when_the_login_fails() -> None:
    with ScriptedServer(GREETING, ("AUTH", b"%t NO no\r\n")) as server:
        mailbox: ImapMailbox = mailbox_at(server)
        with pytest.raises(MailroomError):
            mailbox.__enter__()
        assert not mailbox._connection.is_open
