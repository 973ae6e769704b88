"""Kept SMTP connections, pipelining, and what a server offers or not: fewer round trips, and never a mail more or less for it."""

from __future__ import annotations

import base64
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from core.errors import UnavailableError
from mail.accounts import Endpoint, Secret, Security
from mail.delivery import DeliveryOutcome, deliver
from mail.errors import AuthenticationRefused, ConnectionFailed, DeliveryUncertain, Greylisted, MessageRejected, SenderRejected
from mail.seven_bit import in_seven_bits
from mail.smtp import SmtpTransport
from mail.smtp_pool import PooledTransport, SmtpPool
from runs.limits import SoftTimeLimitExceeded
from tests.unit.scripted_server import HANG_UP, ScriptedServer

RAW = b"Subject: hello\r\n\r\nbody\r\n"


class LineServer:
    """Takes any number of connections. `answer` may change: it maps the first word of a command to its reply."""

    def __init__(self, *extensions: str) -> None:
        self.answers: dict[str, bytes] = {}
        self.extensions = extensions
        self.connections: list[list[str]] = []
        self.reads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def endpoint(self, **changes: object) -> Endpoint:
        given: dict[str, object] = {"host": "127.0.0.1", "port": self.port, "security": Security.PLAIN, "allow_private": True, "timeout": 3}
        return Endpoint(**{**given, **changes})  # type: ignore[arg-type]

    def hang_up(self) -> None:
        for sock in self.open:
            sock.shutdown(socket.SHUT_RDWR)
        self.open.clear()
        time.sleep(0.05)

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.open.append(sock)
            said: list[str] = []
            self.connections.append(said)
            threading.Thread(target=self._talk, args=(sock, said), daemon=True).start()

    def _talk(self, sock: socket.socket, said: list[str]) -> None:
        try:
            self._serve(sock, said)
        except OSError:
            return

    def _serve(self, sock: socket.socket, said: list[str]) -> None:
        sock.sendall(b"220 hi\r\n")
        buffer, in_data = b"", False
        while data := sock.recv(65536):
            self.reads.append(data)
            buffer += data
            while True:
                end = buffer.find(b"\r\n.\r\n") if in_data else buffer.find(b"\r\n")
                if end < 0:
                    break
                line, buffer = buffer[:end], buffer[end + (5 if in_data else 2) :]
                if in_data:
                    in_data = False
                    self.bodies.append(line)
                    word = "."
                else:
                    said.append(line.decode())
                    word = line.split(b" ")[0].decode().upper()
                reply = self.answers.get(said[-1] if word != "." else ".") or self.answers.get(word) or self._usual(word)
                if reply == HANG_UP:
                    sock.shutdown(socket.SHUT_RDWR)
                    return
                in_data = word == "DATA" and reply.startswith(b"354")
                sock.sendall(reply)

    def _usual(self, word: str) -> bytes:
        if word == "EHLO":
            return "".join(f"250-{each}\r\n" for each in ("me", *self.extensions)).encode() + b"250 HELP\r\n"
        return b"354 go\r\n" if word == "DATA" else b"250 2.0.0 ok\r\n"


@contextmanager
def line_server(*extensions: str) -> Iterator[LineServer]:
    server = LineServer(*extensions)
    try:
        yield server
    finally:
        server.close()


def send(via: SmtpTransport | PooledTransport, *to: str, mark: Callable[[], None] = lambda: None, raw: bytes = RAW) -> DeliveryOutcome:
    return deliver(raw, sender="a@x.test", recipients=to or ("b@x.test",), via=via, before_final_dot=mark)


# -- one connection -----------------------------------------------------------------------------------------------------------


def test_envelope_and_data_go_in_one_write_where_the_server_allows_it() -> None:
    with line_server("PIPELINING") as server, SmtpTransport(server.endpoint()) as transport:
        assert send(transport, "b@x.test", "c@x.test").accepted == ["b@x.test", "c@x.test"]
        (write,) = [read for read in server.reads if b"MAIL" in read]
        assert re.findall(rb"MAIL|RCPT|DATA", write) == [b"MAIL", b"RCPT", b"RCPT", b"DATA"]
    with line_server() as server, SmtpTransport(server.endpoint()) as transport:
        send(transport)
        assert [read.split()[0] for read in server.reads[1:4]] == [b"MAIL", b"RCPT", b"DATA"]


