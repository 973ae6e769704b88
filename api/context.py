"""The outermost layer: a request id for everything that happens, one log line, security headers, and no error that escapes.

Plain ASGI, because what it binds has to be seen by the route, which runs in a thread with a copy of this context.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

import structlog
from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import internal_error, problem
from core.ids import new_id
from core.logging import get_logger

log = get_logger("mailroom.access")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer a browser posts forms with "Origin: null"
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

STANDARD_HEADERS = [(name.lower().encode(), value.encode()) for name, value in {**SECURITY_HEADERS, "Cache-Control": "no-store"}.items()]
"""Of every answer that does not say otherwise, in ASGI's form."""


class RequestContext:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Binds, calls, logs."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        seen = _Answer(request_id, send)
        started = time.monotonic()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._answer(scope, receive, seen)
            finally:
                log.info("request", **_facts(scope, seen, started))

    async def _answer(self, scope: Scope, receive: Receive, seen: _Answer) -> None:
        request = Request(scope, receive)
        if b"%00" in scope.get("raw_path", b"") + scope["query_string"]:
            refused = problem(request, 422, "invalid_input", "The address contains a NUL character.")
            await refused(scope, receive, seen.send)
            return
        try:
            await self._app(scope, receive, seen.send)
        except Exception as error:  # the last resort: whatever it is, the caller gets an answer that says nothing
            log.error("request_failed", exc_info=error)
            if seen.status is None:
                await internal_error(request)(scope, receive, seen.send)


class _Answer:
    """Passes the answer on and remembers its status."""

    def __init__(self, request_id: str, send: Send) -> None:
        self.status: int | None = None
        self._request_id = request_id
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            present = {name for name, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                (b"x-request-id", self._request_id.encode()),
                *(header for header in STANDARD_HEADERS if header[0] not in present),
            ]
        await self._send(message)


def request_id_of(headers: Mapping[str, str]) -> str:
    """The caller's own id if it is well-formed, else its trace's, else a new one."""
    given = headers.get("x-request-id", "")
    if REQUEST_ID.fullmatch(given):
        return given
    trace = TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return trace.group(1) if trace and trace.group(1).strip("0") else new_id()


def _facts(scope: Scope, seen: _Answer, started: float) -> dict[str, object]:
    """The route's template, never the path or the query: those hold ids and search words."""
    facts: dict[str, object] = {
        "method": scope["method"],
        "route": getattr(scope.get("route"), "path", "unknown"),
        "status": seen.status or 499,
        "duration_ms": round((time.monotonic() - started) * 1000, 1),
    }
    if tenant_id := scope["state"].get("tenant_id"):
        facts["tenant_id"] = tenant_id
    return facts
