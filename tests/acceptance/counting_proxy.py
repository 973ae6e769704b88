"""A TCP proxy on loopback that counts what passes, and holds it back when told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

from tests.servers.process import free_port


class CountingProxy:
    """`bytes_down` is what the server sent; while `hold` is set, connections are accepted and nothing passes."""

    host = "127.0.0.1"

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.bytes_down = 0
        self.connections = 0
        self._target_port = target_port
        self._passing = threading.Event()
        self._passing.set()
        self._listener = socket.create_server((self.host, self.port))
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        """From now on new connections wait."""
        self._passing.clear()

    def release(self) -> None:
        """Let everything through again."""
        self._passing.set()

    def close(self) -> None:
        """End the listener and every connection."""
        self._passing.set()
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                self._sockets.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._passing.wait()
        with contextlib.suppress(OSError):
            server = socket.create_connection((self.host, self._target_port))
            self._sockets.append(server)
            threading.Thread(target=self._copy, args=(client, server), daemon=True).start()
            self._copy(server, client, counted=True)

    def _copy(self, source: socket.socket, target: socket.socket, *, counted: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if counted:
                    self.bytes_down += len(data)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
