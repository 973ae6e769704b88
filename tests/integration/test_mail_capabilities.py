"""Each thing a server may or may not have, on and off against a real Dovecot: the way is another, what ends up stored is the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

import pytest

from mail.errors import FolderMissing, MailboxFull, MailboxProtocolError
from mail.folder_names import RemoteFolder
from mail.imap import ImapMailbox
from mail.imap_connection import ImapConnection, Pending
from tests.integration.mail_account import Account, message
from tests.servers.dovecot import FULL_FOLDER, Dovecot

pytestmark = pytest.mark.integration

INBOX, TRASH, SENT = (RemoteFolder(name, name, "/") for name in ("INBOX", "Trash", "Sent"))

EVERYTHING = "QRESYNC CONDSTORE ENABLE ESEARCH LIST-STATUS LIST-EXTENDED SPECIAL-USE MOVE UIDPLUS LITERAL+ SASL-IR AUTH=PLAIN"
PATHS = {
    "all": "",
    "condstore": "QRESYNC",
    "condstore and search": "QRESYNC ESEARCH",
    "not enabled": "ENABLE",
    "compared": "QRESYNC CONDSTORE",
    "status": "LIST-STATUS",
    "plain list": "LIST-STATUS LIST-EXTENDED SPECIAL-USE",
    "login": "AUTH=PLAIN",
    "no initial response": "SASL-IR",
    "nothing": EVERYTHING,
}


@pytest.fixture
def account(dovecot: Dovecot) -> Account:
    return Account(dovecot)


@contextmanager
def commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is sent after the login."""
    sent: list[str] = []
    send = ImapConnection.send

    def noting(self: ImapConnection, command: bytes) -> Pending:
        sent.append(command.split(b"\r\n")[0].decode())
        return send(self, command)

    with monkeypatch.context() as patch:
        patch.setattr(ImapConnection, "send", noting)
        yield sent


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "deflate"])
@pytest.mark.parametrize("path", PATHS)
def test_every_path_ends_with_the_same_mail_stored(account: Account, path: str, compress: bool) -> None:
    endpoint = account.endpoint(without=frozenset(PATHS[path].split()), compress=compress)
    store = account.store
    account.deliver(*range(1, 8))
    account.deliver(1, folder="Sent", flags="S")
    account.sync(endpoint, batch_size=3)
    assert sorted(store.flags["INBOX"]) == [1, 2, 3, 4, 5, 6, 7]
    rows = dict(store.rows["INBOX"])

    account.change("2", "+FLAGS", "(\\Flagged $Work)")
    account.change("3:4", "+FLAGS", "(\\Deleted)")
    account.deliver(8, 9)
    batches = account.sync(endpoint)
    assert [each.uid for batch in batches for each in batch.new] == [8, 9]
    assert [uid for batch in batches for uid in batch.gone] == [3, 4]
    expected = {1: set(), 2: {"\\Flagged", "$Work"}, 5: set(), 6: set(), 7: set(), 8: set(), 9: set()}
    assert store.flags["INBOX"] == expected

    account.dovecot.doveadm("mailbox", "update", "-u", account.user, "--uid-validity", "777777", "INBOX")
    account.change("5", "+FLAGS", "(\\Seen)")
    account.deliver(10)
    batches = [batch for batch in account.sync(endpoint) if batch.folder.name == "INBOX"]
    assert [batch.is_reset for batch in batches] == [True, False]
    assert [each.uid for batch in batches for each in batch.new] == [10]
    assert store.flags["INBOX"] == expected | {5: {"\\Seen"}, 10: set()}
    assert {uid: row for uid, row in store.rows["INBOX"].items() if uid < 8} == {uid: rows[uid] for uid in (1, 2, 5, 6, 7)}
    assert store.bodies["INBOX", 10] == message(10)
    again = account.sync(endpoint)
    assert not any(batch.new or batch.changed or batch.gone or batch.is_reset for batch in again)
    if "CONDSTORE" not in endpoint.without:
        assert again == []


