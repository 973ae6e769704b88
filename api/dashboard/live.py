"""One stream of server-sent events for a page: the regions that changed, at most once a second."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from api.dashboard.regions import regions_of
from api.dashboard.sessions import PageRoute, Viewer, get_viewer, viewer_of
from api.events import HEADERS, Found, changes, event_of, streamed, with_heartbeat

SESSION_SECONDS = 5.0
GOODBYE = event_of("goodbye", {})


class LiveRoute(PageRoute):
    """Without a session the stream says goodbye: an EventSource cannot follow a redirect to the login."""

    def without_session(self, request: Request) -> Response:
        """A stream of one event."""
        return Response(GOODBYE, media_type="text/event-stream", headers=HEADERS)


router = APIRouter(route_class=LiveRoute, include_in_schema=False)


@router.get("/live")
async def live(request: Request) -> StreamingResponse:
    """The regions of the page that the query names."""
    return streamed(stream(request, get_viewer(request)))


def stream(request: Request, viewer: Viewer) -> AsyncIterator[str]:
    """Until the browser goes, the session ends or the server stops."""
    return with_heartbeat(_events(request, viewer))


async def _events(request: Request, viewer: Viewer) -> AsyncIterator[str]:
    def ask(_before: Found) -> Found:
        return {name: str(html) for name, html in regions_of(viewer, request.query_params).items()}

    key = (viewer.acting.identity, viewer.is_admin, str(sorted(request.query_params.items())))
    checked_at = time.monotonic()
    number = 0
    async for changed in changes(request, key, ask):
        if time.monotonic() - checked_at > SESSION_SECONDS:
            checked_at = time.monotonic()
            if await run_in_threadpool(viewer_of, viewer.acting.engine, viewer.token) is None:
                yield GOODBYE
                return
        number += bool(changed)
        yield event_of("regions", changed, number) if changed else ""
