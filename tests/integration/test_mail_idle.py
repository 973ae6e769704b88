"""IDLE against a real Dovecot, over every kind of line: what happens in the folder is told while we wait."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from mail.accounts import Security
from mail.folder_names import RemoteFolder
from mail.imap import ImapMailbox
from tests.integration.mail_account import Account
from tests.servers.dovecot import Dovecot

pytestmark = pytest.mark.integration

INBOX = RemoteFolder("INBOX", "INBOX", "/")


@pytest.fixture
def account(dovecot: Dovecot) -> Account:
    made = Account(dovecot)
    made.deliver(1, 2)
    return made


@pytest.mark.parametrize("line", ["plain", "deflate", "tls"])
def test_new_mail_flags_and_deletions_are_told_as_they_come(account: Account, line: str) -> None:
    tls = {"port": account.dovecot.imaps_port, "security": Security.TLS, "verify_tls": False} if line == "tls" else {}
    with ImapMailbox(account.endpoint(compress=line == "deflate", **tls)) as mailbox:
        mailbox.examine(INBOX)
        assert mailbox.has_idle
        for act, told in (
            (lambda: account.deliver(3), "EXISTS"),
            (lambda: account.change("1", "+FLAGS", "(\\Flagged)"), "FETCH"),
            (lambda: account.change("2", "+FLAGS", "(\\Deleted)"), "VANISHED"),  # not EXPUNGE: QRESYNC is enabled
        ):
            threading.Timer(0.2, act).start()
            with closing(mailbox.idle(20)) as news:  # type: ignore[type-var]
                assert told in news
        assert mailbox.examine(INBOX).messages == 2


def test_nothing_happens_and_the_wait_ends(account: Account) -> None:
    with ImapMailbox(account.endpoint(timeout=0.5)) as mailbox:  # far less than we wait
        mailbox.examine(INBOX)
        assert list(mailbox.idle(1.5)) == []
        assert mailbox.examine(INBOX).messages == 2
