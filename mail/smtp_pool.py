"""Connections to SMTP servers that outlive a mail: a new one costs more round trips than the mail itself.

A connection belongs to one account with one set of credentials; it is lent to one thread at a time, and given up at the first doubt.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mail.accounts import Endpoint
from mail.delivery import SendReport
from mail.errors import ConnectionFailed, ServerUnavailable
from mail.refused_logins import RefusedLogins
from mail.smtp import SmtpTransport

IDLE_SECONDS = 20.0
"""How long an unused connection is kept. RFC 5321 4.5.3.2.7 gives 5 minutes, busy servers much less."""
TRUSTED_SECONDS = 2.0
"""An idle connection is asked whether it still answers after so long."""
MOST_MAILS = 100
"""Over one connection; many servers end it at some such number, and load balancers like to see us anew."""

REFUSED_SECONDS = 900.0
"""For so long a login that was refused three times in a row is not tried."""

Key = tuple[str, Endpoint]
"""The account's id and everything that its login is made of."""


@dataclass
class _Kept:
    """A connection, how many mails it has carried, and since when it is idle."""

    transport: SmtpTransport
    mails: int = 0
    since: float = field(default_factory=time.monotonic)


class SmtpPool:
    """The idle connections of this process. Thread-safe; a lent connection is in nobody else's hands."""

    def __init__(
        self,
        *,
        idle_seconds: float = IDLE_SECONDS,
        most_mails: int = MOST_MAILS,
        trusted_seconds: float = TRUSTED_SECONDS,
        refused_seconds: float = REFUSED_SECONDS,
    ) -> None:
        self._refused = RefusedLogins(refused_seconds)
        self._idle_seconds = idle_seconds
        self._most_mails = most_mails
        self._trusted_seconds = trusted_seconds
        self._idle: dict[Key, list[_Kept]] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._pid = os.getpid()
        atexit.register(self.close)

    def transport(self, account_id: str, endpoint: Endpoint, *, envelope_id: str = "") -> PooledTransport:
        """A way to send one mail over the account's server. Ids of accounts are unique over all tenants."""
        return PooledTransport(self, (account_id, endpoint), envelope_id)

    def take(self, key: Key) -> _Kept | None:
        """An idle connection that still answers, now the caller's alone."""
        while (kept := self._pop(key)) is not None:
            idle = time.monotonic() - kept.since
            is_fresh = idle < self._idle_seconds and kept.transport.is_silent
            if is_fresh and (idle < self._trusted_seconds or kept.transport.answers()):
                return kept
            kept.transport.close()
        return None

    def opened(self, key: Key) -> _Kept:
        """A new connection. Raises what opening one raises."""
        endpoint = key[1]
        with self._refused.tried(key, endpoint.where):
            return _Kept(SmtpTransport(endpoint).__enter__())

    def give_back(self, key: Key, kept: _Kept) -> None:
        """Keeps the connection for the next mail, unless something went wrong with it or it has carried enough."""
        kept.mails += 1
        kept.since = time.monotonic()
        if not kept.transport.is_ready:
            kept.transport.close()
            return
        if kept.mails >= self._most_mails:
            kept.transport.quit()
            return
        with self._lock:
            self._idle.setdefault(key, []).append(kept)
            self._look_later()

    def close(self) -> None:
        """Ends every idle connection; one that is lent is kept by its thread until it is given back."""
        with self._lock:
            idle, self._idle = self._idle, {}
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            is_ours = self._pid == os.getpid()
        for kept in (each for many in idle.values() for each in many):
            if is_ours:
                kept.transport.quit()
            else:  # the parent's connections: not a word on them
                kept.transport.close()

    def count(self) -> int:
        """How many connections are idle."""
        with self._lock:
            return sum(map(len, self._idle.values()))

    def _pop(self, key: Key) -> _Kept | None:
        if self._pid != os.getpid():
            self.close()
            self._pid = os.getpid()
        with self._lock:
            kept = self._idle.get(key)
            found = kept.pop() if kept else None  # the last one used is the least likely to have been given up by its server
            if not kept:
                self._idle.pop(key, None)
            return found

    def _look_later(self) -> None:
        """With the lock held: sees to it that somebody ends what stays idle."""
        if self._timer is None:
            self._timer = threading.Timer(self._idle_seconds, self._end_idle)
            self._timer.daemon = True
            self._timer.start()

    def _end_idle(self) -> None:
        limit = time.monotonic() - self._idle_seconds
        with self._lock:
            self._timer = None
            old = [(key, kept) for key, many in self._idle.items() for kept in many if kept.since <= limit]
            for key, kept in old:
                self._idle[key].remove(kept)
            self._idle = {key: many for key, many in self._idle.items() if many}
            if self._idle:
                self._look_later()
        for _, kept in old:
            kept.transport.quit()


class PooledTransport:
    """Sends over an idle connection or a new one; see `delivery.Transport`."""

    def __init__(self, pool: SmtpPool, key: Key, envelope_id: str) -> None:
        self._pool = pool
        self._key = key
        self._envelope_id = envelope_id

    def send(self, sender: str, recipients: Sequence[str], raw: bytes, before_final_dot: Callable[[], None]) -> SendReport:
        """As `SmtpTransport.send`, and raises what opening a connection raises.

        A kept connection that turns out to be gone is replaced once, as long as the mark before the dot was not reached.
        """
        is_marked = False

        def mark() -> None:
            nonlocal is_marked
            is_marked = True
            before_final_dot()

        kept = self._pool.take(self._key)
        if kept is not None:
            try:
                return self._over(kept, sender, recipients, raw, mark)
            except (ConnectionFailed, ServerUnavailable):
                if is_marked:
                    raise
        return self._over(self._pool.opened(self._key), sender, recipients, raw, mark)

    def _over(self, kept: _Kept, sender: str, recipients: Sequence[str], raw: bytes, mark: Callable[[], None]) -> SendReport:
        transport = kept.transport
        transport.envelope_id = self._envelope_id
        try:
            report = transport.send(sender, recipients, raw, mark)
        except Exception:
            self._pool.give_back(self._key, kept)  # whatever it was: the pool keeps it only if the session was reset
            raise
        except BaseException:  # no error of the server's: nobody knows where in the session it struck
            transport.close()
            raise
        self._pool.give_back(self._key, kept)
        return report
