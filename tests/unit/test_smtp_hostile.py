"""What a server may do to whoever hands mail over: say it slowly, say too much, say it at the wrong moment. Each ends soon, and truly."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.errors import MailroomError
from mail.accounts import Endpoint, Secret, Security
from mail.delivery import deliver
from mail.errors import ConnectionFailed, DeliveryUncertain, EncryptionRequired, Greylisted, MessageRejected, ServerUnavailable
from mail.smtp import SmtpTransport
from runs.limits import SoftTimeLimitExceeded
from tests.servers.certificate import write_self_signed
from tests.unit.scripted_server import START_TLS, ScriptedServer

RAW = b"Subject: hello\r\n\r\nbody\r\n"
PIPELINED = b"220 hi\r\n", b"250-hi\r\n250 PIPELINING\r\n"
ENVELOPE = b"250 sender\r\n250 recipient\r\n354 go\r\n"
Talk = Callable[[socket.socket], object]


@contextlib.contextmanager
def server(talk: Talk) -> Iterator[int]:
    """Talks with one client, and gives its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                talk(connection)
                connection.settimeout(5)
                while connection.recv(65536):
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def plain(port: int, timeout: float) -> SmtpTransport:
    return SmtpTransport(Endpoint("127.0.0.1", port, Security.PLAIN, allow_private=True, timeout=timeout))


def failure(talk: Talk, *, timeout: float = 0.3, marked: list[int] | None = None) -> MailroomError:
    """What one mail ends with."""
    marks: list[int] = [] if marked is None else marked
    with server(talk) as port, pytest.raises(MailroomError) as caught, plain(port, timeout) as transport:
        deliver(RAW, sender="a@x.test", recipients=["b@x.test"], via=transport, before_final_dot=lambda: marks.append(1))
    assert "@" not in str(caught.value)
    return caught.value


def drip(sock: socket.socket, text: bytes, every: float = 0.1) -> None:
    for number in range(len(text)):
        sock.sendall(text[number : number + 1])
        time.sleep(every)


def told(sock: socket.socket, *texts: bytes) -> None:
    """Says each, and waits for the client before the next."""
    for text in texts:
        sock.sendall(text)
        if not sock.recv(65536):
            raise OSError("the client has gone")


def says(*texts: bytes, last: bytes = b"", drips: bytes = b"") -> Talk:
    """A server that says its texts in turn, then the last without waiting, then drips."""

    def talk(sock: socket.socket) -> None:
        told(sock, *texts)
        sock.sendall(last)
        drip(sock, drips)

    return talk


def up_to_the_dot(sock: socket.socket) -> None:
    told(sock, *PIPELINED)
    sock.sendall(ENVELOPE)
    heard = b""
    while not heard.endswith(b"\r\n.\r\n"):
        received = sock.recv(65536)
        if not received:
            raise OSError("the client has gone")
        heard += received


# -- slow ones ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "talk",
    [
        says(drips=b"220 " + b"x" * 200),
        says(drips=b"220-welcome\r\n" * 20),
        says(b"220 hi\r\n", drips=b"250-" + b"x" * 200),
        says(*PIPELINED, drips=b"250 " + b"x" * 200),
        says(*PIPELINED, last=b"250 ok\r\n", drips=b"250 " + b"x" * 200),
    ],
    ids=["greeting", "lines", "extensions", "sender", "recipient"],
)
def test_a_server_that_drips_is_given_up_like_a_silent_one(talk: Talk) -> None:
    began = time.monotonic()
    assert isinstance(failure(talk), ConnectionFailed)
    assert time.monotonic() - began < 4


def test_a_slow_verdict_is_waited_for_and_a_dripping_one_is_uncertain() -> None:
    def slow(sock: socket.socket) -> None:
        up_to_the_dot(sock)
        time.sleep(0.5)
        sock.sendall(b"250 ok\r\n")

    with server(slow) as port, plain(port, 0.3) as transport:
        assert deliver(RAW, sender="a@x.test", recipients=["b@x.test"], via=transport).accepted

    def dripping(sock: socket.socket) -> None:
        up_to_the_dot(sock)
        drip(sock, b"250 " + b"x" * 100)

    assert isinstance(failure(dripping), DeliveryUncertain)


def test_a_time_limit_need_not_wait_for_the_verdict() -> None:
    ended: list[float] = []

    def send(port: int) -> None:
        with contextlib.suppress(SoftTimeLimitExceeded), plain(port, 1) as transport:
            deliver(RAW, sender="a@x.test", recipients=["b@x.test"], via=transport, before_final_dot=marked.set)
        ended.append(time.monotonic())

    marked = threading.Event()
    with server(up_to_the_dot) as port:
        thread = threading.Thread(target=send, args=(port,))
        thread.start()
        assert marked.wait(5)
        time.sleep(0.3)  # it waits for the verdict now
        began = time.monotonic()
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SoftTimeLimitExceeded))
        thread.join(10)
    assert ended[0] - began < 2.5


# -- at the wrong moment ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("early", "kind"),
    [
        (b"250 2.0.0 queued\r\n", ConnectionFailed),  # said before there was a mail to queue
        (b"354 go on\r\n", ConnectionFailed),
        (b"421 4.3.2 closing\r\n", ServerUnavailable),
        (b"452 4.3.1 disk full\r\n", Greylisted),
        (b"552 5.3.4 too large\r\n", MessageRejected),
    ],
)
def test_a_reply_before_the_dot_is_not_taken_for_the_verdict(early: bytes, kind: type[MailroomError]) -> None:
    marked: list[int] = []
    assert type(failure(says(*PIPELINED, last=ENVELOPE + early), marked=marked)) is kind
    assert marked == []


