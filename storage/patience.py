"""Gives up on a PostgreSQL that no longer answers.

libpq waits for an answer for as long as the kernel believes in the connection, and behind a proxy or a load balancer the kernel
may believe in it for ever. psycopg2 offers no time-out of its own that leaves COPY working (a wait callback forbids it). So every
call that waits for the server is noted, and one that takes too long has its socket shut down: the call then raises
OperationalError, like any other lost connection.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import Any

import psycopg2.extensions

from core.logging import get_logger

log = get_logger(__name__)
PATIENCE_SECONDS = 15.0
STATEMENT_SECONDS = 12
"""What the server is told (statement_timeout), so that a statement that is merely slow ends with an error of its own."""
LOOK_SECONDS = 1.5
PING = "SELECT 1"
"""What the pool asks a connection before it gives it out."""
PING_SECONDS = 3.0


class _Watch:
    """One thread for all connections of a process, started with the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[float, WatchedConnection]] = {}  # until when
        self._has_thread = False

    def begin(self, connection: WatchedConnection, patience: float = PATIENCE_SECONDS) -> None:
        self._waiting[id(connection)] = (time.monotonic() + patience, connection)
        if not self._has_thread:
            self._has_thread = True
            threading.Thread(target=self._run, name="patience", daemon=True).start()

    def end(self, connection: WatchedConnection) -> None:
        with self._lock:  # not while its socket is being shut down: the descriptor may be somebody else's a moment later
            self._waiting.pop(id(connection), None)

    def _run(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            now = time.monotonic()
            for key, (until, connection) in list(self._waiting.items()):
                if until < now and not connection.is_patient:
                    self._give_up(key, until, connection)

    def _give_up(self, key: int, until: float, connection: WatchedConnection) -> None:
        with self._lock, contextlib.suppress(OSError, psycopg2.Error):
            if self._waiting.get(key) != (until, connection):
                return
            with socket.socket(fileno=os.dup(connection.fileno())) as copy:
                copy.shutdown(socket.SHUT_RDWR)
            log.warning("database_does_not_answer")


_watch = _Watch()


class _WatchedCursor(psycopg2.extensions.cursor):
    connection: WatchedConnection

    def execute(self, query: Any, *args: Any, **options: Any) -> None:
        _watch.begin(self.connection, PING_SECONDS if query == PING else PATIENCE_SECONDS)
        try:
            super().execute(query, *args, **options)
        finally:
            _watch.end(self.connection)

    def copy_expert(self, *args: Any, **options: Any) -> None:
        _watch.begin(self.connection)
        try:
            super().copy_expert(*args, **options)
        finally:
            _watch.end(self.connection)


class WatchedConnection(psycopg2.extensions.connection):
    """For `psycopg2.connect(connection_factory=...)`. One that `is_patient` waits for as long as it takes (a migration)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.is_patient = False
        self.cursor_factory = _WatchedCursor

    def commit(self) -> None:
        """As the driver's."""
        _watch.begin(self)
        try:
            super().commit()
        finally:
            _watch.end(self)

    def rollback(self) -> None:
        """As the driver's."""
        _watch.begin(self)
        try:
            super().rollback()
        finally:
            _watch.end(self)
