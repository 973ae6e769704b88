"""An IMAP server in this process, its mail in memory: pymap's dictionary backend with Mailroom's demo accounts."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime

from proxyprotocol.reader import ProxyProtocolReader
from pymap.backend.dict import Config, Login
from pymap.backend.dict.filter import FilterSet
from pymap.backend.dict.mailbox import MailboxData, MailboxSet
from pymap.imap import IMAPServer
from pymap.parsing.message import AppendMessage
from pymap.parsing.specials.flag import Flag, Seen
from pymap.user import UserMetadata
from pysasl.hashing import Cleartext

from demo.accounts import DemoAccount

HOST = "127.0.0.1"
FOLDERS = ("Sent", "Drafts", "Junk", "Trash")
LATER_UIDS = 1000


class _Config(Config):
    """Without what pymap would ask the network for: our own name, and whether clients are on a block list."""

    def __init__(self) -> None:
        args = Namespace(passlib_cfg=None, proxy_protocol=None)
        super().__init__(
            args,
            host=HOST,
            port=0,
            tls_enabled=False,
            hash_context=Cleartext(),
            invalid_user_sleep=0.0,
            reject_dnsbl=False,
            demo_data=False,
            demo_user="",
            demo_password="",
        )

    @property
    def greeting(self) -> bytes:
        return b"Mailroom demo server ready"


class ImapServer:
    """`start()` listens and fills the mailboxes; `deliver()` puts a new message into an INBOX.

    The mail that is there from the start has the same UIDs after every start. What arrives later gets UIDs that grow with the
    seconds since the first start, so that no UID is given twice although the later mail is forgotten when the server ends. They
    stay small: pymap expands a range of UIDs to every number in it.
    """

    def __init__(self, accounts: Iterable[DemoAccount], *, before: datetime | None = None) -> None:
        self.port = 0
        self._accounts = tuple(accounts)
        self._before = before or datetime.now(UTC)
        self._inboxes: dict[str, MailboxData] = {}
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> None:
        config = _Config()
        config.apply_context()
        login = Login(config)
        for account in self._accounts:
            login.users_dict[account.address] = UserMetadata(config, account.address, password=account.password)
            config.set_cache[account.address] = (await self._mailboxes(account), FilterSet())
        callback = ProxyProtocolReader(config.proxy_protocol).get_callback(IMAPServer(login, config))
        self._server = await asyncio.start_server(callback, HOST, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def knows(self, address: str) -> bool:
        return address.lower() in self._inboxes

    async def deliver(self, address: str, raw: bytes) -> None:
        """Put a message into the INBOX of a known address; clients that IDLE see it at once."""
        await self._inboxes[address.lower()].append(AppendMessage(raw, datetime.now(UTC)), recent=True)

    async def _mailboxes(self, account: DemoAccount) -> MailboxSet:
        mailboxes = MailboxSet()
        for name in FOLDERS:
            with suppress(ValueError):
                await mailboxes.add_mailbox(name)
            (await mailboxes.get_mailbox(name))._uid_validity = account.uid_validity  # noqa: SLF001  (pymap makes it random)
        inbox = await mailboxes.get_mailbox("INBOX")
        inbox._uid_validity = account.uid_validity  # noqa: SLF001
        for message in account.messages(self._before):
            flags: frozenset[Flag] = frozenset({Seen}) if message.seen else frozenset()
            await inbox.append(AppendMessage(message.raw, message.received_at, flags))
        inbox._max_uid = LATER_UIDS + int((datetime.now(UTC) - self._before).total_seconds())  # noqa: SLF001
        self._inboxes[account.address] = inbox
        return mailboxes
