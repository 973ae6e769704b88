"""Callers that were looked up a moment ago, so that one who asks fifty times a second is looked up once a second.

A key that is revoked, and a tenant or user that is switched off, therefore work on for FRESH_SECONDS at the longest. Only good callers are
remembered, under a digest of their key; a wrong key is looked up each time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

FRESH_SECONDS = 1.0
MOST = 1000
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says of its caller: the whole of what a look-up depends on."""

    key: bytes
    tenant: str | None
    user: str | None

    @classmethod
    def by(cls, key: str, tenant: str | None, user: str | None) -> Asked:
        """Of a key only the digest is kept."""
        return cls(hashlib.sha256(key.encode()).digest(), tenant, user)


class KnownCallers(Generic[C]):
    """For one thread, the event loop's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock
        self._known: dict[Asked, tuple[float, C]] = {}  # the oldest first

    def find(self, asked: Asked) -> C | None:
        """Whoever it was, if that is still fresh."""
        since, caller = self._known.get(asked, (0.0, None))
        return caller if caller is not None and self.now() < since + FRESH_SECONDS else None

    def remember(self, asked: Asked, caller: C, since: float) -> None:
        """`since`: when the look-up began; what was changed after that moment it may not have seen."""
        self._known.pop(asked, None)
        while self._known and (len(self._known) >= MOST or self._oldest() + FRESH_SECONDS <= since):
            del self._known[next(iter(self._known))]
        self._known[asked] = (since, caller)

    def _oldest(self) -> float:
        return next(iter(self._known.values()))[0]
