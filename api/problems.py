"""Every error as application/problem+json (RFC 9457): what went wrong in one sentence, and nothing internal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from core.errors import ConflictError, InvalidInputError, MailroomError, NotFoundError, TenantError, UnavailableError
from core.logging import get_logger
from runs.sweep import CountChangedError

log = get_logger(__name__)
STATUS_OF: tuple[tuple[type[MailroomError], int], ...] = (
    (InvalidInputError, 422),
    (NotFoundError, 404),
    (ConflictError, 409),
    (TenantError, 403),
    (UnavailableError, 503),
)
SENTENCES = {
    404: "There is nothing at this address.",
    405: "This address does not take that method; the Allow header names those it takes.",
    413: "The body is larger than this address takes.",
    500: "Something went wrong on our side; the request id leads to it in the logs.",
}
RETRY_SECONDS = 5


class Problem(HTTPException):
    """An error that is an answer already. `code` is its stable, machine-readable name."""

    def __init__(self, status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.code = code


def install(app: FastAPI) -> None:
    """Makes the application answer every error in this form."""
    app.add_exception_handler(MailroomError, _mailroom_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


def problem(request: Request, status: int, code: str, detail: str, **more: Any) -> Response:
    """The answer. `headers`, `errors` and `facts` (members of its own) are optional."""
    headers = dict(more.get("headers") or {})
    page = getattr(request.app.state, "error_page", None)
    if page is not None and wants_a_page(request):
        answer: Response = page(request, status, detail)
        answer.headers.update(headers)
        return answer
    content = {
        "type": f"urn:mailroom:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": request.url.path,
        "requestId": getattr(request.state, "request_id", None),
    }
    if more.get("errors"):
        content["errors"] = more["errors"]
    content |= more.get("facts") or {}
    return JSONResponse(content, status, headers, media_type="application/problem+json")


def wants_a_page(request: Request) -> bool:
    """Whether a person in a browser looks at this, and not a program."""
    path = request.url.path
    return not path.startswith(("/api/", "/health", "/openapi")) and "text/html" in request.headers.get("accept", "")


def entry_of(error: MailroomError | ValidationError) -> dict[str, Any]:
    """What stands in the place of one bad item among good ones."""
    if isinstance(error, MailroomError):
        status = next((status for kind, status in STATUS_OF if isinstance(error, kind)), 500)
        code, detail = (error.code, str(error)) if status != 500 else ("internal", SENTENCES[500])
    else:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        status, code, detail = 422, "invalid_input", _sentence({**first, "loc": ("body", *first["loc"])})
    return {"type": f"urn:mailroom:problem:{code}", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}


def internal_error(request: Request) -> Response:
    """The 500 that says nothing."""
    return problem(request, 500, "internal", SENTENCES[500])


def _mailroom_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MailroomError)
    for kind, status in STATUS_OF:
        if isinstance(error, kind):
            headers = {"Retry-After": str(round(error.retry_after or RETRY_SECONDS))} if isinstance(error, UnavailableError) else {}
            facts = {"count": error.count} if isinstance(error, CountChangedError) else {}
            return problem(request, status, error.code, str(error), headers=headers, facts=facts)
    log.error("request_failed", exc_info=error)
    return internal_error(request)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = error.code if isinstance(error, Problem) else HTTPStatus(error.status_code).name.lower()
    detail = str(error.detail) if isinstance(error, Problem) else SENTENCES.get(error.status_code, str(error.detail))
    return problem(request, error.status_code, code, detail, headers=error.headers)


def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    return problem(request, 422, "invalid_input", _sentence(found[0]), errors=[_one(each) for each in found[:20]])


def _one(error: Mapping[str, Any]) -> dict[str, str]:
    pointer = "/".join(str(part).replace("~", "~0").replace("/", "~1")[:100] for part in error["loc"])
    return {"pointer": f"#/{pointer}", "detail": _plain(str(error["msg"]))}


def _sentence(error: Mapping[str, Any]) -> str:
    place, where = _place(error["loc"])
    if error["type"] == "missing":
        return f"{place} is required{where}." if place != "The body" else "A JSON object is required as the body."
    if error["type"] == "extra_forbidden":
        return f"{place} is not known{where}; remove it."
    text = _plain(str(error["msg"]))
    if place == "The body":
        return f"{text[:1].upper()}{text[1:]}." if error["type"] == "value_error" else "The body must be a JSON object."
    return f"{place}{where} is wrong: {text[:1].lower()}{text[1:]}."


def _place(location: Sequence[Any]) -> tuple[str, str]:
    names = [str(part)[:80] for part in location]
    if len(names) < 2:
        return "The body", ""
    kind = {"query": " in the query", "path": " in the path", "header": " in the headers"}.get(names[0], "")
    return ".".join(names[1:]), kind


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ").rstrip(".")
