"""Server-sent events: looks at the database at most once a second, shared by everybody who may see the same, and what changed since.

A look that took long is not repeated soon, so that a view of millions of runs does not become their load.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from core.errors import MailroomError, NotFoundError
from core.logging import get_logger

log = get_logger(__name__)
EVERY_SECONDS = 1.0
REST_FACTOR = 10
"""A look that takes a second is repeated after ten."""

HEARTBEAT_SECONDS = 15.0
HEARTBEAT = ": still here\n\n"
RETRY = "retry: 2000\n\n"
HEADERS = {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}
Found = Mapping[str, Any]
Ask = Callable[[Found], Found]
"""Looks, given what the last look found."""


@dataclass
class Look:
    """What was there the last time, for whoever may see the same."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    taken_at: float = float("-inf")
    rest: float | None = None
    found: Found = field(default_factory=dict)
    viewers: int = 0


async def changes(request: Request, key: object, ask: Ask) -> AsyncIterator[Found]:
    """What is new or different, by name, once a second and often nothing; until the server stops. Who gives the same key shares."""
    looks: dict[object, Look] = request.app.state.looks
    look = looks.setdefault(key, Look())
    look.viewers += 1
    sent: Found = {}
    try:
        while not request.app.state.stopping.is_set():
            found = await fresh(look, ask)
            yield {name: value for name, value in found.items() if sent.get(name) != value}
            sent = found
            await asyncio.sleep(EVERY_SECONDS)
    finally:
        look.viewers -= 1
        if look.viewers == 0:
            looks.pop(key, None)


async def fresh(look: Look, ask: Ask) -> Found:
    """A look of our own, or the one another viewer just took. Keeps the last while the database cannot be reached."""
    async with look.lock:
        began = time.monotonic()
        if began - look.taken_at >= (EVERY_SECONDS if look.rest is None else look.rest) * 0.9:
            try:
                look.found = await run_in_threadpool(ask, look.found)
            except NotFoundError:
                look.found = {}
            except MailroomError as error:
                log.warning("live_look_failed", error=type(error).__name__)
            look.taken_at = time.monotonic()
            look.rest = max(EVERY_SECONDS, (look.taken_at - began) * REST_FACTOR)
        return look.found


async def with_heartbeat(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """Says now and then that the stream lives. An empty text is a moment in which nothing happened."""
    yield RETRY
    spoke_at = time.monotonic()
    async for event in events:
        if event or time.monotonic() - spoke_at > HEARTBEAT_SECONDS:
            spoke_at = time.monotonic()
            yield event or HEARTBEAT


def event_of(name: str, data: Any, number: int | None = None) -> str:
    """One event as it is sent."""
    head = f"id: {number}\n" if number is not None else ""
    return f"{head}event: {name}\ndata: {orjson.dumps(data).decode()}\n\n"


def streamed(events: AsyncIterator[str]) -> StreamingResponse:
    """The response of a stream."""
    return StreamingResponse(events, media_type="text/event-stream", headers=HEADERS)
