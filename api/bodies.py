"""What is checked of every JSON body before it is looked at: that it is JSON, and that the database can keep it."""

from __future__ import annotations

import math
from typing import Any

from fastapi import Request

from api.auth import AuthenticatedRoute
from api.problems import Problem

INTEGERS = range(-(2**63), 2**63)
DEEPEST = 100


class JsonRoute(AuthenticatedRoute):
    """An authenticated route whose body, if it has one, is sound JSON."""

    async def check(self, request: Request) -> None:
        """Raises Problem 415, 400 or 422."""
        await check_json(request)


async def check_json(request: Request) -> None:
    """Raises Problem 415, 400 or 422. FastAPI uses what was parsed here again."""
    if not await request.body():
        return
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Problem(415, "unsupported_media_type", "Send JSON with Content-Type: application/json.")
    try:
        flaw = unstorable(await request.json())
    except (ValueError, RecursionError):
        raise Problem(400, "malformed_json", "The body is not well-formed JSON.") from None
    if flaw is not None:
        raise Problem(422, "invalid_input", flaw)


def unstorable(value: Any, depth: int = 0) -> str | None:
    """Why a parsed value cannot be recorded, or None. JSON allows what PostgreSQL and UTF-8 do not."""
    if isinstance(value, str):
        return _flaw_of_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN and Infinity are not JSON numbers."
    if isinstance(value, int) and value not in INTEGERS:
        return "A number is larger than 64 bits."
    if not isinstance(value, dict | list):
        return None
    if depth == DEEPEST:
        return f"The body is nested more than {DEEPEST} levels deep."
    inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    return next((flaw for each in inner if (flaw := unstorable(each, depth + 1))), None)


def _flaw_of_text(text: str) -> str | None:
    if "\x00" in text:
        return "A text contains a NUL character."
    try:
        text.encode()
    except UnicodeEncodeError:
        return "A text contains half of a surrogate pair."
    return None
