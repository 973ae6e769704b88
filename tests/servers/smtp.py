"""An SMTP server in a thread that keeps what it is given and misbehaves as told."""

from __future__ import annotations

import asyncio
import random
import ssl
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.servers.process import free_port


@dataclass(frozen=True)
class Received:
    """One accepted message: the envelope's addresses (recipients that were not refused) and the bytes after DATA."""

    sender: str
    recipients: list[str]
    raw: bytes


@dataclass
class SmtpSink:
    """Replies are SMTP reply lines without the line end, for example "451 4.7.1 Greylisted". Fields may change while it runs."""

    received: list[Received] = field(default_factory=list)
    refuse: dict[str, str] = field(default_factory=dict)
    """Reply to RCPT TO of this address (lower case)."""
    refuse_sender: dict[str, str] = field(default_factory=dict)
    """Reply to MAIL FROM of this address (lower case)."""
    refuse_data: str | None = None
    """Reply to the final dot; the message is not kept."""
    drop_before_dot: bool = False
    """Close the connection at DATA, before the message: nothing is kept, and the client knows it."""
    drop_after_dot: bool = False
    """Keep the message, then close the connection without a reply: the client cannot know."""
    drop_share: float = 0.0
    """Of all messages so many lose their connection after the dot, without a reply: half of them are kept, half are not."""
    drops: int = 0
    """How many did."""
    early_drop_share: float = 0.0
    """Of all messages so many lose their connection at DATA, before the message: nothing is kept, and the client knows it."""
    early_drops: int = 0
    """How many did."""
    delay: float = 0.0
    """Seconds to wait before the reply to the final dot."""
    early_delay: float = 0.0
    """Seconds to wait before the reply to DATA."""
    accounts: dict[str, str] | None = None
    """User names and passwords; AUTH is offered and required when set (at `start()`)."""
    tls: ssl.SSLContext | None = None
    """Offer STARTTLS when set (at `start()`)."""
    host: str = "127.0.0.1"
    port: int = 0
    attempts: int = 0
    """Messages that reached DATA, whatever became of them."""
    dice: random.Random = field(default_factory=random.Random)
    early_dice: random.Random = field(default_factory=random.Random)
    _controller: Controller | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        return f"smtp://{self.host}:{self.port}"

    def start(self) -> None:
        if self._controller is not None:
            return
        self.port = self.port or free_port()
        self._controller = _Controller(
            self,
            _Handler(self),
            hostname=self.host,
            port=self.port,
            tls_context=self.tls,
            authenticator=self._authenticate if self.accounts is not None else None,
            auth_required=self.accounts is not None,
            auth_require_tls=False,
        )
        self._controller.start()

    def stop(self) -> None:
        """Close the listener and every connection; `start()` opens the same port again."""
        if self._controller is not None:
            self._controller.stop()
            self._controller = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def reset(self) -> None:
        """Forget all messages and all misbehaviour, for the next test."""
        self.received.clear()
        self.refuse.clear()
        self.refuse_sender.clear()
        self.refuse_data, self.drop_before_dot, self.drop_after_dot, self.delay, self.attempts = None, False, False, 0.0, 0
        self.drop_share, self.drops, self.early_drop_share, self.early_drops, self.early_delay = 0.0, 0, 0.0, 0, 0.0

    def wait_for(self, count: int, timeout: float = 30.0) -> list[Received]:
        """Wait until at least `count` messages were kept; answer all of them."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.received) >= count, timeout):
                raise TimeoutError(f"{len(self.received)} of {count} messages came within {timeout} s")
            return list(self.received)

    def keep(self, message: Received) -> None:
        with self._changed:
            self.received.append(message)
            self._changed.notify_all()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _authenticate(self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: object) -> AuthResult:
        known = self.accounts or {}
        accepted = isinstance(data, LoginPassword) and known.get(data.login.decode()) == data.password.decode()
        return AuthResult(success=accepted, handled=False)


class _Controller(Controller):
    def __init__(self, sink: SmtpSink, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sink = sink

    def factory(self) -> SMTP:
        return _Smtp(self._sink, self.handler, **self.SMTP_kwargs)


def _drop(server: SMTP) -> None:
    if isinstance(server.transport, asyncio.WriteTransport):
        server.transport.abort()


class _Smtp(SMTP):
    """aiosmtpd's protocol with one more way to fail."""

    def __init__(self, sink: SmtpSink, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sink = sink

    async def smtp_DATA(self, arg: str) -> None:  # noqa: N802  (aiosmtpd's name)
        sink = self._sink
        if sink.drop_before_dot or sink.early_dice.random() < sink.early_drop_share:
            sink.attempts += 1
            sink.early_drops += 1
            _drop(self)
            return
        if sink.early_delay:
            await asyncio.sleep(sink.early_delay)
        await super().smtp_DATA(arg)


class _Handler:
    def __init__(self, sink: SmtpSink) -> None:
        self._sink = sink

    async def handle_MAIL(self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]) -> str:  # noqa: N802
        if reply := self._sink.refuse_sender.get(address.lower()):
            return reply
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 Ok"

    async def handle_RCPT(self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]) -> str:  # noqa: N802
        if reply := self._sink.refuse.get(address.lower()):
            return reply
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        sink = self._sink
        sink.attempts += 1
        if sink.refuse_data:
            return sink.refuse_data
        luck = sink.dice.random()
        if luck >= sink.drop_share / 2:
            sink.keep(Received(envelope.mail_from or "", list(envelope.rcpt_tos), bytes(envelope.original_content or b"")))
        if sink.drop_after_dot or luck < sink.drop_share:
            sink.drops += 1
            _drop(server)
            return "250 2.0.0 never sent"
        if sink.delay:
            await asyncio.sleep(sink.delay)
        return f"250 2.0.0 Ok: queued as {time.monotonic_ns():x}"