def test_an_unchanged_account_costs_one_command(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    account.deliver(1, 2)
    account.sync()
    with commands(monkeypatch) as sent:
        assert account.sync() == []
    assert [command.split()[0] for command in sent] == ["AUTHENTICATE", "LIST"]


def test_what_changed_and_vanished_comes_with_the_opening(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    account.deliver(*range(1, 30))
    account.sync()
    account.change("4,9:12", "+FLAGS", "(\\Deleted)")
    account.change("20", "+FLAGS", "(\\Seen)")
    with commands(monkeypatch) as sent:
        [batch] = account.sync()
    assert (batch.gone, [each.uid for each in batch.changed]) == ([4, 9, 10, 11, 12], [20])
    assert [command.split()[0] for command in sent] == ["AUTHENTICATE", "LIST", "ENABLE", "EXAMINE"]


def test_a_change_number_from_long_ago_is_harmless(account: Account) -> None:
    account.deliver(*range(1, 6))
    account.sync()
    account.change("2", "+FLAGS", "(\\Deleted)")
    account.change("3", "+FLAGS", "(\\Seen)")
    with ImapMailbox(account.endpoint()) as mailbox:
        state = mailbox.examine(INBOX)
        _, told = mailbox.examine_since(INBOX, state.uid_validity, 1, 5)
        assert told is not None
        assert told.flags[3] == {"\\Seen"}
        assert 2 in told.vanished
        assert 3 not in told.vanished
        assert mailbox.examine_since(INBOX, state.uid_validity + 1, 1, 5)[1] is None
        assert mailbox.examine_since(INBOX, state.uid_validity, 2**62, 5)[1] is not None


# -- changing -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "deflate"])
@pytest.mark.parametrize("without", ["", "MOVE", "MOVE UIDPLUS"])
def test_messages_are_moved_and_stay_the_same_mail(account: Account, without: str, compress: bool) -> None:
    account.deliver(*range(1, 6))
    account.sync()
    account.change("5", "+FLAGS.SILENT", "()")
    with ImapMailbox(account.endpoint(without=frozenset(without.split()), compress=compress)) as mailbox:
        mailbox.select(INBOX)
        mailbox.store_flags([5], {"\\Deleted"})  # somebody else's: it must survive
        moved = mailbox.move([2, 3, 77], TRASH)
        again = mailbox.move([77], TRASH)
        flags = mailbox.flags(1, 9)
        mailbox.examine(TRASH)
        assert [mailbox.find_message_id(f"<{number}@x.test>") for number in (2, 3, 4)] == [[1], [2], []]
    assert 5 in flags
    assert moved == {2: 1, 3: 2}  # this server tells it even where UIDPLUS is not used
    if "UIDPLUS" in without:
        assert flags[2] == flags[3] == {"\\Deleted"}
    else:
        assert set(flags) == {1, 4, 5}
    assert set(again) <= {77}


def test_a_move_to_nowhere_leaves_everything(account: Account) -> None:
    account.deliver(1)
    for without in ("", "MOVE"):
        with ImapMailbox(account.endpoint(without=frozenset(without.split()))) as mailbox:
            mailbox.select(INBOX)
            with pytest.raises(FolderMissing):
                mailbox.move([1], RemoteFolder("Nowhere", "Nowhere"))
            assert mailbox.flags(1, 9) == {1: frozenset()}


def test_only_the_named_messages_are_expunged(account: Account) -> None:
    account.deliver(1, 2, 3)
    with ImapMailbox(account.endpoint()) as mailbox:
        mailbox.select(INBOX)
        mailbox.store_flags([1], {"\\Deleted", "$Label1"})
        mailbox.expunge([2, 50])
        mailbox.expunge([2])
        assert mailbox.flags(1, 9) == {1: {"\\Deleted", "$Label1"}, 3: frozenset()}
        mailbox.store_flags([1], {"\\Seen"}, {"\\Deleted"})
        assert mailbox.flags(1, 1) == {1: {"\\Seen", "$Label1"}}
    with ImapMailbox(account.endpoint(without=frozenset({"UIDPLUS"}))) as mailbox:
        mailbox.select(INBOX)
        with pytest.raises(MailboxProtocolError):
            mailbox.expunge([3])
        assert mailbox.flags(3, 3) == {3: frozenset()}


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "deflate"])
@pytest.mark.parametrize("without", ["", "LITERAL+"])
def test_a_message_is_appended_byte_for_byte(account: Account, without: str, compress: bool) -> None:
    moment = datetime(2023, 5, 6, 7, 8, 9, tzinfo=UTC)
    raw = message(1, 200_000)
    with ImapMailbox(account.endpoint(without=frozenset(without.split()), compress=compress)) as mailbox:
        assert mailbox.append(SENT, raw, {"\\Seen"}, moment) == 1
        with pytest.raises(FolderMissing):
            mailbox.append(RemoteFolder("Nowhere", "Nowhere"), raw)
        mailbox.examine(SENT)
        assert mailbox.fetch_raw(1) == raw
        [identity] = mailbox.identities(1, 9)
        assert (identity.message_id, identity.received_at, identity.size) == ("<1@x.test>", moment, len(raw))
        assert mailbox.flags(1, 1) == {1: {"\\Seen"}}
        assert mailbox.find_message_id("<1@x.test>") == [1]
        assert mailbox.find_message_id("@x.test") == mailbox.find_message_id('<"ü\\">') == []


