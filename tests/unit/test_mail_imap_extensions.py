"""QRESYNC, LIST-STATUS, OBJECTID and COMPRESS as servers speak them, and as some get them wrong."""

from __future__ import annotations

import io
import socket
import threading
import zlib
from collections.abc import Iterator

import pytest

from mail import imap_connection, imap_reader
from mail.accounts import Endpoint, Security
from mail.errors import ConnectionFailed, MailboxProtocolError
from mail.folder_names import RemoteFolder
from mail.imap_deflate import Deflater, Inflater
from mail.imap_reader import ResponseReader
from mail.mailbox import FolderState, Span
from tests.unit.imap_sessions import INBOX, OPENED, logged_in, mailbox_at
from tests.unit.scripted_server import ScriptedServer

ENABLED = ("ENABLE QRESYNC", b"* ENABLED QRESYNC\r\n%t OK\r\n")
STATE = FolderState(7, 9, 3, 90)


# -- QRESYNC ------------------------------------------------------------------------------------------------------------------


def resynced(*lines: bytes) -> tuple[dict[int, frozenset[str]], list[int]]:
    """Flags and vanished UIDs (of the first hundred) that these lines before the usual answer tell."""
    steps = [ENABLED, (r'EXAMINE "INBOX" \(QRESYNC \(7 80 1:8\)\)\r', b"".join(line + b"\r\n" for line in lines) + OPENED)]
    with ScriptedServer(*logged_in("QRESYNC", "ENABLE"), *steps) as server, mailbox_at(server) as mailbox:
        state, told = mailbox.examine_since(INBOX, 7, 80, 8)
    assert state == STATE
    assert told is not None
    return told.flags, [uid for uid in range(1, 100) if uid in told.vanished]


def test_the_opening_tells_what_changed_and_vanished() -> None:
    lines = [b"* VANISHED (EARLIER) 2,41:43", b"* 1 FETCH (UID 4 FLAGS (\\Seen) MODSEQ (85))", b"* VANISHED (EARLIER) 50"]
    assert resynced(*lines) == ({4: frozenset({"\\Seen"})}, [2, 41, 42, 43, 50])


def test_malformed_vanished_lines_and_foreign_messages_are_harmless() -> None:
    lines = [
        b"* VANISHED", b"* VANISHED (EARLIER)", b"* VANISHED (EARLIER) ", b"* VANISHED (EARLIER) x:y,3,,7:", b"* VANISHED 1",
        b"* VANISHED (LATER) 6",
        b"* VANISHED (EARLIER) 4000000000:90", b"* VANISHED (EARLIER) *", b"* 1 FETCH (UID 99 FLAGS ())", b"* 2 FETCH (FLAGS ())",
    ]  # fmt: skip
    assert resynced(*lines) == ({}, [3, 7, *range(90, 100)])


def test_a_server_that_enables_nothing_is_asked_for_changes_the_other_way() -> None:
    for enabled in (b"* ENABLED\r\n%t OK\r\n", b"%t OK\r\n", b"%t BAD what\r\n"):
        refused = (r'EXAMINE "INBOX" \(QRESYNC', b"%t BAD not enabled\r\n")  # asked for in the same breath
        steps = [("ENABLE QRESYNC", enabled), refused, (r'EXAMINE "INBOX" \(CONDSTORE\)\r', OPENED)]
        with ScriptedServer(*logged_in("QRESYNC", "ENABLE"), *steps) as server, mailbox_at(server) as mailbox:
            assert mailbox.examine_since(INBOX, 7, 80, 8) == (STATE, None)


def test_changes_from_a_server_that_enabled_nothing_do_not_count() -> None:
    steps = [("ENABLE QRESYNC", b"* ENABLED\r\n%t OK\r\n"), ("QRESYNC", b"* VANISHED (EARLIER) 1:8\r\n" + OPENED)]
    with ScriptedServer(*logged_in("QRESYNC", "ENABLE"), *steps) as server, mailbox_at(server) as mailbox:
        state, changes = mailbox.examine_since(INBOX, 7, 80, 8)
    assert (state.highest_modseq, changes) == (90, None)


