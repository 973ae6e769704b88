"""A line server on loopback that follows a script, for the answers no real server gives on demand."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

HANG_UP = b"<hang up>"
START_TLS = b"<start tls>"


@dataclass(frozen=True)
class Step:
    """Waits for a line that matches `expects`, then writes `answer`; `%t` in it becomes the first word of that line (an IMAP tag).

    HANG_UP and START_TLS inside the answer are done at that place. An empty `expects` waits for nothing.
    """

    expects: str
    answer: bytes


class ScriptedServer:
    """Serves one connection. `lines` is what the client said; `surprise` is the line that did not fit the script."""

    host = "127.0.0.1"

    def __init__(self, *steps: Step | tuple[str, bytes], tls: ssl.SSLContext | None = None, tls_at_once: bool = False) -> None:
        self._steps: Sequence[Step] = [step if isinstance(step, Step) else Step(*step) for step in steps]
        self._tls, self._tls_at_once = tls, tls_at_once
        self._listener = socket.create_server((self.host, 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.port: int = self._listener.getsockname()[1]
        self.lines: list[bytes] = []
        self.surprise: bytes | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes an accept that nobody answered
        self._listener.close()
        self._thread.join(30)
        if error is None:
            assert self.surprise is None, f"not in the script: {self.surprise!r}"

    def _serve(self) -> None:
        try:
            self._listener.settimeout(5)
            connection, _ = self._listener.accept()
            connection.settimeout(5)
            if self._tls_at_once and self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            self._follow(connection)
        except OSError:
            return

    def _follow(self, connection: socket.socket) -> None:
        file = connection.makefile("rb")
        for step in self._steps:
            line = file.readline() if step.expects else b""
            if step.expects:
                self.lines.append(line)
                if not line:
                    break
                if not re.search(step.expects.encode(), line, re.IGNORECASE):
                    self.surprise = line
                    break
            tag = line.split(b" ", 1)[0].strip() if line else b"*"
            for piece in re.split(b"(" + re.escape(HANG_UP) + b"|" + re.escape(START_TLS) + b")", step.answer.replace(b"%t", tag)):
                if piece == HANG_UP:
                    connection.shutdown(socket.SHUT_RDWR)
                    return
                if piece == START_TLS:
                    assert self._tls is not None
                    file.close()
                    connection = self._tls.wrap_socket(connection, server_side=True)
                    file = connection.makefile("rb")
                elif piece:
                    connection.sendall(piece)
        self.lines += list(iter(file.readline, b""))
        file.close()
        connection.close()
