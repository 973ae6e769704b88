"""IDLE (RFC 2177) as servers speak it: news as it comes, an end by either side, and a connection that is as good as before."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing

import pytest

from mail import imap_connection
from mail.errors import ConnectionFailed, MailboxProtocolError, ServerUnavailable
from mail.mailbox import FolderState
from mail.steady import SteadyReader
from tests.unit.imap_sessions import INBOX, OPENED, logged_in, mailbox_at
from tests.unit.scripted_server import HANG_UP, ScriptedServer

OPENING = (r'EXAMINE "INBOX"', OPENED)
STATE = FolderState(7, 9, 3, 90)
NEWS = b"+ idling\r\n* 4 EXISTS\r\n* 1 RECENT\r\n* OK Still here\r\n* 2 EXPUNGE\r\n* 1 FETCH (FLAGS (\\Seen))\r\n* VANISHED 5\r\n"


def script(*idling: tuple[str, bytes]) -> ScriptedServer:
    """Opens the INBOX (the second command), idles (the third), and opens it again."""
    return ScriptedServer(*logged_in("IDLE"), OPENING, *idling, OPENING)


def test_news_are_told_and_the_connection_goes_on() -> None:
    with script((r"^M3 IDLE\r", NEWS), (r"^DONE\r", b"* 5 EXISTS\r\nM3 OK done\r\n")) as server, mailbox_at(server) as mailbox:
        assert mailbox.has_idle
        mailbox.examine(INBOX)
        assert list(mailbox.idle(0.3)) == ["EXISTS", "EXPUNGE", "FETCH", "VANISHED", "EXISTS"]
        assert mailbox.examine(INBOX) == STATE


def test_it_may_end_with_the_first_news() -> None:
    with script(("IDLE", NEWS), ("DONE", b"* 5 EXISTS\r\nM3 OK done\r\n")) as server, mailbox_at(server) as mailbox:
        mailbox.examine(INBOX)
        with closing(mailbox.idle(60)) as news:  # type: ignore[type-var]
            assert next(news) == "EXISTS"
        assert mailbox.examine(INBOX) == STATE


def test_a_server_that_has_had_enough_is_not_told_again() -> None:
    with script(("IDLE", b"+ \r\n* 4 EXISTS\r\n%t OK enough\r\n")) as server, mailbox_at(server) as mailbox:
        mailbox.examine(INBOX)
        assert list(mailbox.idle(60)) == ["EXISTS"]
        assert mailbox.examine(INBOX) == STATE


def test_a_refusal_leaves_the_connection_as_it_was() -> None:
    with script(("IDLE", b"%t BAD what\r\n")) as server, mailbox_at(server) as mailbox:
        mailbox.examine(INBOX)
        with pytest.raises(MailboxProtocolError):
            list(mailbox.idle(60))
        assert mailbox.examine(INBOX) == STATE


@pytest.mark.parametrize("end", [HANG_UP, b"* BYE over\r\n"])
def test_a_lost_connection_is_noticed_at_once(end: bytes) -> None:
    with ScriptedServer(*logged_in("IDLE"), OPENING, ("IDLE", b"+ \r\n* 4 EXISTS\r\n" + end)) as server, mailbox_at(server) as mailbox:
        mailbox.examine(INBOX)
        news = mailbox.idle(60)
        assert next(news) == "EXISTS"
        with pytest.raises((ConnectionFailed, ServerUnavailable)):
            next(news)


def test_a_server_is_never_left_alone_for_half_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    assert imap_connection.LONGEST_IDLE < 29 * 60
    monkeypatch.setattr(imap_connection, "LONGEST_IDLE", 0.1)
    with script(("IDLE", b"+ \r\n"), ("DONE", b"M3 OK done\r\n")) as server, mailbox_at(server) as mailbox:
        mailbox.examine(INBOX)
        before = time.monotonic()
        assert list(mailbox.idle(3600)) == []
        assert time.monotonic() - before < 15
        assert mailbox.examine(INBOX) == STATE


def test_waiting_for_news_is_no_slowness() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0.01)
        reader = SteadyReader(ours, 0.01)  # its patience is a tenth of a second
        threading.Timer(0.4, theirs.sendall, (b"news",)).start()
        with reader.resting(10):
            assert reader.readinto(bytearray(10)) == 4
        with pytest.raises(TimeoutError):
            reader.readinto(bytearray(10))