def test_a_server_that_refuses_what_it_enabled_is_asked_again() -> None:
    steps = [ENABLED, ("QRESYNC", b"%t BAD no\r\n"), (r"\(CONDSTORE\)", OPENED)]
    with ScriptedServer(*logged_in("QRESYNC", "ENABLE"), *steps) as server, mailbox_at(server) as mailbox:
        assert mailbox.examine_since(INBOX, 7, 80, 8) == (STATE, None)


def test_a_folder_that_counts_anew_tells_no_changes() -> None:
    for opened in (OPENED.replace(b"UIDVALIDITY 7", b"UIDVALIDITY 6"), OPENED.replace(b"HIGHESTMODSEQ 90", b"NOMODSEQ")):
        steps = [ENABLED, ("QRESYNC", b"* VANISHED (EARLIER) 1:8\r\n" + opened)]
        with ScriptedServer(*logged_in("QRESYNC", "ENABLE"), *steps) as server, mailbox_at(server) as mailbox:
            assert mailbox.examine_since(INBOX, 7, 80, 8)[1] is None


# -- LIST-STATUS and OBJECTID -------------------------------------------------------------------------------------------------


def test_counters_and_lasting_names_come_with_the_list() -> None:
    answer = (
        b'* LIST () "/" INBOX\r\n* STATUS INBOX (MESSAGES 3 UIDNEXT 9 UIDVALIDITY 7 HIGHESTMODSEQ 90 MAILBOXID (F2212ea87-6097))\r\n'
        b'* LIST (\\NoSelect) "/" top\r\n* LIST () "/" odd\r\n* STATUS odd (MESSAGES 1 MAILBOXID (no id))\r\n%t OK\r\n'
    )
    listed = (r'LIST "" "\*" RETURN \(SPECIAL-USE STATUS \(MESSAGES UIDNEXT UIDVALIDITY HIGHESTMODSEQ MAILBOXID\)\)\r', answer)
    asked = ('STATUS "odd" ', b"%t NO\r\n")
    again = ('STATUS "INBOX" ', b"* STATUS INBOX (MESSAGES 4 UIDNEXT 10 UIDVALIDITY 7)\r\n%t OK\r\n")
    capabilities = ("LIST-STATUS", "LIST-EXTENDED", "SPECIAL-USE", "CONDSTORE", "OBJECTID")
    with ScriptedServer(*logged_in(*capabilities), listed, asked, again) as server, mailbox_at(server) as mailbox:
        folders = mailbox.list_folders()
        assert mailbox.states(folders) == {"INBOX": STATE}
        assert mailbox.states(folders[:1]) == {"INBOX": FolderState(7, 10, 4, None)}  # what LIST told counts once
    assert [(folder.name, folder.remote_id) for folder in folders] == [("INBOX", "F2212ea87-6097"), ("top", None), ("odd", None)]


def test_a_server_that_refuses_the_long_list_gets_the_short_one() -> None:
    steps = [("RETURN", b"%t BAD no\r\n"), (r'LIST "" "\*"\r', b'* LIST () "/" INBOX\r\n%t OK\r\n')]
    with ScriptedServer(*logged_in("LIST-STATUS"), *steps) as server, mailbox_at(server) as mailbox:
        assert [folder.name for folder in mailbox.list_folders()] == ["INBOX"]


