"""Identifiers: time-ordered, so that new rows land on the same index pages and lists sort by age."""

from __future__ import annotations

import os
import time
import uuid


def new_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7) in its canonical text form."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return str(uuid.UUID(int=value))


def is_id(text: str) -> bool:
    """Whether the text is a UUID in canonical form; anything else is an unknown id, never an error."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
