"""What an outside engine is to us, what it may be told of a message, and when it is not asked for a while."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from core.errors import TransientError
from mail.spam.verdict import EngineScore

MAX_SENT = 2 * 2**20
"""Bytes of a message that an engine is given; it is not asked about a larger one, as spamc does not ask about one above 500 kB."""
MAX_ANSWER = 2**20


class EngineUnavailable(TransientError):  # noqa: N818
    """The engine cannot be reached, answers too late, or not as it should."""

    code = "engine_unavailable"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What is known beside the message. `user` is the tenant's id, for engines that learn by user, and never an address."""

    user: str
    sender: str = ""
    recipients: tuple[str, ...] = ()


class Engine(Protocol):
    """An outside engine. Everything raises EngineUnavailable when it does not answer."""

    name: str

    def scan(self, source: bytes, envelope: Envelope) -> EngineScore:
        """What it says of a message."""
        ...

    def learn(self, source: bytes, envelope: Envelope, *, is_spam: bool) -> None:
        """Tells it what a message is. What it knows already is no error."""
        ...


class Breaker:
    """After `failures` in a row an engine is left alone for `seconds`; then one caller probes while the others still do not ask."""

    def __init__(self, failures: int = 3, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = failures
        self._seconds = seconds
        self._clock = clock
        self._failures = 0
        self._closed_until = 0.0
        self._lock = threading.Lock()

    def may_ask(self) -> bool:
        """Whether to ask now. Whoever gets a yes says how it went."""
        with self._lock:
            if self._failures < self._limit:
                return True
            if self._clock() < self._closed_until:
                return False
            self._closed_until = self._clock() + self._seconds  # this one probes
            return True

    def succeeded(self) -> None:
        """It answered."""
        with self._lock:
            self._failures = 0

    def failed(self) -> None:
        """It did not."""
        with self._lock:
            self._failures += 1
            self._closed_until = self._clock() + self._seconds


def header_safe(value: str) -> str | None:
    """The value as it can stand in a protocol's header; None for one that cannot."""
    return value if value and len(value) <= 500 and re.fullmatch(r"[!-~]+", value) else None
