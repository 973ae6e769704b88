"""The IMAP reader and the sync ladder against a real Dovecot: what is fetched, what is not, and where a crash resumes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import count

import pytest

from mail.accounts import Endpoint, Secret, Security
from mail.errors import AuthenticationRefused, CertificateRefused, ConnectionFailed, FolderMissing, HostNotAllowed, ServerUnavailable
from mail.imap import ImapMailbox
from mail.mailbox import Flags
from mail.sync import FolderCursor, KnownFolder, SyncBatch, list_folders, sync_mailbox
from tests.servers.dovecot import Dovecot

pytestmark = pytest.mark.integration

_users = (f"reader{number}" for number in count())


class Store:
    """What a database would keep: flags by UID, and the cursor, folder by folder."""

    def __init__(self) -> None:
        self.flags: dict[str, dict[int, Flags]] = {}
        self.cursors: dict[str, FolderCursor] = {}
        self.bodies: dict[tuple[str, int], bytes] = {}

    def known(self) -> Mapping[str, KnownFolder]:
        return {name: KnownFolder(name, self.cursors.get(name), partial(dict, flags), len(flags)) for name, flags in self.flags.items()}

    def save_all(self, batches: Iterable[SyncBatch]) -> None:
        for batch in batches:
            self.save(batch)

    def save(self, batch: SyncBatch) -> None:
        flags = self.flags.setdefault(batch.folder.name, {})
        if batch.is_reset:
            flags.clear()
        flags.update({message.uid: message.flags for message in batch.new})
        flags.update({change.uid: change.flags for change in batch.changed if change.uid in flags})
        for uid in batch.gone:
            flags.pop(uid, None)
        self.bodies.update({(batch.folder.name, message.uid): message.raw for message in batch.new})
        self.cursors[batch.folder.name] = batch.cursor


class Account:
    """A user of the server with a store of its own."""

    def __init__(self, dovecot: Dovecot) -> None:
        self.dovecot, self.user, self.password = dovecot, next(_users), 'pass "wörd\\'
        self.store = Store()
        dovecot.add_user(self.user, self.password)

    def endpoint(self, **changes: object) -> Endpoint:
        settings: dict[str, object] = {
            "host": self.dovecot.host, "port": self.dovecot.imap_port, "security": Security.PLAIN, "username": self.user,
            "secret": Secret(self.password), "allow_private": True, "timeout": 10,
        }  # fmt: skip
        return Endpoint(**(settings | changes))  # type: ignore[arg-type]

    def deliver(self, *numbers: int, folder: str = "INBOX", flags: str = "") -> None:
        for number in numbers:
            self.dovecot.deliver(self.user, message(number), folder, flags)

    def sync(self, **options: object) -> list[SyncBatch]:
        with ImapMailbox(self.endpoint()) as mailbox:
            batches = []
            for batch in sync_mailbox(mailbox, self.store.known(), **options):  # type: ignore[arg-type]
                self.store.save(batch)
                batches.append(batch)
            return batches

    def change(self, uid_set: str, command: str, flags: str) -> None:
        with self.dovecot.imap_client(self.user, self.password) as client:
            client.select("INBOX")
            client.uid("STORE", uid_set, command, flags)
            client.expunge()


def message(number: int, size: int = 0) -> bytes:
    return f"Message-ID: <{number}@x.test>\r\nFrom: a@x.test\r\nSubject: number {number}\r\n\r\nbody {number}\r\n{'x' * size}".encode()


@pytest.fixture
def account(dovecot: Dovecot) -> Account:
    return Account(dovecot)


def test_the_first_sync_fetches_every_message_of_every_folder(account: Account) -> None:
    account.deliver(1, 2, 3, flags="S")
    account.deliver(4, folder="Sent")
    account.sync()
    assert account.store.flags["INBOX"] == {1: {"\\Seen"}, 2: {"\\Seen"}, 3: {"\\Seen"}}
    assert account.store.bodies["Sent", 1] == message(4)
    assert set(account.store.cursors) == {"INBOX", "Drafts", "Sent", "Junk", "Trash"}


def test_a_second_sync_without_changes_yields_nothing(account: Account) -> None:
    account.deliver(1, 2)
    account.sync()
    assert account.sync() == []


def test_only_what_changed_is_yielded(account: Account) -> None:
    account.deliver(1, 2, 3, 4)
    account.sync()
    account.deliver(5)
    account.change("2", "+FLAGS", "(\\Flagged)")
    account.change("3", "+FLAGS", "(\\Deleted)")
    batches = account.sync()
    assert [message.uid for batch in batches for message in batch.new] == [5]
    assert [change.uid for batch in batches for change in batch.changed] == [2]
    assert [uid for batch in batches for uid in batch.gone] == [3]
    assert account.store.flags["INBOX"] == {1: set(), 2: {"\\Flagged"}, 4: set(), 5: set()}
    assert account.sync() == []


def test_reading_leaves_messages_unseen(account: Account) -> None:
    account.deliver(1)
    account.sync()
    with account.dovecot.imap_client(account.user, account.password) as client:
        client.select("INBOX", readonly=True)
        assert client.search(None, "SEEN") == ("OK", [b""])


def test_another_uidvalidity_resets_the_folder_once(account: Account) -> None:
    account.deliver(1, 2)
    account.sync()
    account.dovecot.doveadm("mailbox", "update", "-u", account.user, "--uid-validity", "777777", "INBOX")
    batches = account.sync(batch_size=1)
    assert [(batch.is_reset, batch.uid_validity, len(batch.new)) for batch in batches] == [(True, 777777, 1), (False, 777777, 1)]
    assert account.sync() == []


def test_a_full_sync_fetches_everything_again_and_resets_nothing(account: Account) -> None:
    account.deliver(1, 2)
    account.sync()
    account.change("1", "+FLAGS", "(\\Deleted)")
    batches = account.sync(folder="INBOX", full=True)
    assert [(batch.is_reset, [each.uid for each in batch.new], batch.gone) for batch in batches] == [(False, [], [1]), (False, [2], [])]


def test_a_crash_between_batches_resumes_where_the_stored_cursor_stands(account: Account) -> None:
    account.deliver(*range(1, 8))
    with ImapMailbox(account.endpoint()) as mailbox:
        account.store.save(next(sync_mailbox(mailbox, {}, folder="INBOX", batch_size=3)))
    account.change("2", "+FLAGS", "(\\Flagged)")
    batches = account.sync(folder="INBOX", batch_size=3)
    assert [message.uid for batch in batches for message in batch.new] == [4, 5, 6, 7]
    assert account.store.flags["INBOX"][2] == {"\\Flagged"}
    assert account.sync(folder="INBOX") == []


def test_a_connection_lost_while_fetching_keeps_whole_batches_and_resumes(account: Account) -> None:
    for number in range(1, 9):
        account.dovecot.deliver(account.user, message(number, 1_500_000))
    with ImapMailbox(account.endpoint()) as mailbox:
        batches = sync_mailbox(mailbox, account.store.known(), folder="INBOX", batch_size=2)
        account.store.save(next(batches))
        account.dovecot.doveadm("kick", account.user)
        with pytest.raises((ConnectionFailed, ServerUnavailable)):
            account.store.save_all(batches)
    assert 2 <= len(account.store.flags["INBOX"]) < 8
    account.sync(folder="INBOX", batch_size=2)
    assert sorted(account.store.flags["INBOX"]) == list(range(1, 9))


def test_messages_expunged_while_fetching_are_left_out(account: Account) -> None:
    account.deliver(*range(1, 7))
    with ImapMailbox(account.endpoint()) as mailbox:
        batches = sync_mailbox(mailbox, {}, folder="INBOX", batch_size=1)
        account.store.save(next(batches))
        account.change("3:6", "+FLAGS", "(\\Deleted)")
        account.store.save_all(batches)
    account.sync(folder="INBOX")
    assert set(account.store.flags["INBOX"]) == {1, 2}


def test_folders_have_readable_names_and_roles(account: Account) -> None:
    for name in ("Entwürfe", "日本語/受信", "A&B", 'quote"back\\slash'):
        account.dovecot.doveadm("mailbox", "create", "-u", account.user, name)
    account.dovecot.deliver(account.user, message(1), "Entwürfe")
    with ImapMailbox(account.endpoint()) as mailbox:
        folders = {folder.name: folder for folder in list_folders(mailbox)}
    assert {name: folders[name].role for name in ("INBOX", "Sent", "Junk")} == {"INBOX": "inbox", "Sent": "sent", "Junk": "junk"}
    assert {"Entwürfe", "日本語/受信", "A&B", 'quote"back\\slash'} <= set(folders)
    assert folders["日本語"].selectable is False
    account.sync()
    assert set(account.store.flags["Entwürfe"]) == {1}
    assert account.sync() == []


def test_a_wrong_password_is_permanent_and_named_without_the_user(account: Account) -> None:
    with pytest.raises(AuthenticationRefused) as caught, ImapMailbox(account.endpoint(secret=Secret("wrong"))):
        pass
    assert account.user not in str(caught.value)


def test_starttls_and_tls_need_a_certificate_we_trust(account: Account) -> None:
    for security, port in ((Security.STARTTLS, account.dovecot.imap_port), (Security.TLS, account.dovecot.imaps_port)):
        with pytest.raises(CertificateRefused), ImapMailbox(account.endpoint(security=security, port=port)):
            pass
        with ImapMailbox(account.endpoint(security=security, port=port, verify_tls=False)) as mailbox:
            assert list_folders(mailbox)


def test_a_private_server_is_refused_unless_allowed(account: Account) -> None:
    with pytest.raises(HostNotAllowed), ImapMailbox(account.endpoint(allow_private=False)):
        pass


def test_a_folder_that_is_not_there_is_missing(account: Account) -> None:
    with pytest.raises(FolderMissing):
        account.sync(folder="Nowhere")


def test_a_folder_of_two_thousand_messages_without_changes_costs_no_body(account: Account) -> None:
    account.deliver(*range(2000))
    account.sync(folder="INBOX")
    assert len(account.store.flags["INBOX"]) == 2000
    received = _bytes_received(account)
    assert received < 4096


def _bytes_received(account: Account) -> int:
    """What a sync without changes reads, counted at the reader."""
    total = 0
    with ImapMailbox(account.endpoint()) as mailbox:
        reader = mailbox._connection._reader
        assert reader is not None
        read_line = reader._line

        def counting() -> bytes:
            nonlocal total
            line = read_line()
            total += len(line)
            return line

        reader._line = counting  # type: ignore[method-assign]
        assert list(sync_mailbox(mailbox, account.store.known(), folder="INBOX")) == []
    return total


def test_a_server_that_stops_answering_ends_in_a_time_out(account: Account) -> None:
    with ImapMailbox(account.endpoint(timeout=1)) as mailbox:
        [line] = account.dovecot.doveadm("who", "-1", account.user).splitlines()[1:]
        pid = int(line.split()[2])
        os.kill(pid, signal.SIGSTOP)
        try:
            before = time.monotonic()
            with pytest.raises(ConnectionFailed, match="did not answer"):
                mailbox.list_folders()
            assert time.monotonic() - before < 5
        finally:
            os.kill(pid, signal.SIGCONT)
