"""What the IMAP reader makes of answers that real servers give on bad days, and of those only broken or hostile ones give."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from core.errors import MailroomError
from mail import imap as imap_module
from mail import imap_connection, imap_reader, imap_syntax
from mail.accounts import Endpoint, Secret, Security
from mail.errors import (
    AuthenticationRefused,
    ConnectionFailed,
    EncryptionRequired,
    FolderMissing,
    HostNotAllowed,
    MailboxProtocolError,
    ServerThrottled,
    ServerUnavailable,
)
from mail.folder_names import RemoteFolder, decode_name, encode_name, folder_from_list, with_roles_by_name
from mail.imap_syntax import Response, fetch_items, flags_of, internal_date, number, quoted, search_result, uid_ranges, values
from mail.mailbox import FolderState, Span
from tests.unit.imap_sessions import GREETING, INBOX, error_of, mailbox_at
from tests.unit.scripted_server import HANG_UP, ScriptedServer

LOGIN = (" AUTHENTICATE PLAIN ", b"%t OK [CAPABILITY IMAP4rev1] in\r\n")


def test_a_login_sends_user_and_password_once_and_reads_the_new_capabilities() -> None:
    with ScriptedServer(GREETING, (" AUTH", b"%t OK [CAPABILITY IMAP4rev1 CONDSTORE] in\r\n")) as server, mailbox_at(server) as mailbox:
        assert mailbox.has_condstore
    assert base64.b64decode(server.lines[0].split()[-1]) == b"\0jo\0hunter2"


def test_without_initial_response_the_password_waits_for_the_server() -> None:
    steps = [("", b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi\r\n"), ("AUTHENTICATE PLAIN\r\n", b"+ \r\n"), ("^AGpv", b"M1 OK in\r\n")]
    with ScriptedServer(*steps, ("CAPABILITY", b"* CAPABILITY IMAP4rev1 ESEARCH\r\n%t OK\r\n")) as server, mailbox_at(server) as mailbox:
        assert "ESEARCH" in mailbox._connection.capabilities


def test_a_server_that_only_knows_login_gets_quoted_strings() -> None:
    with (
        ScriptedServer(
            ("", b"* OK hi\r\n"), ("CAPAB", b"* CAPABILITY IMAP4rev1\r\n%t OK\r\n"), (r'LOGIN "jo" "a\\"b\\\\c"', LOGIN[1])
        ) as server,
        mailbox_at(server, secret=Secret('a"b\\c')),
    ):
        pass


def test_a_password_in_another_script_goes_as_a_literal() -> None:
    steps = [
        ("", b"* OK [CAPABILITY IMAP4rev1] hi\r\n"),
        (r"LOGIN \{2\}", b"+ go\r\n"),
        (r"^jo \{4\}", b"+ go\r\n"),
        ("^p\xc3\xa4s".encode("latin-1").decode(), LOGIN[1]),
    ]
    with ScriptedServer(*steps[:3], ("^p", b"M1 OK [CAPABILITY IMAP4rev1] in\r\n")) as server, mailbox_at(server, secret=Secret("päs")):
        pass


def test_a_refused_continuation_is_a_refused_login() -> None:
    steps = [("", b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi\r\n"), ("AUTHENTICATE", b"%t NO no\r\n")]
    assert isinstance(error_of(*steps), AuthenticationRefused)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"%t NO [AUTHENTICATIONFAILED] jo@x.org: wrong hunter2", AuthenticationRefused),
        (b"%t NO Invalid credentials", AuthenticationRefused),
        (b"%t NO [AUTHENTICATIONFAILED] too many failures, try again later", AuthenticationRefused),
        (b"%t NO [UNAVAILABLE] try later", ServerUnavailable),
        (b"%t NO [INUSE] locked", ServerUnavailable),
        (b"%t NO [LIMIT] too many", ServerThrottled),
        (b"%t NO Too many simultaneous connections. (Failure)", ServerThrottled),
        (b"%t BAD User is authenticated but not connected.", ServerUnavailable),
        (b"* BYE Server shutting down.", ServerUnavailable),
        (HANG_UP, ConnectionFailed),
    ],
)
def test_a_login_that_fails_is_named_by_what_it_means(answer: bytes, kind: type[MailroomError]) -> None:
    assert type(error_of(GREETING, (" AUTH", answer + b"\r\n"))) is kind


def test_a_throttled_login_says_when_to_come_back() -> None:
    error = error_of(GREETING, (" AUTH", b"%t NO Request is throttled. Suggested Backoff Time: 90000 milliseconds\r\n"))
    assert isinstance(error, ServerThrottled)
    assert error.retry_after == 90


@pytest.mark.parametrize(
    ("greeting", "kind"),
    [
        (b"* BYE Too many connections\r\n", ServerThrottled),
        (b"220 mail.x.org ESMTP\r\n", MailboxProtocolError),
        (b"\r\n", MailboxProtocolError),
        (HANG_UP, ConnectionFailed),
    ],
)
def test_a_strange_greeting_is_no_login(greeting: bytes, kind: type[MailroomError]) -> None:
    assert type(error_of(("", greeting))) is kind


def test_no_password_is_sent_where_it_is_disabled_or_missing() -> None:
    assert isinstance(error_of(("", b"* OK [CAPABILITY IMAP4rev1 LOGINDISABLED] hi\r\n")), EncryptionRequired)
    assert isinstance(error_of(GREETING, secret=None), AuthenticationRefused)


def test_no_password_crosses_a_public_network_in_clear_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mail.tls.is_private", lambda _ip: False)
    assert isinstance(error_of(GREETING), EncryptionRequired)


def test_a_private_address_is_refused_before_anything_is_sent() -> None:
    assert isinstance(error_of(GREETING, allow_private=False), HostNotAllowed)


def test_starttls_is_never_skipped() -> None:
    assert isinstance(error_of(("", b"* OK [CAPABILITY IMAP4rev1] hi\r\n"), security=Security.STARTTLS), EncryptionRequired)
    preauth = ("", b"* PREAUTH [CAPABILITY IMAP4rev1 STARTTLS] in\r\n")
    assert isinstance(error_of(preauth, security=Security.STARTTLS), EncryptionRequired)


def test_a_connection_that_is_logged_in_from_the_start_needs_no_password() -> None:
    steps = [("", b"* PREAUTH hi\r\n"), ("CAPABILITY", b"* CAPABILITY IMAP4rev1\r\n%t OK\r\n")]
    with ScriptedServer(*steps) as server, mailbox_at(server, secret=None):
        pass


def test_a_lost_mailbox_says_so_and_stays_closed() -> None:
    with ScriptedServer(GREETING, LOGIN, ("LIST", HANG_UP)) as server, mailbox_at(server) as mailbox:
        for _ in range(2):
            with pytest.raises(ConnectionFailed):
                mailbox.list_folders()


def test_a_server_that_does_not_answer_ends_in_a_time_out() -> None:
    silent = ScriptedServer(GREETING, LOGIN, ("LIST", b"* LI"))
    with silent as server, mailbox_at(server, timeout=0.3) as mailbox, pytest.raises(ConnectionFailed, match=r"not answer within 0.3 s"):
        mailbox.list_folders()


def test_folders_of_any_spelling_are_listed() -> None:
    answer = (
        b'* LIST (\\HasNoChildren) "/" INBOX\r\n* LIST (\\HasNoChildren) "/" Inbox\r\n'
        b'* LIST (\\Noselect) NIL "a \\"b\\""\r\n* LIST () "." {12}\r\nEntw&APw-rfe\r\n* LIST () "/" NIL\r\n'
        b'* LIST broken\r\n* 4 EXISTS\r\n* LIST () "/" (list)\r\n'
        b'* LIST (\\Sent) "/" Gesendet\r\n* LIST () "/" caf\xe9\r\n%t OK\r\n'
    )
    with ScriptedServer(GREETING, LOGIN, ('LIST "" "[*]"\r', answer)) as server, mailbox_at(server) as mailbox:
        folders = mailbox.list_folders()
    assert [folder.name for folder in folders] == ["INBOX", 'a "b"', "Entwürfe", "NIL", "Gesendet", "café"]
    assert [folder.selectable for folder in folders] == [True, False, True, True, True, False]
    assert [folder.role for folder in folders] == ["inbox", None, "drafts", None, "sent", None]


def test_counters_belong_to_the_folder_they_name() -> None:
    first, second = (RemoteFolder(name, name) for name in ("one", "two"))
    gone = RemoteFolder("gone", "gone")
    status = b"* STATUS two (MESSAGES 2 UIDNEXT 3 UIDVALIDITY 4)\r\n"
    status += b'* STATUS "one" (MESSAGES 1 UIDNEXT 2 UIDVALIDITY 3)\r\n* STATUS bad (X 1)\r\n%t OK\r\n'
    steps = [('STATUS "one"', status), ('STATUS "gone"', b"%t NO [NONEXISTENT] gone\r\n"), ('STATUS "two"', b"* STATUS bad\r\n%t OK\r\n")]
    with ScriptedServer(GREETING, LOGIN, *steps) as server, mailbox_at(server) as mailbox:
        states = mailbox.states([first, gone, second, RemoteFolder("x\n", "x\n"), RemoteFolder("top", "top", selectable=False)])
    assert states == {"one": FolderState(3, 2, 1, None), "two": FolderState(4, 3, 2, None)}


def test_a_connection_lost_while_asking_for_counters_is_not_taken_for_a_refusal() -> None:
    with (
        ScriptedServer(GREETING, LOGIN, ("STATUS", b"* BYE\r\n")) as server,
        mailbox_at(server) as mailbox,
        pytest.raises(ServerUnavailable),
    ):
        mailbox.states([INBOX])


def test_change_numbers_are_switched_on_before_the_folder_is_opened() -> None:
    login = (" AUTH", b"%t OK [CAPABILITY IMAP4rev1 CONDSTORE ENABLE] in\r\n")
    opened = b"* 0 EXISTS\r\n* OK [UIDVALIDITY 1]\r\n* OK [UIDNEXT 1]\r\n* OK [HIGHESTMODSEQ 9223372036854775807]\r\n%t OK\r\n"
    steps = [("ENABLE CONDSTORE", b"* ENABLED\r\n%t OK\r\n"), (r'EXAMINE "INBOX" \(CONDSTORE\)', opened), ("EXAMINE", opened)]
    with ScriptedServer(GREETING, login, *steps) as server, mailbox_at(server) as mailbox:
        assert mailbox.examine(INBOX) == FolderState(1, 1, 0, 9223372036854775807)
        assert mailbox.examine(INBOX).messages == 0


def test_a_folder_without_change_numbers_has_none() -> None:
    steps = [("EXAMINE", b"* 0 EXISTS\r\n* OK [UIDVALIDITY 1]\r\n* OK [UIDNEXT 1]\r\n* OK [NOMODSEQ] none\r\n%t OK\r\n")]
    with ScriptedServer(GREETING, LOGIN, *steps) as server, mailbox_at(server) as mailbox:
        assert mailbox.examine(INBOX).highest_modseq is None


def test_a_server_that_hides_the_next_uid_is_asked_for_the_last_message() -> None:
    steps = [("EXAMINE", b"* 3 EXISTS\r\n* OK [UIDVALIDITY 7]\r\n%t OK\r\n"), (r"UID FETCH \* \(UID\)", b"* 3 FETCH (UID 41)\r\n%t OK\r\n")]
    with ScriptedServer(GREETING, LOGIN, *steps) as server, mailbox_at(server) as mailbox:
        assert mailbox.examine(INBOX).uid_next == 42


def test_a_folder_without_lasting_numbers_cannot_be_synced() -> None:
    forgetful = ScriptedServer(GREETING, LOGIN, ("EXAMINE", b"* OK [UIDNOTSTICKY] x\r\n%t OK\r\n"))
    with forgetful as server, mailbox_at(server) as mailbox, pytest.raises(MailboxProtocolError):
        mailbox.examine(INBOX)


def test_a_folder_that_cannot_be_opened_is_missing() -> None:
    with ScriptedServer(GREETING, LOGIN, ("EXAMINE", b"%t NO [NONEXISTENT] no\r\n")) as server, mailbox_at(server) as mailbox:
        with pytest.raises(FolderMissing):
            mailbox.examine(INBOX)
        with pytest.raises(FolderMissing):
            mailbox.examine(RemoteFolder("a\nb", "a\nb"))


def test_news_about_the_mailbox_do_not_disturb_an_answer() -> None:
    answer = (
        b"* 4 EXISTS\r\n* 2 FETCH (FLAGS (\\Seen))\r\n* 1 FETCH (UID 3 RFC822.SIZE 10)\r\n* 3 FETCH (UID 8 RFC822.SIZE 20)\r\n%t OK\r\n"
    )
    with ScriptedServer(GREETING, LOGIN, ("UID FETCH 4:8", answer)) as server, mailbox_at(server) as mailbox:
        assert mailbox.sizes(4, 8) == [(8, 20)]
        assert mailbox.sizes(9, 8) == []


def test_flags_and_changes_are_read_by_uid() -> None:
    answer = b"* 1 FETCH (UID 3 FLAGS (\\Seen \\Recent $Label) MODSEQ (12))\r\n* 2 FETCH (UID 4)\r\n%t OK\r\n"
    steps = [(r"UID FETCH 1:8 \(UID FLAGS\)\r", answer), (r"FETCH 1:8 \(UID FLAGS\) \(CHANGEDSINCE 5\)", answer)]
    with ScriptedServer(GREETING, LOGIN, *steps) as server, mailbox_at(server) as mailbox:
        assert mailbox.flags(1, 8) == {3: {"\\Seen", "$Label"}} == mailbox.changed_since(5, 8)


def test_what_exists_is_searched_for_with_what_the_server_has(monkeypatch: pytest.MonkeyPatch) -> None:
    login = (" AUTH", b"%t OK [CAPABILITY IMAP4rev1 ESEARCH] in\r\n")
    with (
        ScriptedServer(GREETING, login, ("RETURN", b'* ESEARCH (TAG "M2") UID ALL 1:3,9\r\n%t OK\r\n')) as server,
        mailbox_at(server) as box,
    ):
        found = box.present(9)
    assert [uid for uid in range(1, 10) if uid in found] == [1, 2, 3, 9]
    steps = [
        ("UID SEARCH UID 1:9", b"* SEARCH 1 3\r\n%t OK\r\n"),
        ("UID SEARCH", b"%t OK\r\n"),
        ("UID FETCH 1:9 .UID.", b"* 1 FETCH (UID 5)\r\n%t OK\r\n"),
    ]
    with ScriptedServer(GREETING, LOGIN, *steps) as server, mailbox_at(server) as box:
        found = box.present(9)
        assert [uid for uid in range(1, 10) if uid in found] == [1, 3]
        assert 1 not in box.present(9)
        monkeypatch.setattr(imap_module, "_SEARCH_LIMIT", -1)
        assert box.present(9) == {5}


def test_two_fetches_may_be_answered_together_and_in_any_order() -> None:
    both = b"* 2 FETCH (BODY[] {3}\r\ntwo UID 2 FLAGS ())\r\n"
    both += b"* 1 FETCH (UID 1 FLAGS (\\Seen) BODY[] {3}\r\none)\r\n* 2 FETCH (UID 2 FLAGS (\\Seen))\r\n"
    steps = [
        ("FETCH 1:1 ", both + b"%t OK\r\n"),
        ("FETCH 2:2 ", b"%t OK\r\n"),
        ("FETCH 3:3 .*HEADER", b"* 3 FETCH (UID 3 BODY[HEADER] {5}\r\nA: b\n)\r\n%t OK\r\n"),
    ]
    with ScriptedServer(GREETING, LOGIN, *steps) as server, mailbox_at(server) as mailbox:
        fetched = list(mailbox.fetch([Span(1, 1), Span(2, 2), Span(3, 3, header_only=True)]))
    assert [[(each.uid, each.raw) for each in messages] for messages in fetched] == [[(1, b"one")], [(2, b"two")], [(3, b"A: b\n")]]


def test_a_message_without_a_body_is_gone() -> None:
    steps = [("FETCH 1:2", b"* 1 FETCH (UID 1 FLAGS () BODY[] NIL)\r\n* 2 FETCH (UID 2 FLAGS ())\r\n%t OK\r\n")]
    with ScriptedServer(GREETING, LOGIN, *steps) as server, mailbox_at(server) as mailbox:
        [messages] = mailbox.fetch([Span(1, 2)])
    assert [(each.uid, each.raw) for each in messages] == [(1, None), (2, None)]


def test_a_connection_lost_inside_a_message_is_transient() -> None:
    steps = [("FETCH 1:2", b"* 1 FETCH (UID 1 BODY[] {100}\r\nhalf" + HANG_UP)]
    with ScriptedServer(GREETING, LOGIN, *steps) as server, mailbox_at(server) as mailbox, pytest.raises(ConnectionFailed):
        list(mailbox.fetch([Span(1, 2)]))


def test_a_fetch_given_up_half_way_closes_the_connection() -> None:
    steps = [("FETCH 1:1", b"* 1 FETCH (UID 1 BODY[] {1}\r\na)\r\n%t OK\r\n"), ("FETCH 2:2", b"")]
    with ScriptedServer(GREETING, LOGIN, *steps) as server, mailbox_at(server) as mailbox:
        fetching = mailbox.fetch([Span(1, 1), Span(2, 2)])
        next(fetching)
        with pytest.raises(MailboxProtocolError):
            mailbox.list_folders()


def test_answers_over_a_bound_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imap_reader, "MAX_LINE", 200)
    monkeypatch.setattr(imap_reader, "MAX_LITERAL", 10)
    monkeypatch.setattr(imap_reader, "MAX_LITERALS", 2)
    for answer in (b"* " + b"x" * 300 + b"\r\n", b"* LIST {11}\r\n", b"* LIST {1}\r\na {1}\r\nb {1}\r\nc\r\n"):
        with (
            ScriptedServer(GREETING, LOGIN, ("LIST", answer)) as server,
            mailbox_at(server) as mailbox,
            pytest.raises(MailboxProtocolError),
        ):
            mailbox.list_folders()


def test_a_brace_at_the_end_of_a_status_text_is_text() -> None:
    with ScriptedServer(GREETING, LOGIN, ("LIST", b"* OK see rule {5}\r\n%t OK done {7}\r\n")) as server, mailbox_at(server) as mailbox:
        assert mailbox.list_folders() == []


def test_answers_are_read_in_the_order_of_the_commands() -> None:
    with ScriptedServer(GREETING, LOGIN, ("NOOP", b""), ("NOOP", b"")) as server, mailbox_at(server) as mailbox:
        mailbox._connection.send(b"NOOP")
        second = mailbox._connection.send(b"NOOP")
        with pytest.raises(MailboxProtocolError):
            list(mailbox._connection.finish(second))


# -- syntax -------------------------------------------------------------------------------------------------------------------


def test_values_of_every_form_are_read() -> None:
    line = rb'* 1 FETCH (UID 5 X NIL "NIL" "a \"b\" \\" {3} ~{2} BODY[HEADER.FIELDS (FROM TO)]<0> (a (b)))'
    parsed = values(Response(line, [b"abc", b"\0\1"]))
    assert parsed[3] == [
        b"UID",
        b"5",
        b"X",
        None,
        b"NIL",
        b'a "b" \\',
        b"abc",
        b"\0\1",
        b"BODY[HEADER.FIELDS (FROM TO)]<0>",
        [b"a", [b"b"]],
    ]


@pytest.mark.parametrize("line", [b"", b")", b"((((", b'"', b"* 1 FETCH (UID", b"* 1 FETCH x", b"* 1 FETCH"])
def test_broken_answers_raise_nothing(line: bytes) -> None:
    values(Response(line))
    assert fetch_items(Response(line)).get(b"UID") is None


def test_small_values() -> None:
    assert (number(b"12"), number(b"x"), number(None), number(b"9" * 20)) == (12, None, None, None)
    assert flags_of(b"x") == frozenset()
    assert uid_ranges(b"1:3,7,x,5:y") == [(1, 3), (7, 7)]
    assert quoted('a"b\\') == b'"a\\"b\\\\"'
    assert search_result(Response(b"* LIST x")) is None
    assert 1 not in (search_result(Response(b'* ESEARCH (TAG "a") UID')) or ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"17-Jul-1996 02:44:25 -0700", "1996-07-17T09:44:25+00:00"),
        (b" 1-jan-2024 00:30:60 +0100", "2023-12-31T23:30:59+00:00"),
        (b"31-Feb-2024 00:00:00 +0000", None),
        (b"1-Foo-2024 00:00:00 +0000", None),
        (b"1-Jan-0001 00:00:00 +1400", None),
        (b"", None),
        (None, None),
    ],
)
def test_dates_are_read_in_any_locale(text: bytes | None, expected: str | None) -> None:
    moment = internal_date(text)
    assert (moment.isoformat() if moment else None) == expected


@pytest.mark.parametrize(
    ("raw", "name"), [("Entw&APw-rfe", "Entwürfe"), ("A&-B", "A&B"), ("&ZeVnLIqe-/&U9dP4Q-", "日本語/受信"), ("plain", "plain")]
)
def test_folder_names_are_modified_utf7(raw: str, name: str) -> None:
    assert decode_name(raw) == name
    assert encode_name(name) == raw


@pytest.mark.parametrize("raw", ["a&b", "a&!!-", "&2D0-", "&AA-x&", "&ä-"])
def test_names_that_are_not_well_formed_stay_as_they_are(raw: str) -> None:
    assert decode_name(raw) == raw


def test_roles_by_name_go_to_folders_nobody_else_claims() -> None:
    names = ["INBOX", "INBOX.Sent", "Sent Items", "Spam", "Projects.Trash"]
    folders = [folder_from_list(name.encode(), ".", []) for name in names]
    assert [folder.role for folder in with_roles_by_name(folders)] == ["inbox", "sent", None, "junk", None]
    claimed = [folder_from_list(b"Sent", "/", []), folder_from_list(b"Weg", "/", [r"\Sent"])]
    assert [folder.role for folder in with_roles_by_name(claimed)] == [None, "sent"]


def test_the_logout_does_not_wait_for_a_server_that_is_gone(tmp_path: Path) -> None:
    connection = imap_connection.ImapConnection(Endpoint("127.0.0.1", 1, Security.PLAIN))
    connection.logout()
    assert not connection.is_open


FETCHES = [
    rb'* 12 FETCH (UID 7 FLAGS (\Seen $Label) INTERNALDATE "17-Jul-1996 02:44:25 -0700" RFC822.SIZE 4286 BODY[] {5})',
    b"* 12 FETCH (uid 7 rfc822.size 4286)",
    b"* 12 FETCH (FLAGS () UID 7 EMAILID (M123) X-GM-MSGID 99)",
    b"* 12 FETCH (UID 7 BODY[] NIL FLAGS (NIL a))",
    b"* 12 FETCH (UID 7 FLAGS (a nil b))",
    b'* 12 FETCH (UID 7 BODY[] "" X "a\\"b" FLAGS (nil \\Seen))',
    b"* 12 FETCH (UID 7 FLAGS (a  b))",
    b"* 12 FETCH (UID 7 UID 8 BODY[]<0> {5})",
    b"* 12 FETCH (UID 7 FLAGS ((a)))",
    b"* 12 FETCH (UID 7 BODY[] {5} BODY[HEADER] {5})",
    b"* 12 fetch (UID 7",
    b"* 12 FETCH ()",
]


@pytest.mark.parametrize("line", FETCHES)
def test_the_quick_way_through_a_fetch_reads_what_the_careful_one_reads(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = fetch_items(Response(line, [b"hello"]))
    monkeypatch.setattr(imap_syntax, "_PLAIN_FETCH", re.compile(b"(?!)"))
    assert quick == fetch_items(Response(line, [b"hello"]))
