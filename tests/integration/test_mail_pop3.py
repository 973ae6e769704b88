"""POP3 against a real Dovecot, with pipelining and without, with UIDLs and without."""

from __future__ import annotations

import pytest

from mail.accounts import Secret, Security
from mail.errors import AuthenticationRefused, CertificateRefused
from mail.pop3 import Pop3Mailbox, sync_pop3
from mail.sync import SyncBatch
from tests.integration.mail_account import Account, message
from tests.servers.dovecot import Dovecot

pytestmark = pytest.mark.integration


class Pop3Account(Account):
    """The same user over POP3."""

    def pop3(self, without: str = "", batch_size: int = 500) -> list[SyncBatch]:
        endpoint = self.endpoint(port=self.dovecot.pop3_port, without=frozenset(without.split()))
        known = {key: uid for (_, uid), key in self.store.remote_ids.items() if key is not None and uid in self.store.flags["INBOX"]}
        next_uid = self.store.cursors["INBOX"].uid_next if self.store.cursors else 1
        with Pop3Mailbox(endpoint) as mailbox:
            return self.store.save_all(sync_pop3(mailbox, known, next_uid, batch_size=batch_size))


@pytest.fixture
def account(dovecot: Dovecot) -> Pop3Account:
    return Pop3Account(dovecot)


@pytest.mark.parametrize("without", ["", "PIPELINING", "UIDL", "SASL", "SASL PIPELINING UIDL TOP"])
def test_everything_is_read_once_and_left_on_the_server(account: Pop3Account, without: str) -> None:
    if "SASL" in without:
        account.password = "pass word"
        account.dovecot.add_user(account.user, account.password)
    account.deliver(*range(1, 50))
    batches = account.pop3(without, batch_size=20)
    assert [len(batch.new) for batch in batches] == [20, 20, 9]
    assert [account.store.bodies["INBOX", uid] for uid in (1, 49)] == [message(1), message(49)]
    account.change("3,7", "+FLAGS", "(\\Deleted)")
    account.deliver(50)
    [batch] = account.pop3(without)
    assert ([each.uid for each in batch.new], batch.gone) == ([50], [3, 7])
    [batch] = account.pop3(without)
    assert (batch.new, batch.gone, batch.cursor.uid_next) == ([], [], 51)
    assert sorted(account.store.flags["INBOX"]) == [uid for uid in range(1, 51) if uid not in {3, 7}]


def test_an_interrupted_run_goes_on_where_its_stored_batches_end(account: Pop3Account) -> None:
    account.deliver(*range(1, 8))
    with Pop3Mailbox(account.endpoint(port=account.dovecot.pop3_port)) as mailbox:
        account.store.save(next(sync_pop3(mailbox, {}, 1, batch_size=3)))
    [batch] = account.pop3()
    assert [each.uid for each in batch.new] == [4, 5, 6, 7]
    assert len({each.parsed.message_id for each in batch.new} | {"<1@x.test>", "<2@x.test>", "<3@x.test>"}) == 7


def test_odd_messages_arrive_byte_for_byte(account: Pop3Account) -> None:
    raws = [
        b"Subject: dots\r\n\r\n.\r\n..\r\n.x\r\n",
        b"Subject: long\r\n\r\n" + b"x" * 300_000 + b"\r\n",
        b"Subject: 8bit\r\n\r\n\xe9\xff\r\n",
    ]
    for raw in raws:
        account.dovecot.deliver(account.user, raw)
    [batch] = account.pop3()
    assert [each.raw for each in batch.new] == raws


def test_a_wrong_password_is_permanent(account: Pop3Account) -> None:
    with pytest.raises(AuthenticationRefused), Pop3Mailbox(account.endpoint(port=account.dovecot.pop3_port, secret=Secret("wrong"))):
        pass


def test_stls_needs_a_certificate_we_trust(account: Pop3Account) -> None:
    account.deliver(1)
    endpoint = account.endpoint(port=account.dovecot.pop3_port, security=Security.STARTTLS)
    with pytest.raises(CertificateRefused), Pop3Mailbox(endpoint):
        pass
    with Pop3Mailbox(account.endpoint(port=account.dovecot.pop3_port, security=Security.STARTTLS, verify_tls=False)) as mailbox:
        assert len(mailbox.entries()) == 1
