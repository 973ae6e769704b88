"""The clients of rspamd and SpamAssassin against the real ones: what they say, what they learn, and a check without them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from mail.accounts import Secret
from mail.spam.engines.engine import Breaker, EngineUnavailable, Envelope
from mail.spam.engines.rspamd import Rspamd as RspamdClient
from mail.spam.engines.spamc import Spamc
from mail.spam.judging import GuardedEngine, Rules, judge
from tests.servers.process import free_port
from tests.servers.rspamd import PASSWORD, Rspamd
from tests.servers.spamd import Spamd

pytestmark = pytest.mark.integration
SECONDS = 30.0
TENANT = Envelope("0190aaaa-0000-7000-8000-000000000001", "bob@lists.example", ("ann@acme.test",))
HEAD = (
    b"From: Bob <bob@lists.example>\r\nTo: ann@acme.test\r\nSubject: lunch\r\nMessage-ID: <1@lists.example>\r\n"
    b"Date: Sat, 21 Nov 2026 10:00:00 +0000\r\n\r\n"
)
WANTED = HEAD + b"Shall we have lunch on Monday with everybody of the team? Bring the plans along.\r\n"
GTUBE = HEAD + b"XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\r\n"


def client_of(server: Rspamd, password: str = PASSWORD) -> RspamdClient:
    return RspamdClient(server.url, controller_url=server.controller_url, password=Secret(password), timeout=SECONDS)


def test_rspamd_tells_the_test_message_from_a_wanted_one(rspamd: Rspamd) -> None:
    engine = client_of(rspamd)
    spam, wanted = engine.scan(GTUBE, TENANT), engine.scan(WANTED, TENANT)
    assert spam.score >= spam.required > wanted.score
    assert (spam.engine, wanted.engine) == ("rspamd", "rspamd")
    assert "GTUBE" in spam.symbols
    assert {"RCVD_COUNT_ZERO", "FORGED_SENDER"} & set(wanted.symbols)


def test_rspamd_learns_over_its_controller_with_the_password_only(rspamd: Rspamd) -> None:
    def learned() -> dict[str, int]:
        answer = httpx.get(f"{rspamd.controller_url}/stat", headers={"Password": PASSWORD}, timeout=SECONDS).json()
        return {each["symbol"]: each["revision"] for each in answer["statfiles"]}

    before = learned()
    engine = client_of(rspamd)
    engine.learn(WANTED.replace(b"lunch", b"gold bars"), TENANT, is_spam=True)
    engine.learn(WANTED, TENANT, is_spam=False)
    engine.learn(WANTED, TENANT, is_spam=False)  # again: nothing new, and no error
    after = learned()
    assert {name: after[name] > before[name] for name in after} == {"BAYES_SPAM": True, "BAYES_HAM": True}
    with pytest.raises(EngineUnavailable, match="did not learn"):
        client_of(rspamd, password="another").learn(GTUBE, TENANT, is_spam=True)


def test_spamassassin_tells_the_test_message_from_a_wanted_one(spamd: Spamd) -> None:
    engine = Spamc(spamd.url, timeout=SECONDS)
    spam, wanted = engine.scan(GTUBE, TENANT), engine.scan(WANTED, TENANT)
    assert spam.score > 900
    assert wanted.score < wanted.required == spam.required
    assert "GTUBE" in spam.symbols
    assert "NO_RELAYS" in wanted.symbols


def test_spamassassin_learns(spamd: Spamd) -> None:
    engine = Spamc(spamd.url, timeout=SECONDS)
    message = WANTED.replace(b"lunch on Monday", b"gold bars for nothing")
    before = engine.scan(message, TENANT)
    assert not any(symbol.startswith("BAYES") for symbol in before.symbols)
    engine.learn(message, TENANT, is_spam=True)
    engine.learn(WANTED.replace(b"Monday", b"Tuesday"), TENANT, is_spam=False)
    assert any(symbol.startswith("BAYES") for symbol in engine.scan(message, TENANT).symbols)


def test_both_are_asked_and_fused(rspamd: Rspamd, spamd: Spamd) -> None:
    engines = (GuardedEngine(client_of(rspamd)), GuardedEngine(Spamc(spamd.url, timeout=SECONDS)))
    alone = judge(GTUBE, Rules(user=TENANT.user), sender="bob@lists.example")
    together = judge(GTUBE, Rules(engines=engines, user=TENANT.user), sender="bob@lists.example")
    assert (together.is_spam, together.score > alone.score, together.notes) == (True, True, alone.notes)
    assert [each.engine for each in together.engines] == ["rspamd", "spamassassin"]
    assert [each.evidence for each in together.indicators if each.code == "engine_symbol" and "GTUBE" in each.evidence]


@pytest.mark.parametrize("name", ["rspamd", "spamassassin"])
def test_an_engine_that_is_killed_costs_no_verdict_and_is_asked_again_once_it_is_back(name: str, request: pytest.FixtureRequest) -> None:
    server: Rspamd | Spamd = request.getfixturevalue({"spamassassin": "spamd"}.get(name, name))
    client = client_of(server) if isinstance(server, Rspamd) else Spamc(server.url, timeout=SECONDS)
    engine = GuardedEngine(client, Breaker(seconds=0.0))
    rules = Rules(engines=(engine,), user=TENANT.user)
    assert judge(WANTED, rules, sender="bob@lists.example").engines
    server.kill()
    alone = judge(WANTED, Rules(), sender="bob@lists.example")
    for _ in range(4):
        without = judge(WANTED, rules, sender="bob@lists.example")
        assert (without.engines, without.score, without.is_spam) == ((), alone.score, alone.is_spam)
        assert f"engine_unavailable:{name}" in without.notes
    server.start()
    assert judge(WANTED, rules, sender="bob@lists.example").engines


@contextmanager
def answering(answer: Callable[[socket.socket], object]) -> Iterator[int]:
    """A server that does with each connection what it is told to."""
    with socket.create_server(("127.0.0.1", free_port())) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(65_536)
                        answer(connection)
                    except OSError:
                        pass

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b"x" * 65_536 + b"\r\n")


HOSTILE: dict[str, Callable[[socket.socket], object]] = {
    "hangs up": lambda connection: None,
    "silent": lambda connection: connection.recv(1),
    "endless": endless,
    "nonsense": lambda connection: connection.sendall(b"220 smtp.example ESMTP\r\n"),
    "no score": lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
    "an error": lambda connection: connection.sendall(b"SPAMD/1.1 76 EX_PROTOCOL\r\n\r\n"),
    "a page": lambda connection: connection.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_server_that_is_none_is_unavailable(what: str) -> None:
    with answering(HOSTILE[what]) as port:
        for engine in (RspamdClient(f"http://127.0.0.1:{port}", timeout=0.5), Spamc(f"tcp://127.0.0.1:{port}", timeout=0.5)):
            with pytest.raises(EngineUnavailable):
                engine.scan(WANTED, TENANT)
