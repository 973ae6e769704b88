"""What changes a mailbox: only ever the messages named, in commands every server takes, and told as far as the server tells it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from core.errors import InvalidInputError, MailroomError, PermanentError
from mail.errors import FolderMissing, MailboxFull, MailboxProtocolError, MessageRejected, ServerThrottled, ServerUnavailable
from mail.fake import FakeMailbox
from mail.folder_names import RemoteFolder
from mail.imap_syntax import Response, copied_uids, date_time, flag_list, uid_sets
from tests.unit.imap_sessions import INBOX, OPENED, TRASH, logged_in, mailbox_at
from tests.unit.scripted_server import ScriptedServer

SELECT = ('SELECT "INBOX"', OPENED)


def test_move_uses_one_command_and_tells_the_new_numbers() -> None:
    moved = b"* OK [COPYUID 5 3:4,7 11:13] moved\r\n* 1 EXPUNGE\r\n%t OK done\r\n"
    with ScriptedServer(*logged_in("MOVE"), SELECT, ('UID MOVE 3:4,7,9 "Trash"\r', moved)) as server, mailbox_at(server) as mailbox:
        mailbox.select(INBOX)
        assert mailbox.move([7, 4, 3, 9], TRASH) == {3: 11, 4: 12, 7: 13}


def test_without_move_the_copies_made_are_the_messages_expunged() -> None:
    steps = [
        ('UID COPY 3,5 "Trash"', b"%t OK [COPYUID 5 3,5 20:21] copied\r\n"),
        (r"UID STORE 3,5 \+FLAGS.SILENT \(\\Deleted\)", b"%t OK\r\n"),
        ("UID EXPUNGE 3,5\r", b"%t OK\r\n"),
    ]
    with ScriptedServer(*logged_in("UIDPLUS"), SELECT, *steps) as server, mailbox_at(server) as mailbox:
        mailbox.select(INBOX)
        assert mailbox.move([3, 5], TRASH) == {3: 20, 5: 21}


def test_without_uidplus_nothing_is_ever_expunged() -> None:
    steps = [("UID COPY 3", b"%t OK\r\n"), ("UID STORE 3 .FLAGS.SILENT", b"%t OK\r\n")]
    with ScriptedServer(*logged_in(), SELECT, *steps) as server, mailbox_at(server) as mailbox:
        mailbox.select(INBOX)
        assert mailbox.move([3], TRASH) == {3: None}
        with pytest.raises(PermanentError, match="UIDPLUS"):
            mailbox.expunge([3])
    assert not any(b"EXPUNGE" in line for line in server.lines)


def test_expunge_marks_and_deletes_these_messages_alone() -> None:
    steps = [(r"UID STORE 2:3 \+FLAGS.SILENT \(\\Deleted\)", b"%t OK\r\n"), ("UID EXPUNGE 2:3\r", b"* VANISHED 2:3\r\n%t OK\r\n")]
    with ScriptedServer(*logged_in("UIDPLUS"), SELECT, *steps) as server, mailbox_at(server) as mailbox:
        mailbox.select(INBOX)
        mailbox.expunge([2, 3])


def test_a_move_to_a_folder_that_is_not_there_is_missing_and_copies_nothing_more() -> None:
    with ScriptedServer(*logged_in("MOVE"), SELECT, ("UID MOVE", b"%t NO [TRYCREATE] no\r\n")) as server, mailbox_at(server) as mailbox:
        mailbox.select(INBOX)
        with pytest.raises(FolderMissing):
            mailbox.move([1], TRASH)
        with pytest.raises(FolderMissing):
            mailbox.move([1], RemoteFolder("a\nb", "a\nb"))


def test_nothing_is_asked_for_no_messages() -> None:
    with ScriptedServer(*logged_in("MOVE", "UIDPLUS"), SELECT) as server, mailbox_at(server) as mailbox:
        mailbox.select(INBOX)
        assert mailbox.move([], TRASH) == {}
        mailbox.expunge([])
        mailbox.store_flags([1], frozenset(), frozenset())


def test_a_folder_that_may_only_be_read_is_not_opened_for_changes() -> None:
    opened = OPENED.replace(b"READ-WRITE", b"READ-ONLY")
    with ScriptedServer(*logged_in(), ("SELECT", opened)) as server, mailbox_at(server) as mailbox, pytest.raises(MailboxProtocolError):
        mailbox.select(INBOX)


def test_flags_are_added_and_removed_in_silence() -> None:
    steps = [
        (r"UID STORE 1:2 \+FLAGS.SILENT \(\$Label \\Seen\)", b"* 1 FETCH (FLAGS (\\Seen))\r\n%t OK\r\n"),
        (r"UID STORE 1:2 -FLAGS.SILENT \(\\Flagged\)", b"%t OK\r\n"),
    ]
    with ScriptedServer(*logged_in(), SELECT, *steps) as server, mailbox_at(server) as mailbox:
        mailbox.select(INBOX)
        mailbox.store_flags([1, 2], {"\\Seen", "$Label", "\\Recent", "no flag", "a)b"}, {"\\Flagged"})


def test_a_message_is_appended_where_the_server_waits_for_it() -> None:
    steps = [
        (r'APPEND "Trash" \(\\Seen\) "02-Jan-2024 22:04:05 \+0000" \{5\}\r', b"+ go\r\n"),
        ("^a\r\n", b""),
        ("^b!", b"M2 OK [APPENDUID 5 17] in\r\n"),
    ]
    moment = datetime(2024, 1, 3, 0, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    with ScriptedServer(*logged_in(), *steps) as server, mailbox_at(server) as mailbox:
        assert mailbox.append(TRASH, b"a\r\nb!", {"\\Seen"}, moment) == 17


@pytest.mark.parametrize(
    ("capability", "size", "waits"), [("LITERAL+", 9000, False), ("LITERAL-", 4000, False), ("LITERAL-", 4097, True), ("X", 10, True)]
)
def test_a_message_is_sent_at_once_where_the_server_allows_it(capability: str, size: int, waits: bool) -> None:
    first = (rf"\{{{size}\}}\r", b"+ go\r\n") if waits else (rf"\{{{size}\+\}}\r", b"")
    with ScriptedServer(*logged_in(capability), first, ("^x+\r", b"M2 OK\r\n")) as server, mailbox_at(server) as mailbox:
        assert mailbox.append(INBOX, b"x" * size) is None


def test_a_refused_append_is_named_and_sends_no_message() -> None:
    with (
        ScriptedServer(*logged_in(), ("APPEND", b"%t NO [TRYCREATE] no\r\n")) as server,
        mailbox_at(server) as mailbox,
        pytest.raises(FolderMissing),
    ):
        mailbox.append(TRASH, b"secret body")
    assert b"secret body" not in b"".join(server.lines)


def test_a_message_over_the_announced_limit_is_not_sent() -> None:
    with ScriptedServer(*logged_in("APPENDLIMIT=10", "LITERAL+")) as server, mailbox_at(server) as mailbox, pytest.raises(MessageRejected):
        mailbox.append(TRASH, b"x" * 11)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"%t NO [OVERQUOTA] Quota exceeded (mailbox for user is full)\r\n", MailboxFull),  # Dovecot
        (b"%t NO [OVERQUOTA] Over quota\r\n", MailboxFull),  # Cyrus
        (b"%t NO [OVERQUOTA] Account exceeded command or bandwidth limits. (Failure)\r\n", ServerThrottled),  # Gmail
    ],
)
def test_a_mailbox_without_room_is_no_server_that_wants_a_pause(answer: bytes, kind: type[MailroomError]) -> None:
    with ScriptedServer(*logged_in("LITERAL+"), ("APPEND", answer)) as server, mailbox_at(server) as mailbox, pytest.raises(kind):
        mailbox.append(TRASH, b"x")
    with ScriptedServer(*logged_in("MOVE"), ("UID MOVE", answer)) as server, mailbox_at(server) as mailbox, pytest.raises(kind):
        mailbox.move([1], TRASH)


def test_a_server_that_asks_for_more_and_more_is_left() -> None:
    with ScriptedServer(*logged_in(), ("APPEND", b"+ a\r\n"), ("^x", b"+ b\r\n")) as server, mailbox_at(server) as mailbox:
        with pytest.raises(MailboxProtocolError, match="more than there is"):
            mailbox.append(TRASH, b"x")
        assert not mailbox._connection.is_open


def test_a_message_id_is_searched_for_and_compared() -> None:
    header = b"BODY[HEADER.FIELDS (Message-Id)] {%d}\r\n%b)\r\n"
    near, same = b"Message-ID: <xa@b>\r\n\r\n", b"Message-Id:\r\n <a@b>\r\n\r\n"
    fetched = b"* 1 FETCH (UID 4 " + header % (len(near), near) + b"* 2 FETCH (UID 6 " + header % (len(same), same) + b"%t OK\r\n"
    steps = [('UID SEARCH HEADER Message-ID "<a@b>"', b"* SEARCH 6 4\r\n%t OK\r\n"), ("UID FETCH 4,6 ", fetched)]
    with ScriptedServer(*logged_in(), *steps) as server, mailbox_at(server) as mailbox:
        assert mailbox.find_message_id("<a@b>") == [6]
        assert mailbox.find_message_id("<a@b>\r\nM9 DELETE INBOX") == mailbox.find_message_id("<>") == mailbox.find_message_id("") == []


def test_a_message_id_in_another_script_goes_as_a_literal() -> None:
    steps = [(r"SEARCH CHARSET UTF-8 HEADER Message-ID \{6\}\r", b"+ go\r\n"), ("^<", b"M2 OK\r\n")]
    with ScriptedServer(*logged_in(), *steps) as server, mailbox_at(server) as mailbox:
        assert mailbox.find_message_id("<ä@b>") == []


def test_a_quote_in_a_message_id_stays_inside_the_string() -> None:
    with ScriptedServer(*logged_in(), (r'Message-ID "<a\\"b\\\\>"\r', b"* SEARCH\r\n%t OK\r\n")) as server, mailbox_at(server) as mailbox:
        assert mailbox.find_message_id('<a"b\\>') == []


def test_parts_are_fetched_on_demand_with_their_headers() -> None:
    steps = [
        (r"UID FETCH 5:5 \(UID BODY.PEEK\[\]\)", b"* 1 FETCH (UID 5 BODY[] {3}\r\nall)\r\n%t OK\r\n"),
        (r"BODY.PEEK\[2.1\]\)", b'* 1 FETCH (UID 5 BODY[2.1] "YWI=")\r\n%t OK\r\n'),
        (r"BODY.PEEK\[2.1.MIME\]\)", b"* 1 FETCH (UID 5 BODY[2.1.MIME] {4}\r\nA: b)\r\n%t OK\r\n"),
        ("FETCH 6:6", b"* 1 FETCH (UID 5 BODY[] {3}\r\nall)\r\n%t OK\r\n"),
        ("BODY.PEEK.9", b"* 1 FETCH (UID 5 BODY[9] NIL)\r\n%t OK\r\n"),
    ]
    with ScriptedServer(*logged_in(), *steps) as server, mailbox_at(server) as mailbox:
        assert mailbox.fetch_raw(5) == b"all"
        assert (mailbox.fetch_part(5, "2.1"), mailbox.fetch_part_header(5, "2.1")) == (b"YWI=", b"A: b")
        assert (mailbox.fetch_raw(6), mailbox.fetch_part(5, "9")) == (None, None)
        for part in ("", "0", "1]", "1.", "HEADER", "1\r\nM9 X"):
            with pytest.raises(InvalidInputError):
                mailbox.fetch_part(5, part)


def test_an_interrupted_change_is_transient() -> None:
    with ScriptedServer(*logged_in("MOVE"), SELECT, ("UID MOVE", b"* BYE later\r\n")) as server, mailbox_at(server) as mailbox:
        mailbox.select(INBOX)
        with pytest.raises(ServerUnavailable):
            mailbox.move([1], TRASH)


# -- syntax -------------------------------------------------------------------------------------------------------------------


def test_uids_become_ranges_in_lines_every_server_takes() -> None:
    assert [text for text, _ in uid_sets([9, 1, 2, 3, 2, 7])] == [b"1:3,7,9"]
    assert list(uid_sets([])) == []
    sets = list(uid_sets(range(1, 100_000, 2)))
    assert all(len(text) <= 7500 for text, _ in sets)
    assert [uid for _, uids in sets for uid in uids] == list(range(1, 100_000, 2))


@pytest.mark.parametrize("code", [b"7 1:4294967295 1:4294967295", b"7 1:3 5:6", b"7 8 9", b"7 x y", b"7"])
def test_a_copyuid_that_does_not_add_up_tells_nothing(code: bytes) -> None:
    assert not copied_uids([Response(b"M1 OK [COPYUID " + code + b"] done")], [1, 2, 3])


def test_dates_and_flags_are_written_as_the_protocol_wants_them() -> None:
    assert date_time(datetime(2024, 12, 9, 8, 7, 6, tzinfo=UTC)) == b'"09-Dec-2024 08:07:06 +0000"'
    assert flag_list({"\\Seen", "$MDNSent", "ü", "", "\\recent", "a b", "x\r\n"}) == b"($MDNSent \\Seen)"


# -- the fake behaves alike ---------------------------------------------------------------------------------------------------


def test_the_fake_changes_as_the_real_one() -> None:
    mailbox = FakeMailbox()
    mailbox.add_folder("Trash")
    first = mailbox.append(INBOX, b"Message-ID: <1@x>\r\n\r\none", {"\\Seen"})
    second, third = (mailbox.append(b"Message-ID: <%d@x>\r\n\r\nbody" % number) for number in (2, 3))
    with mailbox:
        mailbox.select(INBOX)
        assert mailbox.move([first, 99], TRASH) == {first: 1}
        mailbox.store_flags([second], {"\\Flagged"}, {"\\Seen"})
        mailbox.expunge([third, 99])
        assert mailbox.flags(1, 9) == {second: {"\\Flagged"}}
        mailbox.select(TRASH)
        assert mailbox.find_message_id("<1@x>") == [1]
        assert (mailbox.fetch_raw(1), mailbox.fetch_raw(2)) == (b"Message-ID: <1@x>\r\n\r\none", None)
        assert (mailbox.fetch_part(1, "1"), mailbox.fetch_part(1, "2")) == (b"one", None)
        with pytest.raises(FolderMissing):
            mailbox.append(RemoteFolder("No", "No"), b"x")


def test_the_fake_without_uidplus_leaves_messages_marked() -> None:
    mailbox = FakeMailbox(uidplus=False)
    mailbox.add_folder("Trash")
    uid = mailbox.append(b"x: y\r\n\r\nz")
    mailbox.select(INBOX)
    assert mailbox.move([uid], TRASH) == {uid: None}
    assert mailbox.flags(1, 9) == {uid: {"\\Deleted"}}
    with pytest.raises(MailboxProtocolError):
        mailbox.expunge([uid])
