"""How large a body may be, judged by its declared length before a byte is read, and by what arrives when none is declared."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import Problem, problem


class BodyLimit:
    """`limits` are bytes by path; every other path has `default`."""

    def __init__(self, app: ASGIApp, default: int, limits: Mapping[str, int]) -> None:
        self._app = app
        self._default = default
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limits.get(scope["path"], self._default)
        sentence = f"The body may have at most {limit // 1024} KiB here."
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            answer = problem(Request(scope), 413, "content_too_large", sentence, headers={"Connection": "close"})
            await answer(scope, receive, send)
            return
        arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > limit:
                raise Problem(413, "content_too_large", sentence, headers={"Connection": "close"})
            return message

        await self._app(scope, counted, send)
