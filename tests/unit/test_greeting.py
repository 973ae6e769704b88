"""A mail server's greeting: connected, greeted, said good-bye to, and never logged in to."""

from __future__ import annotations

import pytest

from mail.accounts import Endpoint, Security
from mail.errors import ConnectionFailed, MailboxProtocolError, ServerUnavailable
from mail.greeting import greet
from tests.unit.scripted_server import HANG_UP, ScriptedServer, Step

SCRIPTS: dict[str, list[Step]] = {
    "smtp": [Step("", b"220 hello\r\n"), Step("^EHLO", b"250 hello\r\n"), Step("^QUIT", b"221 bye\r\n")],
    "imap": [Step("", b"* OK [CAPABILITY IMAP4rev1] hello\r\n"), Step("LOGOUT", b"* BYE\r\n")],
    "pop3": [Step("", b"+OK hello\r\n"), Step("^CAPA", b"+OK\r\nUIDL\r\n.\r\n"), Step("^QUIT", b"+OK\r\n")],
}


def at(server: ScriptedServer) -> Endpoint:
    return Endpoint(server.host, server.port, Security.PLAIN, allow_private=True, timeout=5)


@pytest.mark.parametrize("protocol", SCRIPTS)
def test_a_server_is_greeted_and_left(protocol: str) -> None:
    with ScriptedServer(*SCRIPTS[protocol]) as server:
        greet(protocol, at(server))


@pytest.mark.parametrize(("protocol", "kind"), [("smtp", ConnectionFailed), ("imap", ServerUnavailable), ("pop3", MailboxProtocolError)])
def test_a_server_that_will_not_have_us_raises_what_it_means(protocol: str, kind: type[Exception]) -> None:
    answer = {"smtp": HANG_UP, "imap": b"* BYE busy\r\n" + HANG_UP, "pop3": b"-ERR no\r\n"}[protocol]
    with ScriptedServer(Step("", answer)) as server, pytest.raises(kind):
        greet(protocol, at(server))
