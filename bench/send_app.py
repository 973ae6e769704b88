"""The parts of bench.send that are processes of their own: `python -m bench.send_app sink|naive|accept|carry ...`."""

from __future__ import annotations

import asyncio
import json
import smtplib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, make_msgid

TEXT = "The quick brown fox jumps over the lazy dog, again and again. 0123456789\n" * 108
"""With the headers 8 KB."""


class Sink(asyncio.Protocol):
    """Takes everything and keeps nothing, as fast as Python can."""

    def __init__(self) -> None:
        self._buffer, self._in_data = b"", False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            end = self._buffer.find(b"\r\n.\r\n" if self._in_data else b"\r\n")
            if end < 0:
                return
            line, self._buffer = self._buffer[:end], self._buffer[end + (5 if self._in_data else 2) :]
            self._answer(line)

    def _answer(self, line: bytes) -> None:
        word = b"." if self._in_data else line[:4].upper()
        self._in_data = word == b"DATA"
        answers = {b"EHLO": b"250-sink\r\n250-PIPELINING\r\n250-SIZE\r\n250 8BITMIME\r\n", b"DATA": b"354 go\r\n", b"QUIT": b"221 bye\r\n"}
        self._transport.write(answers.get(word, b"250 2.0.0 ok\r\n"))


def sink(port: int) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", port)
        print("ready", flush=True)
        await server.serve_forever()

    asyncio.run(serve())


def naive(port: int, mails: int) -> dict[str, float]:
    """The good tutorial: one connection for all, each mail built and sent."""
    began = time.perf_counter(), time.process_time()
    with smtplib.SMTP("127.0.0.1", port, local_hostname="localhost") as smtp:
        for number in range(mails):
            message = EmailMessage(policy=SMTP)
            message["From"], message["To"] = "Ann <ann@acme.example>", f"Bob <bob{number}@globex.example>"
            message["Subject"], message["Date"], message["Message-ID"] = f"Mail {number}", formatdate(), make_msgid(domain="acme.example")
            message.set_content(TEXT)
            smtp.send_message(message)
    return _since(began)


def accept(tenant: str, client_id: str, mails: int, with_runs: str) -> dict[str, float]:
    """Into the outbox, each in a transaction of its own, as the API does; with a run for a worker or none."""
    import actors.outbound
    from core.settings import get_settings
    from core.tenancy import Identity, acting_as
    from mail.addresses import unique_recipients
    from runs.enqueue import enqueue
    from storage.drafts import Draft
    from storage.drafts import accept as into_outbox
    from storage.engine import session_scope

    settings = get_settings()
    began = time.perf_counter(), time.process_time()
    for number in range(mails):
        with acting_as(Identity(tenant)), session_scope() as session:
            draft = Draft(unique_recipients([f"Bob <bob{number}@globex.example>"]), f"Mail {number}", TEXT)
            email = into_outbox(session, client_id, draft, files=settings.files, keys=lambda: settings.credential_keys)
            if with_runs == "runs":
                email.run_id = enqueue(session, actors.outbound.send_outbound_email, email_id=email.id)
    took = _since(began)
    assert actors.broker.publisher.flush(120)
    return took


def carry(tenant: str, threads: int) -> dict[str, float]:
    """What a worker does with each mail, without the worker: read, mark, send, record."""
    import actors.carrying
    from core.logging import configure_logging
    from core.tenancy import Identity, acting_as
    from storage.engine import session_scope
    from storage.repositories.outbox import Outbox

    configure_logging("INFO", "json")  # as a worker
    with acting_as(Identity(tenant)), session_scope() as session:
        waiting = [email.id for email in Outbox(session).due(100_000)]

    def one(email_id: str) -> None:
        with acting_as(Identity(tenant)):
            actors.carrying.carry(email_id)

    began = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, waiting))
    return _since(began)


def _since(began: tuple[float, float]) -> dict[str, float]:
    return {"seconds": time.perf_counter() - began[0], "cpu": time.process_time() - began[1]}


def main() -> None:
    what, *words = sys.argv[1:]
    parts = {"sink": sink, "naive": naive, "accept": accept, "carry": carry}
    values = [int(word) if word.isdigit() else word for word in words]
    print(json.dumps(parts[what](*values)), flush=True)  # type: ignore[operator]


if __name__ == "__main__":
    main()
