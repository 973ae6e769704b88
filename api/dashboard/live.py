"""One stream of server-sent events for a page: the regions that changed, at most once a second.

Viewers who look at the same thing as the same identity share one look at the database. A look that took long is not repeated
soon, so that an overview of millions of runs does not become their load.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from api.dashboard.regions import Regions, regions_of
from api.dashboard.sessions import PageRoute, Viewer, get_viewer, viewer_of
from core.errors import MailroomError
from core.logging import get_logger

log = get_logger(__name__)
EVERY_SECONDS = 1.0
REST_FACTOR = 10
"""A look that takes a second is repeated after ten."""

HEARTBEAT_SECONDS = 15.0
SESSION_SECONDS = 5.0
GOODBYE = "event: goodbye\ndata: {}\n\n"
HEADERS = {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}


@dataclass
class Look:
    """What a page last looked like, for whoever may see the same."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    taken_at: float = float("-inf")
    rest: float = EVERY_SECONDS
    regions: Regions = field(default_factory=dict)
    viewers: int = 0


class LiveRoute(PageRoute):
    """Without a session the stream says goodbye: an EventSource cannot follow a redirect to the login."""

    def without_session(self, request: Request) -> Response:
        """A stream of one event."""
        return Response(GOODBYE, media_type="text/event-stream", headers=HEADERS)


router = APIRouter(route_class=LiveRoute, include_in_schema=False)


@router.get("/live")
async def live(request: Request) -> StreamingResponse:
    """The regions of the page that the query names."""
    return StreamingResponse(stream(request, get_viewer(request)), media_type="text/event-stream", headers=HEADERS)


async def stream(request: Request, viewer: Viewer) -> AsyncIterator[str]:
    """Until the browser goes, the session ends or the server stops."""
    looks: dict[object, Look] = request.app.state.looks
    key = (viewer.acting.identity, viewer.is_admin, str(sorted(request.query_params.items())))
    look = looks.setdefault(key, Look())
    look.viewers += 1
    try:
        yield "retry: 2000\n\n"
        async for event in _events(request, viewer, look):
            yield event
    finally:
        look.viewers -= 1
        if look.viewers == 0:
            looks.pop(key, None)


async def _events(request: Request, viewer: Viewer, look: Look) -> AsyncIterator[str]:
    sent: Regions = {}
    spoke_at = checked_at = time.monotonic()
    number = 0
    while not request.app.state.stopping.is_set():
        if time.monotonic() - checked_at > SESSION_SECONDS:
            checked_at = time.monotonic()
            if await run_in_threadpool(viewer_of, viewer.acting.engine, viewer.token) is None:
                yield GOODBYE
                return
        fresh = await _fresh(request, viewer, look)
        changed = {name: html for name, html in fresh.items() if sent.get(name) != html}
        if changed:
            number, sent, spoke_at = number + 1, fresh, time.monotonic()
            yield f"id: {number}\nevent: regions\ndata: {orjson.dumps({name: str(html) for name, html in changed.items()}).decode()}\n\n"
        elif time.monotonic() - spoke_at > HEARTBEAT_SECONDS:
            spoke_at = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(EVERY_SECONDS)


async def _fresh(request: Request, viewer: Viewer, look: Look) -> Regions:
    """A look at the database, or the one another viewer just took. Keeps the last while the database cannot be reached."""
    async with look.lock:
        began = time.monotonic()
        if began - look.taken_at >= look.rest * 0.9:
            try:
                look.regions = await run_in_threadpool(regions_of, viewer, request.query_params)
            except MailroomError as error:
                log.warning("live_look_failed", error=type(error).__name__)
            look.taken_at = time.monotonic()
            look.rest = max(EVERY_SECONDS, (look.taken_at - began) * REST_FACTOR)
        return look.regions