def test_a_server_that_goes_while_the_mark_is_written_has_not_got_the_mail() -> None:
    gone = threading.Event()

    def goes(sock: socket.socket) -> None:
        told(sock, *PIPELINED)
        sock.sendall(ENVELOPE)
        while b"body" not in sock.recv(65536):
            pass
        sock.shutdown(socket.SHUT_RDWR)
        gone.set()

    def mark() -> None:
        assert gone.wait(5)

    with server(goes) as port, plain(port, 2) as transport:
        with pytest.raises(ConnectionFailed):
            deliver(RAW, sender="a@x.test", recipients=["b@x.test"], via=transport, before_final_dot=mark)
        assert not transport.is_open


@pytest.mark.parametrize("replies", [ENVELOPE.replace(b"354", b"250 more\r\n354"), b"250 ok\r\n" * 3])
def test_more_or_other_replies_than_were_asked_for_send_nothing(replies: bytes) -> None:
    marked: list[int] = []
    assert isinstance(failure(says(*PIPELINED, last=replies), marked=marked), (ConnectionFailed, Greylisted))
    assert marked == []


NOISE = [b"2\r\n", b"25\r\n", b"999 ok\r\n", b"2500 ok\r\n", b"\r\n", b"\r\r\r\n", b"\0\0\0\0\r\n", b"\xff\xfe 250\r\n", b"x" * 2**20]


@pytest.mark.parametrize("noise", [*NOISE, b"250-ok\r\n" * 300], ids=lambda noise: repr(noise[:8]))
def test_what_is_no_reply_ends_the_connection(noise: bytes) -> None:
    for before in ([], [b"220 hi\r\n"], [*PIPELINED]):
        assert isinstance(failure(says(*before, last=noise)), ConnectionFailed)
    assert isinstance(failure(says(*PIPELINED, ENVELOPE, last=noise)), MailroomError)


@pytest.mark.parametrize("size", ["²", "9" * 5000, "-1", "ten", ""])
def test_a_size_that_is_no_number_limits_nothing(size: str) -> None:
    hello = f"250-hi\r\n250-PIPELINING\r\n250 SIZE {size}\r\n".encode()
    refusal = b"550 5.7.1 no\r\n503 no\r\n503 no\r\n"
    assert "refused the sender" in str(failure(says(b"220 hi\r\n", hello, last=refusal)))


# -- around STARTTLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    directory: Path = tmp_path_factory.mktemp("tls")
    write_self_signed(directory / "certificate.pem", directory / "key.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "certificate.pem", directory / "key.pem")
    return context


HELLO = [("", b"220 hi\r\n"), ("^EHLO", b"250-hi\r\n250-AUTH PLAIN\r\n250-PIPELINING\r\n250 STARTTLS\r\n")]
WITH_LOGIN = {"username": "jo", "secret": Secret("hunter2")}


def over_tls(port: int, **changes: object) -> SmtpTransport:
    given = {"allow_private": True, "timeout": 2, "verify_tls": False}
    return SmtpTransport(Endpoint("127.0.0.1", port, Security.STARTTLS, **{**given, **changes}))  # type: ignore[arg-type]


def test_what_is_injected_before_tls_is_not_heard_behind_it() -> None:
    with ScriptedServer(*HELLO, ("STARTTLS", b"220 go\r\n250-evil\r\n250 AUTH PLAIN\r\n")) as fake, pytest.raises(ConnectionFailed):
        over_tls(fake.port).__enter__()


def test_a_login_offered_in_the_clear_only_is_not_made(tls: ssl.SSLContext) -> None:
    steps = [*HELLO, ("STARTTLS", b"220 go\r\n" + START_TLS), ("EHLO", b"250 hi\r\n")]
    with ScriptedServer(*steps, tls=tls) as fake, pytest.raises(EncryptionRequired):
        over_tls(fake.port, **WITH_LOGIN).__enter__()
    assert not any(b"AUTH" in line for line in fake.lines)


def test_what_was_offered_in_the_clear_is_forgotten(tls: ssl.SSLContext) -> None:
    steps = [*HELLO, ("STARTTLS", b"220 go\r\n" + START_TLS), ("EHLO", b"250 hi\r\n"), ("^MAIL", b"550 no\r\n"), ("^RSET", b"250 ok\r\n")]
    with ScriptedServer(*steps, tls=tls) as fake, over_tls(fake.port) as transport, pytest.raises(MailroomError, match="sender"):
        deliver(RAW, sender="a@x.test", recipients=["b@x.test"], via=transport)


def test_a_word_too_many_is_noticed_behind_tls_too(tls: ssl.SSLContext) -> None:
    steps = [*HELLO, ("STARTTLS", b"220 go\r\n" + START_TLS), ("EHLO", b"250 hi\r\n421 and good-bye\r\n")]
    with ScriptedServer(*steps, tls=tls) as fake, over_tls(fake.port) as transport:
        assert not transport.is_silent
    steps = [*HELLO, ("STARTTLS", b"220 go\r\n" + START_TLS), ("EHLO", b"250 hi\r\n")]
    with ScriptedServer(*steps, tls=tls) as fake, over_tls(fake.port) as transport:
        assert transport.is_silent
