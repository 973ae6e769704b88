"""Manners towards mail servers: one that asks for patience gets it, one that does not answer gets a pause from all accounts on it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import Snooze
from mail.accounts import Endpoint
from mail.errors import ConnectionFailed, ServerThrottled, ServerUnavailable
from storage import mail_hosts
from storage.engine import get_engine, system_connection

THROTTLED_SECONDS = 60.0
KNOWN_WELL_SECONDS = 20.0
"""For so long after an answer this process does not ask the record whether the server has a pause."""

_well: dict[str, float] = {}
_lock = threading.Lock()


@contextmanager
def talking_to(endpoint: Endpoint, *, throttling_counts: bool = False) -> Iterator[None]:
    """Around everything that is said to a server. Raises Snooze while the server has a pause, and instead of ServerThrottled (unless
    that is counted by the caller): waiting spends no attempt."""
    where = endpoint.where
    failures = _admitted(where)
    try:
        yield
    except ServerThrottled as error:
        if throttling_counts:
            raise
        raise Snooze(_spread(error.retry_after or THROTTLED_SECONDS), str(error)) from error
    except (ConnectionFailed, ServerUnavailable) as error:
        with _lock:
            _well.pop(where, None)
        with system_connection(get_engine()) as connection:
            mail_hosts.failed(connection, where, error.code)
        raise
    if failures:
        with system_connection(get_engine()) as connection:
            mail_hosts.answered(connection, where)
    with _lock:
        _well[where] = time.monotonic()


def _admitted(where: str) -> int:
    """How often in a row the server has failed. Raises Snooze while it has a pause."""
    with _lock:
        if time.monotonic() - _well.get(where, -KNOWN_WELL_SECONDS) < KNOWN_WELL_SECONDS:
            return 0
    with system_connection(get_engine()) as connection:
        seconds, failures = mail_hosts.closed_for(connection, where)
    if seconds:
        raise Snooze(_spread(seconds), f"{where} did not answer lately; it is asked again after a pause.")
    return failures


def _spread(seconds: float) -> float:
    """Not everybody at the same moment."""
    return seconds * random.uniform(1.0, 1.2)  # noqa: S311  (no secret)
