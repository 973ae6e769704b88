"""Wall-clock time, always aware and in UTC. Durations are measured with `time.monotonic`, never with this."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


def epoch_ms() -> int:
    """Milliseconds since the epoch, the form in which results carry timestamps."""
    return time.time_ns() // 1_000_000


def to_epoch_ms(moment: datetime) -> int:
    """An aware datetime in milliseconds since the epoch."""
    return int(moment.timestamp() * 1000)