@pytest.mark.parametrize("without", ["MOVE", "MOVE LITERAL+"])
def test_a_full_mailbox_refuses_and_nothing_is_lost(account: Account, without: str) -> None:
    account.deliver(1, 2, 3)
    account.dovecot.doveadm("mailbox", "create", "-u", account.user, FULL_FOLDER)
    full = RemoteFolder(FULL_FOLDER, FULL_FOLDER, "/")
    with ImapMailbox(account.endpoint(without=frozenset(without.split()))) as mailbox:
        mailbox.select(INBOX)
        for fill in (partial(mailbox.append, full, message(4)), partial(mailbox.move, [1], full)):  # a move by COPY needs room for both
            with pytest.raises(MailboxFull):
                fill()
        assert mailbox.flags(1, 9) == {1: frozenset(), 2: frozenset(), 3: frozenset()}
        mailbox.expunge([3])
        assert mailbox.append(full, message(4)) == 1


def test_parts_are_fetched_on_demand(account: Account) -> None:
    raw = (
        b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n'
        b"--b\r\nContent-Type: application/x; name=a\r\nContent-Transfer-Encoding: base64\r\n\r\nAAEC\r\n--b--\r\n"
    )
    account.dovecot.deliver(account.user, raw)
    with ImapMailbox(account.endpoint()) as mailbox:
        mailbox.examine(INBOX)
        assert (mailbox.fetch_part(1, "1"), mailbox.fetch_part(1, "2")) == (b"hello", b"AAEC")
        assert b"base64" in (mailbox.fetch_part_header(1, "2") or b"")
        assert not mailbox.fetch_part(1, "3")
        assert (mailbox.fetch_part(9, "1"), mailbox.fetch_raw(9)) == (None, None)


def test_a_moved_set_of_thousands_fits_the_lines_of_the_server(account: Account) -> None:
    account.deliver(*range(3000))
    with ImapMailbox(account.endpoint()) as mailbox:
        mailbox.select(INBOX)
        moved = mailbox.move(range(1, 3000, 2), TRASH)
        assert sorted(moved) == list(range(1, 3000, 2))
        assert set(mailbox.flags(1, 4000)) == set(range(2, 3001, 2))
