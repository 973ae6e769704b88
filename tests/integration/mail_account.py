"""A user of the test Dovecot with a store of its own."""

from __future__ import annotations

from itertools import count

from mail.accounts import Endpoint, Secret, Security
from mail.imap import ImapMailbox
from mail.sync import SyncBatch, sync_mailbox
from tests.servers.dovecot import Dovecot
from tests.unit.mail_store import Store

_users = (f"reader{number}" for number in count())


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

    def sync(self, endpoint: Endpoint | None = None, **options: object) -> list[SyncBatch]:
        with ImapMailbox(endpoint or self.endpoint()) as mailbox:
            return self.store.save_all(sync_mailbox(mailbox, self.store.known(), **options))  # type: ignore[arg-type]

    def change(self, uid_set: str, command: str, flags: str) -> None:
        with self.dovecot.imap_client(self.user, self.password) as client:
            client.select("INBOX")
            client.uid("STORE", uid_set, command, flags)
            client.expunge()


def message(number: int, size: int = 0) -> bytes:
    return f"Message-ID: <{number}@x.test>\r\nFrom: a@x.test\r\nSubject: number {number}\r\n\r\nbody {number}\r\n{'x' * size}".encode()