def test_without_list_status_folders_are_asked_for_their_lasting_names() -> None:
    steps = [
        (r'LIST "" "\*"\r', b'* LIST () "/" INBOX\r\n* LIST () "/" a\r\n%t OK\r\n'),
        ("STATUS .INBOX. .*MAILBOXID", b"* STATUS INBOX (UIDNEXT 9 UIDVALIDITY 7 MAILBOXID (F1))\r\n%t OK\r\n"),
        ("STATUS .a. ", b"* STATUS a (UIDNEXT 1 UIDVALIDITY 2 MAILBOXID (F2))\r\n%t OK\r\n"),
    ]
    with ScriptedServer(*logged_in("OBJECTID"), *steps) as server, mailbox_at(server) as mailbox:
        folders = mailbox.list_folders()
        assert [folder.remote_id for folder in folders] == ["F1", "F2"]
        assert set(mailbox.states(folders)) == {"INBOX", "a"}


@pytest.mark.parametrize(
    ("capability", "item", "answer", "remote_id"),
    [
        ("OBJECTID", "EMAILID", b"EMAILID (M6d99ac3275bb4e)", "M6d99ac3275bb4e"),
        ("OBJECTID", "EMAILID", b"EMAILID (no\0id)", None),
        ("OBJECTID", "EMAILID", b"EMAILID NIL", None),
        ("X-GM-EXT-1", "X-GM-MSGID", b"X-GM-MSGID 1278455344230334865", "1278455344230334865"),
        ("X-GM-EXT-1", "X-GM-MSGID", b"X-GM-MSGID lots", None),
    ],
)
def test_messages_have_a_name_that_outlives_moving(capability: str, item: str, answer: bytes, remote_id: str | None) -> None:
    fetched = b"* 1 FETCH (UID 1 " + answer + b" BODY[] {1}\r\na)\r\n%t OK\r\n"
    with ScriptedServer(*logged_in(capability), (f"UID FETCH 1:1 .*{item} BODY", fetched)) as server, mailbox_at(server) as mailbox:
        [[message]] = mailbox.fetch([Span(1, 1)])
    assert message.remote_id == remote_id


def test_only_the_named_messages_of_a_span_are_fetched_and_told() -> None:
    fetched = b"* 1 FETCH (UID 1 BODY[] {1}\r\na)\r\n* 2 FETCH (UID 2 FLAGS (\\Seen))\r\n* 3 FETCH (UID 5 BODY[] {1}\r\nb)\r\n%t OK\r\n"
    with ScriptedServer(*logged_in(), ("UID FETCH 1,5 ", fetched)) as server, mailbox_at(server) as mailbox:
        [messages] = mailbox.fetch([Span(1, 5, uids=(1, 5))])
    assert [(message.uid, message.raw) for message in messages] == [(1, b"a"), (5, b"b")]


def test_identities_are_read_without_bodies() -> None:
    header = b"Message-ID:\r\n\t<a@b>\r\n\r\n"
    answer = b'* 1 FETCH (UID 4 INTERNALDATE "01-Jan-2024 00:00:00 +0000" RFC822.SIZE 9 BODY[HEADER.FIELDS ("MESSAGE-ID")] {%d}\r\n%b)\r\n'
    plain = b"* 2 FETCH (UID 5 RFC822.SIZE 8 BODY[HEADER.FIELDS (MESSAGE-ID)] {2}\r\n\r\n)\r\n* 3 FETCH (UID 6 FLAGS ())\r\n%t OK\r\n"
    step = (r"UID FETCH 1:9 \(UID INTERNALDATE RFC822.SIZE BODY.PEEK", answer % (len(header), header) + plain)
    with ScriptedServer(*logged_in(), step) as server, mailbox_at(server) as mailbox:
        first, second = mailbox.identities(1, 9)
    assert (first.uid, first.message_id, first.size, first.received_at is None) == (4, "<a@b>", 9, False)
    assert (second.uid, second.message_id, second.received_at) == (5, None, None)


# -- COMPRESS -----------------------------------------------------------------------------------------------------------------


