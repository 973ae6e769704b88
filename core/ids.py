"""Identifiers: time-ordered, so that new rows land on the same index pages and lists sort by age."""

from __future__ import annotations

import os
import time
import uuid


def new_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7) in its canonical text form.

    Behind the milliseconds stands their fraction in steps of 244 ns (section 6.2, method 3): what a thread makes one after the other
    sorts in that order, without a counter that threads would have to share.
    """
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = (nanoseconds << 12) // 1_000_000
    noise = int.from_bytes(os.urandom(8), "big") >> 2
    value = milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | noise
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def is_id(text: str) -> bool:
    """Whether the text is a UUID in canonical form; anything else is an unknown id, never an error."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