@pytest.mark.parametrize("extension", ["PIPELINING", "HELP"])
def test_nobody_is_named_after_the_server_has_enough_of_them(extension: str) -> None:
    people = [f"p{number}@x.test" for number in range(450)]
    with line_server(extension) as server, SmtpTransport(server.endpoint()) as transport:
        server.answers = {f"RCPT TO:<{each}>": b"452 4.5.3 too many recipients\r\n" for each in people[120:]}
        outcome = send(transport, *people)
        assert len([line for line in server.connections[0] if line.startswith("RCPT")]) <= 200
        server.answers = {"RCPT": b"452 4.5.3 too many recipients\r\n", "RSET": b"250 ok\r\n"}
        assert send(transport, *people, mark=pytest.fail).deferred == people
        server.answers = {"MAIL": b"550 no\r\n", "RSET": b"250 ok\r\n"}
        with pytest.raises(SenderRejected):
            send(transport, *people)
    assert (outcome.accepted, outcome.deferred) == (people[:120], people[120:])
    assert {(refusal.is_left, refusal.hint) for refusal in outcome.refused} == {(True, 1.0)}


def test_many_recipients_go_in_groups_and_each_reply_finds_its_own() -> None:
    people = [f"p{number}@x.test" for number in range(450)]
    with line_server("PIPELINING") as server, SmtpTransport(server.endpoint()) as transport:
        server.answers = {f"RCPT TO:<{people[number]}>": b"550 5.1.1 no\r\n" for number in (0, 99, 100, 449)}
        outcome = send(transport, *people)
    assert sorted(outcome.bounced) == sorted([people[0], people[99], people[100], people[449]])
    assert outcome.accepted == [each for each in people if each not in outcome.bounced]
    assert {refusal.enhanced for refusal in outcome.refused} == {"5.1.1"}


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ({"MAIL": b"550 5.7.1 no\r\n", "RCPT": b"503 no\r\n", "DATA": b"503 no\r\n"}, SenderRejected),
        ({"MAIL": b"451 4.7.1 no\r\n", "RCPT": b"503 no\r\n"}, Greylisted),  # and DATA is answered 354
        ({"DATA": b"451 4.3.0 later\r\n"}, Greylisted),
        ({"DATA": b"554 5.5.1 no\r\n"}, MessageRejected),
        ({"RCPT": b"530 5.7.0 log in\r\n", "DATA": b"503 no\r\n"}, AuthenticationRefused),
        ({"DATA": HANG_UP}, ConnectionFailed),
    ],
)
def test_a_refusal_in_a_pipeline_means_what_it_means_alone(answers: dict[str, bytes], error: type[Exception]) -> None:
    with line_server("PIPELINING") as server, SmtpTransport(server.endpoint()) as transport:
        server.answers = answers
        with pytest.raises(error):
            send(transport, mark=pytest.fail)
        assert server.bodies == []
        if transport.is_open:
            server.answers = {}
            assert send(transport).accepted


def test_when_a_pipeline_finds_nobody_no_body_is_sent() -> None:
    for data in (b"554 5.5.1 no valid recipients\r\n", b"354 go\r\n"):
        with line_server("PIPELINING") as server, SmtpTransport(server.endpoint()) as transport:
            server.answers = {"RCPT": b"550 5.1.1 no\r\n", "DATA": data}
            assert send(transport, mark=pytest.fail).bounced == ["b@x.test"]
            assert transport.is_open == data.startswith(b"554")
            assert server.bodies == []


def test_a_lost_reply_tells_who_was_refused_before() -> None:
    with line_server("PIPELINING") as server, SmtpTransport(server.endpoint()) as transport:
        server.answers = {"RCPT TO:<gone@x.test>": b"550 5.1.1 no\r\n", ".": HANG_UP}
        with pytest.raises(DeliveryUncertain) as caught:
            send(transport, "gone@x.test", "b@x.test")
    assert [(address, reply.code) for address, reply in caught.value.refused.items()] == [("gone@x.test", 550)]


def test_reports_are_asked_for_where_the_server_knows_them() -> None:
    with line_server("DSN", "SIZE") as server, SmtpTransport(server.endpoint(), envelope_id="a=b+c d") as transport:
        send(transport, "jo+n@x.test")
    assert "MAIL FROM:<a@x.test> SIZE=24 RET=HDRS ENVID=a+3Db+2Bc+20d" in server.connections[0]
    assert "RCPT TO:<jo+n@x.test> NOTIFY=FAILURE,DELAY ORCPT=rfc822;jo+2Bn@x.test" in server.connections[0]
    with line_server() as server, SmtpTransport(server.endpoint(), envelope_id="x") as transport:
        send(transport)
    assert "RCPT TO:<b@x.test>" in server.connections[0]


TYPE = "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
EIGHT = f"Subject: x\r\nMIME-Version: 1.0\r\n{TYPE}\r\ngrüße\r\n".encode()


