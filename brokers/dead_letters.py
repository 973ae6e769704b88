"""What lies among a queue's dead letters: messages with the reason why, for people to look at and to move back.

On RabbitMQ a native dead letter has `x-death`, and a copy that Mailroom made has `x-mailroom-reason`. A Redis list has no headers,
so a dead letter there is wrapped: JSON with the reason, when, and the message as it came.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

REASON = "x-mailroom-reason"
DIED_AT = "x-mailroom-died-at"
_WRAPPED = b'{"x-mailroom-reason":'


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter. `died_at` in seconds since the epoch; reason and time are None where nobody noted them."""

    body: bytes
    reason: str | None = None
    died_at: float | None = None


def was_dead(headers: Mapping[str, Any]) -> bool:
    """Whether a message with these AMQP headers lay among the dead letters before."""
    return REASON in headers or "x-death" in headers


def reasoned(reason: str) -> dict[str, Any]:
    """The headers of a copy for the dead letters."""
    return {REASON: reason, DIED_AT: int(time.time())}


def from_headers(body: bytes, headers: Mapping[str, Any]) -> DeadLetter:
    """A dead letter of RabbitMQ: our own reason, or the broker's (`rejected`, `expired`...)."""
    deaths = headers.get("x-death")
    latest = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
    if REASON in headers:
        reason, when = headers[REASON], headers.get(DIED_AT)
    else:
        reason, when = latest.get("reason"), latest.get("time")
    if isinstance(when, datetime):
        when = when.replace(tzinfo=UTC).timestamp()  # pika's are naive and UTC
    return DeadLetter(body, None if reason is None else str(reason), float(when) if isinstance(when, int | float) else None)


def wrap(body: bytes, reason: str | None) -> bytes:
    """A dead letter for a Redis list: `{"x-mailroom-reason", "died_at", "body"}`, or `"base64"` for what is not UTF-8."""
    fields: dict[str, Any] = {REASON: reason, "died_at": round(time.time(), 3)}
    try:
        fields["body"] = body.decode()
    except UnicodeDecodeError:
        fields["base64"] = base64.b64encode(body).decode()
    return orjson.dumps(fields)


def unwrap(text: bytes) -> DeadLetter | None:
    """The dead letter in what lies in a Redis list; None for a message that was never wrapped."""
    if not text.startswith(_WRAPPED):
        return None
    try:
        fields = orjson.loads(text)
        body = fields["body"].encode() if "body" in fields else base64.b64decode(fields["base64"], validate=True)
        return DeadLetter(body, fields[REASON], fields.get("died_at"))
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