def test_a_refused_compression_goes_on_in_the_clear() -> None:
    steps = [("COMPRESS DEFLATE", b"%t NO [COMPRESSIONACTIVE] no\r\n"), ("LIST", b"%t OK\r\n")]
    with ScriptedServer(*logged_in("COMPRESS=DEFLATE"), *steps) as server, mailbox_at(server, compress=True) as mailbox:
        assert mailbox.list_folders() == []


def test_compression_is_not_asked_for_unless_wanted_and_offered() -> None:
    for capabilities, compress in ((("COMPRESS=DEFLATE",), False), ((), True)):
        steps = [("LIST", b"%t OK\r\n")]
        with ScriptedServer(*logged_in(*capabilities), *steps) as server, mailbox_at(server, compress=compress) as mailbox:
            mailbox.list_folders()


def test_what_comes_compressed_is_read_whatever_the_pieces() -> None:
    sent = b"* 1 FETCH (UID 1 BODY[] {300000}\r\n" + b"x" * 300_000 + b")\r\nM1 OK\r\n"
    source = _Trickle(Deflater()(sent), step=7)
    reader = ResponseReader(io.BufferedReader(Inflater(source, "x:143"), 4096), "x:143")
    assert len(reader.read().literals[0]) == 300_000
    assert reader.read().word == b"OK"
    with pytest.raises(ConnectionFailed):
        reader.read()


def test_a_bomb_inflates_no_further_than_the_reader_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imap_reader, "MAX_LINE", 100_000)
    deflate = zlib.compressobj(wbits=-15)
    bomb = deflate.compress(b"* " + b"x" * 20_000_000) + deflate.flush(zlib.Z_SYNC_FLUSH)
    source = _Trickle(bomb, step=65536)
    inflater = Inflater(source, "x:143")
    with pytest.raises(MailboxProtocolError):
        ResponseReader(io.BufferedReader(inflater, 4096), "x:143").read()
    assert len(inflater._left) + source.taken <= 2 * 65536


def test_what_cannot_be_inflated_is_no_answer() -> None:
    with pytest.raises(MailboxProtocolError, match="compressed"):
        io.BufferedReader(Inflater(_Trickle(b"\xff\xff\xff\xff", step=9), "x:143")).read(1)


def test_bytes_after_the_answer_to_compress_are_compressed_already() -> None:
    ours, theirs = socket.socketpair()
    connection = imap_connection.ImapConnection(Endpoint("x", 143, Security.PLAIN, timeout=2))
    connection._use(ours)
    threading.Thread(target=lambda: theirs.sendall(b"M1 OK go\r\n" + Deflater()(b"* OK hello\r\nM2 OK\r\n")), daemon=True).start()
    connection.compress()
    assert [each.word for each in connection.run(b"NOOP")] == [b"OK", b"OK"]
    said = theirs.recv(1000)
    assert zlib.decompressobj(-15).decompress(said.partition(b"\r\n")[2] or theirs.recv(1000)) == b"M2 NOOP\r\n"
    connection.logout()
    theirs.close()


class _Trickle:
    """A stream that gives a few bytes at a time."""

    def __init__(self, data: bytes, *, step: int) -> None:
        self._pieces: Iterator[bytes] = (data[start : start + step] for start in range(0, len(data), step))
        self.taken = 0

    def read1(self, size: int, /) -> bytes:
        piece = next(self._pieces, b"")
        self.taken += len(piece)
        return piece

    def close(self) -> None:
        return


def test_folder_names_survive_a_status_with_quotes() -> None:
    folder = RemoteFolder('a"b\\', 'a"b\\')
    step = (r'STATUS "a\\"b\\\\" ', b'* STATUS "a\\"b\\\\" (MESSAGES 1 UIDNEXT 2 UIDVALIDITY 3)\r\n%t OK\r\n')
    with ScriptedServer(*logged_in(), step) as server, mailbox_at(server) as mailbox:
        assert mailbox.states([folder]) == {'a"b\\': FolderState(3, 2, 1, None)}