def test_eight_bit_text_is_encoded_for_servers_without_it() -> None:
    with line_server() as server, SmtpTransport(server.endpoint()) as transport:
        send(transport, raw=EIGHT)
    assert server.bodies[0].isascii()
    assert b"Z3LDvMOfZQ" in server.bodies[0] or b"gr=C3=BC=C3=9Fe" in server.bodies[0]
    with line_server("8BITMIME") as server, SmtpTransport(server.endpoint()) as transport:
        send(transport, raw=EIGHT)
    assert server.bodies[0] + b"\r\n" == EIGHT
    assert in_seven_bits("Subject: ü\r\n\r\nx".encode()) is None


def test_a_token_is_used_instead_of_a_password() -> None:
    with line_server("AUTH XOAUTH2 PLAIN") as server:
        server.answers = {"AUTH": b"235 in\r\n"}
        with SmtpTransport(server.endpoint(username="jo", secret=Secret("no"), token=Secret("t0k"))):
            (said,) = [line for line in server.connections[0] if line.startswith("AUTH")]
    assert base64.b64decode(said.split()[-1]) == b"user=jo\1auth=Bearer t0k\1\1"


def test_a_refused_token_is_answered_and_named() -> None:
    steps = [("", b"220 hi\r\n"), ("EHLO", b"250-hi\r\n250 AUTH XOAUTH2\r\n"), ("AUTH", b"334 e30=\r\n"), ("^\r\n", b"535 5.7.8 no\r\n")]
    with ScriptedServer(*steps) as server:
        transport = SmtpTransport(
            Endpoint("127.0.0.1", server.port, Security.PLAIN, "jo", token=Secret("t0k"), allow_private=True, timeout=20)
        )
        with pytest.raises(AuthenticationRefused) as caught:
            transport.__enter__()
    assert "t0k" not in str(caught.value)


# -- kept ones ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[LineServer]:
    with line_server("PIPELINING") as made:
        yield made


@pytest.fixture
def pool() -> Iterator[SmtpPool]:
    made = SmtpPool(most_mails=5)
    yield made
    made.close()


def test_mails_of_an_account_share_a_connection_up_to_a_number(server: LineServer, pool: SmtpPool) -> None:
    for _ in range(7):
        send(pool.transport("acme:1", server.endpoint()))
    assert len(server.connections) == 2
    assert [line.split(" ")[0] for line in server.connections[0]].count("MAIL") == 5
    assert server.connections[0][-1] == "QUIT"
    assert pool.count() == 1


def test_accounts_tenants_and_credentials_never_share_one(server: LineServer, pool: SmtpPool) -> None:
    server.extensions = ("AUTH PLAIN",)
    server.answers = {"AUTH": b"235 in\r\n"}
    ways = [
        ("acme:1", server.endpoint(username="jo", secret=Secret("a"))),
        ("acme:1", server.endpoint(username="jo", secret=Secret("b"))),
        ("acme:1", server.endpoint(username="jo", token=Secret("a"), secret=Secret("a"))),
        ("acme:2", server.endpoint(username="jo", secret=Secret("a"))),
        ("globex:1", server.endpoint(username="jo", secret=Secret("a"))),
        ("acme:1", server.endpoint()),
    ]
    server.extensions = ("AUTH PLAIN XOAUTH2",)
    for _ in range(2):
        for account, endpoint in ways:
            send(pool.transport(account, endpoint))
    assert len(server.connections) == len(ways)
    assert pool.count() == len(ways)


def test_a_login_that_was_refused_three_times_is_left_alone_for_a_while(server: LineServer) -> None:
    server.extensions = ("AUTH PLAIN",)
    server.answers = {"AUTH": b"535 5.7.8 no\r\n"}
    pool, wrong = SmtpPool(refused_seconds=0.5), server.endpoint(username="jo", secret=Secret("wrong"))
    for _ in range(6):
        with pytest.raises(AuthenticationRefused):
            send(pool.transport("acme:1", wrong), mark=pytest.fail)
    assert len(server.connections) == 3
    server.answers = {"AUTH": b"235 in\r\n"}
    assert send(pool.transport("acme:1", server.endpoint(username="jo", secret=Secret("right")))).accepted
    assert send(pool.transport("acme:2", wrong)).accepted  # another account's
    with pytest.raises(AuthenticationRefused, match="three times"):
        send(pool.transport("acme:1", wrong))
    time.sleep(0.6)
    assert send(pool.transport("acme:1", wrong)).accepted
    pool.close()


def test_refused_logins_in_between_good_ones_do_not_add_up(server: LineServer) -> None:
    server.extensions = ("AUTH PLAIN",)
    pool, login = SmtpPool(most_mails=1), server.endpoint(username="jo", secret=Secret("s"))
    for _ in range(3):
        server.answers = {"AUTH": b"535 5.7.8 no\r\n"}
        for _ in range(2):
            with pytest.raises(AuthenticationRefused):
                send(pool.transport("acme:1", login))
        server.answers = {"AUTH": b"235 in\r\n"}
        assert send(pool.transport("acme:1", login)).accepted
    pool.close()


