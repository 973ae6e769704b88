"""Logins that a server refuses again and again: repeating them locks people out, so the third in a row is the last for a while.

Known to one process only; other credentials are another login.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from mail.errors import AuthenticationRefused

MOST_REFUSALS = 3
_MOST_KNOWN = 1000


class RefusedLogins:
    """Thread-safe. A login is whatever tells it from others: its account and all that it says."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._refusals: dict[Hashable, tuple[int, float]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def tried(self, login: Hashable, where: str) -> Iterator[None]:
        """Around a login. Raises AuthenticationRefused instead of trying one that was refused three times in the last `seconds`."""
        with self._lock:
            count, since = self._refusals.get(login, (0, 0.0))
        if count >= MOST_REFUSALS and time.monotonic() - since < self._seconds:
            raise AuthenticationRefused(f"{where} refused this login three times in a row; it is not tried again for some time.")
        try:
            yield
        except AuthenticationRefused:
            self._note(login, count + 1)
            raise
        if count:
            with self._lock:
                self._refusals.pop(login, None)

    def _note(self, login: Hashable, count: int) -> None:
        with self._lock:
            self._refusals.pop(login, None)
            self._refusals[login] = count, time.monotonic()
            if len(self._refusals) > _MOST_KNOWN:  # the oldest
                del self._refusals[next(iter(self._refusals))]
