"""Reading from a server with a limit to our patience: one that sends a byte now and then is given up like one that sends none."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mail.accounts import Endpoint
from mail.errors import ConnectionFailed

SLOWEST = 1000
"""Bytes per second that a server must reach when it answers at length."""
PATIENCE = 10
"""Time-outs that all waiting for one command may last: servers say now and then that they are still at it."""


class _TooSlowError(TimeoutError):
    """Something came each time, and too little in all."""


class SteadyReader(io.RawIOBase):
    """A raw stream over a socket that has a time-out. Only waiting counts: what the caller does between reads takes its own time."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        super().__init__()
        self._sock = sock
        self._patience = PATIENCE * timeout
        self._timeout = timeout
        self._is_resting = False
        self._waited = 0.0
        self._received = 0

    @contextmanager
    def resting(self, seconds: float) -> Iterator[None]:
        """Inside, nobody owes us anything: a read waits for so long at most (TimeoutError), and the waiting does not count."""
        self._sock.settimeout(seconds)
        self._is_resting = True
        try:
            yield
        finally:
            self._is_resting = False
            self._sock.settimeout(self._timeout)

    def restart(self) -> None:
        """Another command: the waiting begins anew."""
        self._waited, self._received = 0.0, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """What is there, at least one byte; 0 at the end of the stream. Raises TimeoutError."""
        before = time.monotonic()
        size = self._sock.recv_into(buffer)
        if self._is_resting:
            return size
        self._waited += time.monotonic() - before
        self._received += size
        if self._waited > self._patience + self._received / SLOWEST:
            raise _TooSlowError
        return size


@contextmanager
def connection_errors(endpoint: Endpoint, close: Callable[[], None]) -> Iterator[None]:
    """Turns what the socket says into ConnectionFailed, and closes the connection on any error."""
    try:
        yield
    except OSError as error:
        close()
        if isinstance(error, _TooSlowError):
            raise ConnectionFailed(f"{endpoint.where} answers too slowly.") from error
        if isinstance(error, TimeoutError):
            raise ConnectionFailed(f"{endpoint.where} did not answer within {endpoint.timeout:g} s.") from error
        raise ConnectionFailed(f"The connection to {endpoint.where} was lost.") from error
    except BaseException:  # a time limit too, which may strike anywhere: nothing stays open
        close()
        raise
