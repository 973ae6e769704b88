"""The IMAP reader and the sync ladder against a real Dovecot: what is fetched, what is not, and where a crash resumes."""

from __future__ import annotations

import os
import signal
import time

import pytest

from mail.accounts import Secret, Security
from mail.errors import AuthenticationRefused, CertificateRefused, ConnectionFailed, FolderMissing, HostNotAllowed, ServerUnavailable
from mail.imap import ImapMailbox
from mail.sync import list_folders, sync_mailbox
from tests.integration.mail_account import Account, message
from tests.servers.dovecot import Dovecot

pytestmark = pytest.mark.integration


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


def test_another_uidvalidity_renumbers_the_stored_messages_and_fetches_none_again(account: Account) -> None:
    account.deliver(1, 2)
    account.sync()
    rows = dict(account.store.rows["INBOX"])
    account.dovecot.doveadm("mailbox", "update", "-u", account.user, "--uid-validity", "777777", "INBOX")
    [batch] = account.sync()
    assert (batch.is_reset, batch.uid_validity, batch.kept, batch.new) == (True, 777777, {1: 1, 2: 2}, [])
    assert account.store.rows["INBOX"] == rows
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
            assert time.monotonic() - before < 20
        finally:
            os.kill(pid, signal.SIGCONT)