def test_a_connection_is_lent_to_one_thread_at_a_time(server: LineServer, pool: SmtpPool) -> None:
    barrier = threading.Barrier(4, timeout=30)

    def together() -> None:
        barrier.wait()

    def send_three() -> None:
        for _ in range(3):
            send(pool.transport("acme:1", server.endpoint()), mark=together)

    threads = [threading.Thread(target=send_three) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(server.bodies) == 12
    assert len(server.connections) == 4


def test_a_connection_the_server_has_ended_is_not_used(server: LineServer, pool: SmtpPool) -> None:
    send(pool.transport("acme:1", server.endpoint()))
    server.hang_up()
    assert send(pool.transport("acme:1", server.endpoint())).accepted
    assert len(server.connections) == 2


def test_a_connection_that_ends_under_the_mail_is_replaced_once_before_the_mark(server: LineServer, pool: SmtpPool) -> None:
    send(pool.transport("acme:1", server.endpoint()))
    server.answers = {"MAIL": HANG_UP}
    with pytest.raises(ConnectionFailed):  # the new one ends, too
        send(pool.transport("acme:1", server.endpoint()), mark=pytest.fail)
    assert len(server.connections) == 2
    server.answers = {}
    send(pool.transport("acme:1", server.endpoint()))
    (idle,) = pool._idle.values()
    idle[0].transport._connection.write(b"QUIT\r\n")  # its reply is on the way: the server thinks the session over
    time.sleep(0.05)
    assert send(pool.transport("acme:1", server.endpoint())).accepted
    assert len(server.connections) == 4


def test_after_the_mark_nothing_is_tried_again(server: LineServer, pool: SmtpPool) -> None:
    send(pool.transport("acme:1", server.endpoint()))
    server.answers = {".": HANG_UP}
    marks: list[int] = []
    with pytest.raises(DeliveryUncertain):
        send(pool.transport("acme:1", server.endpoint()), mark=lambda: marks.append(1))
    assert (len(marks), len(server.bodies), pool.count()) == (1, 2, 0)


@pytest.mark.parametrize(
    "error", [UnavailableError("away"), ConnectionFailed("the database's, not ours"), SoftTimeLimitExceeded(), KeyboardInterrupt()]
)
def test_an_error_in_the_middle_of_a_mail_ends_its_connection(server: LineServer, pool: SmtpPool, error: BaseException) -> None:
    marks: list[int] = []

    def fails() -> None:
        marks.append(1)
        raise error

    send(pool.transport("acme:1", server.endpoint()))
    with pytest.raises(type(error)):
        send(pool.transport("acme:1", server.endpoint()), mark=fails)
    assert (pool.count(), len(server.bodies), marks) == (0, 1, [1])


def test_a_time_limit_between_two_replies_ends_the_connection(server: LineServer, pool: SmtpPool, monkeypatch: pytest.MonkeyPatch) -> None:
    send(pool.transport("acme:1", server.endpoint()))
    read, calls = mail_read(), []

    def interrupted(self: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise SoftTimeLimitExceeded
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr("mail.smtp_connection.SmtpConnection.read", interrupted)
        with pytest.raises(SoftTimeLimitExceeded):
            send(pool.transport("acme:1", server.endpoint()))
    assert pool.count() == 0


def mail_read() -> Callable[[object], object]:
    from mail.smtp_connection import SmtpConnection

    return SmtpConnection.read  # type: ignore[return-value]


def test_a_refused_mail_does_not_cost_the_connection(server: LineServer, pool: SmtpPool) -> None:
    server.answers = {".": b"554 5.7.1 spam\r\n"}
    with pytest.raises(MessageRejected):
        send(pool.transport("acme:1", server.endpoint()))
    server.answers = {"RSET": b"250 ok\r\n"}
    send(pool.transport("acme:1", server.endpoint()))
    assert len(server.connections) == 1


def test_an_idle_connection_is_asked_and_later_ended(server: LineServer) -> None:
    pool = SmtpPool(idle_seconds=0.4, trusted_seconds=0.05)
    send(pool.transport("acme:1", server.endpoint()))
    time.sleep(0.1)
    send(pool.transport("acme:1", server.endpoint()))
    assert "RSET" in server.connections[0]
    deadline = time.monotonic() + 3
    while pool.count() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.05)
    assert (pool.count(), server.connections[0][-1]) == (0, "QUIT")


def test_closing_the_pool_says_good_bye(server: LineServer, pool: SmtpPool) -> None:
    send(pool.transport("acme:1", server.endpoint()))
    pool.close()
    time.sleep(0.05)
    assert (pool.count(), server.connections[0][-1]) == (0, "QUIT")
