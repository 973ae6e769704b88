"""A TCP proxy on loopback in front of a real server, and the ways in which a network fails between the two.

While the server itself is down the proxy refuses connections as the server would, so that whoever goes through it sees no
difference. One thread with an event loop of its own; the verbs may be called from any other thread and return when they hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.servers.process import free_port

HOST = "127.0.0.1"
LOOK_SECONDS = 0.1
PIECES_ON_LINE = 128
"""Of at most 64 KiB each: as much as a connection over a long line has under way."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Link:
    """One connection through the proxy, both halves of it. While `flowing` is clear nothing passes either way, not even its end."""

    writers: list[asyncio.StreamWriter]
    flowing: asyncio.Event = field(default_factory=asyncio.Event)
    is_forgotten: bool = False

    def reset(self) -> None:
        """Both ends see RST."""
        for writer in self.writers:
            connection = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            writer.transport.abort()
        self.flowing.set()


class FaultProxy:
    """`delay` and `jitter` (seconds each way, like a long line: what follows is under way meanwhile, in order) and `rate` (bytes a
    second, each way and connection) may be set at any time."""

    host = HOST

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.delay = 0.0
        self.jitter = 0.0
        self.rate: float | None = None
        self.connections = 0
        self.passed = 0
        """Bytes of both directions and all connections so far."""
        self._target_port = target_port
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._holding = False
        self._refusing = False
        self._listener: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        self._do(self._listen())

    @property
    def open_connections(self) -> int:
        """Those of which neither end is known to be gone. What is held back is not known to be gone."""
        return len(self._links)

    # What may happen to a network.

    def cut(self) -> None:
        """Reset every connection; new ones pass."""
        self._do(self._reset_all())

    def refuse(self) -> None:
        """Reset every connection and refuse new ones."""
        self._refusing = True
        self._do(self._stop_listening())
        self._do(self._reset_all())

    def hold(self) -> None:
        """A black hole: connections stay and are accepted, and nothing passes in either direction until `heal`."""
        self._do(self._hold_all())

    def forget(self) -> None:
        """What a firewall does that loses its table: the connections of this moment are black holes for good, new ones pass."""
        self._do(self._forget_all())

    def heal(self) -> None:
        """A good network again; what was held passes, what was forgotten is reset."""
        self.delay, self.jitter, self.rate = 0.0, 0.0, None
        self._refusing = False
        self._do(self._heal_all())

    def close(self) -> None:
        """End the listener, every connection and the thread."""
        if self._thread.is_alive():
            self._refusing = True
            self._do(self._stop_listening())
            self._do(self._reset_all())
            self._do(self._end_tasks())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # On the loop's thread.

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._listener is None and not self._refusing:
            self._listener = await asyncio.start_server(self._accept, HOST, self.port, backlog=512)

    async def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    async def _reset_all(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _hold_all(self) -> None:
        self._holding = True
        for link in self._links:
            link.flowing.clear()

    async def _forget_all(self) -> None:
        for link in self._links:
            link.is_forgotten = True
            link.flowing.clear()

    async def _heal_all(self) -> None:
        self._holding = False
        for link in list(self._links):
            if link.is_forgotten:
                link.reset()
            link.flowing.set()
        await self._listen()

    async def _end_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._spawn(self._serve(reader, writer))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        link = _Link([writer])
        self._links.add(link)
        if not self._holding:
            link.flowing.set()
        try:
            await link.flowing.wait()
            server_reader, server_writer = await asyncio.open_connection(HOST, self._target_port)
            link.writers.append(server_writer)
            await asyncio.gather(self._pass_on(link, reader, server_writer), self._pass_on(link, server_reader, writer))
        except ConnectionRefusedError:
            await self._mirror_refusal()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._links.discard(link)
            link.reset()

    async def _pass_on(self, link: _Link, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """What was read waits its time while more is read, as far as the line holds it."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES_ON_LINE)
        reading = asyncio.create_task(self._take_in(source, line))
        try:
            while (piece := await line.get())[1]:
                due, data = piece
                if (wait := due - self._loop.time()) > 0:
                    await asyncio.sleep(wait)
                if self.rate:
                    await asyncio.sleep(len(data) / self.rate)
                await link.flowing.wait()
                target.write(data)
                self.passed += len(data)
                await target.drain()
            await reading
        finally:
            reading.cancel()
        await link.flowing.wait()
        with contextlib.suppress(OSError):
            target.write_eof()

    async def _take_in(self, source: asyncio.StreamReader, line: asyncio.Queue[tuple[float, bytes]]) -> None:
        """Each piece with the time at which it comes out at the other end; an empty one is the end, or a lost connection."""
        last = 0.0
        try:
            while data := await source.read(65536):
                last = max(last, self._loop.time() + self.delay + random.uniform(0, self.jitter))
                await line.put((last, data))
        except OSError:
            await line.put((last, b""))
            raise
        await line.put((last, b""))

    async def _mirror_refusal(self) -> None:
        """The server is down: refuse as it does until it listens again."""
        if self._listener is not None:
            await self._stop_listening()
            self._spawn(self._listen_with_the_server())

    async def _listen_with_the_server(self) -> None:
        while not self._refusing:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(HOST, self._target_port)
                writer.close()
                await self._listen()
                return
            await asyncio.sleep(LOOK_SECONDS)
