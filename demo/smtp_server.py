"""An SMTP server in this process: mail for demo accounts arrives in their INBOX, everything else is kept in memory."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from demo.accounts import DemoAccount
from demo.imap_server import HOST, ImapServer

REFUSED = "gone@initech.example"
"""This recipient is always answered 550: the demo's permanent failure."""
GREYLISTED = "later@initech.example"
"""This recipient is answered 451 the first time and accepted from then on: the demo's retry."""
KEPT = 1000


@dataclass(frozen=True)
class Relayed:
    """A message for somebody who has no demo mailbox."""

    sender: str
    recipient: str
    raw: bytes


@dataclass
class SmtpServer:
    """AUTH PLAIN and LOGIN are offered to the demo accounts and required of nobody: it listens on loopback only."""

    accounts: tuple[DemoAccount, ...]
    mailboxes: ImapServer
    port: int = 0
    delivered: int = 0
    relayed: deque[Relayed] = field(default_factory=lambda: deque(maxlen=KEPT))
    """The last thousand messages for addresses elsewhere."""
    _greylisted: set[str] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._protocol, HOST, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _protocol(self) -> SMTP:
        return SMTP(
            self,
            hostname="demo.mailroom.example",
            ident="Mailroom demo server",
            enable_SMTPUTF8=True,
            authenticator=self._authenticate,
            auth_require_tls=False,
            loop=asyncio.get_running_loop(),
        )

    def _authenticate(self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: object) -> AuthResult:
        known = {account.address: account.password for account in self.accounts}
        accepted = isinstance(data, LoginPassword) and known.get(data.login.decode()) == data.password.decode()
        return AuthResult(success=accepted, handled=False)

    async def handle_RCPT(self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]) -> str:  # noqa: N802
        if address.lower() == REFUSED:
            return "550 5.1.1 No such user here"
        if address.lower() == GREYLISTED and GREYLISTED not in self._greylisted:
            self._greylisted.add(GREYLISTED)
            return "451 4.7.1 Greylisted, please try again"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, _server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        sender, raw = envelope.mail_from or "", bytes(envelope.original_content or b"")
        for recipient in envelope.rcpt_tos:
            if self.mailboxes.knows(recipient):
                await self.mailboxes.deliver(recipient, trace(sender, session, recipient) + raw)
                self.delivered += 1
            else:
                self.relayed.append(Relayed(sender, recipient, raw))
        return "250 2.0.0 Ok"


def trace(sender: str, session: Session, recipient: str) -> bytes:
    """The two fields that final delivery adds in front (RFC 5321, section 4.4)."""
    name = session.host_name or "unknown"
    received = f"from {name} by demo.mailroom.example with ESMTP for <{recipient}>; {format_datetime(datetime.now(UTC))}"
    return f"Return-Path: <{sender}>\r\nReceived: {received}\r\n".encode()
