"""A door in front of the IMAP server that is closed for the first caller: its login gets NO [UNAVAILABLE], later ones pass.

So the demo shows a first sync that fails through no fault of ours, and the retry that succeeds (RFC 5530, section 3).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from demo.imap_server import HOST

CAPABILITIES = b"IMAP4rev1 ID AUTH=PLAIN"
LOGINS = (b"LOGIN", b"AUTHENTICATE")


class FlakyFront:
    """Refuses the first login attempt itself; every connection after that goes through to `target_port`."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.refused = 0
        self._target_port = target_port
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            if self.refused:
                await self._pass_through(reader, writer)
            else:
                await self._refuse(reader, writer)
        writer.close()

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"* OK [CAPABILITY " + CAPABILITIES + b"] Mailroom demo server ready\r\n")
        while line := await reader.readline():
            tag, command = [*line.split(), b"*", b""][:2]
            if command.upper() in LOGINS:
                self.refused += 1
                writer.write(tag + b" NO [UNAVAILABLE] The mail store is being moved\r\n")
            elif command.upper() == b"LOGOUT":
                writer.write(b"* BYE See you later\r\n" + tag + b" OK Logged out\r\n")
                return
            elif command.upper() == b"CAPABILITY":
                writer.write(b"* CAPABILITY " + CAPABILITIES + b"\r\n" + tag + b" OK Done\r\n")
            else:
                writer.write(tag + b" OK Done\r\n")
            await writer.drain()

    async def _pass_through(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(HOST, self._target_port)
        try:
            await asyncio.gather(copy(reader, server_writer), copy(server_reader, writer))
        finally:
            server_writer.close()


async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Pass on what comes until the source ends, then end the sink."""
    with suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    with suppress(OSError, RuntimeError):
        sink.close()
