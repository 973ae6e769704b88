"""Many runs in one request, as a JSON array or as NDJSON: good ones are recorded together, bad ones get a problem in their place."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError

from api.auth import Acting, ActingNow, AuthenticatedRoute
from api.bodies import unstorable
from api.problems import Problem, entry_of
from api.routes.tasks import IdempotencyKey, TaskRequest, split_owner, unquoted
from api.shapes import Shape, href_of
from core.errors import InvalidInputError, MailroomError
from runs.batch import Enqueued, Item, enqueue_batch

PATH = "/api/tasks/batch"
LARGEST = 8 * 2**20
MOST_ITEMS = 10_000
LONGEST_KEY = 240
NDJSON = {"application/x-ndjson", "application/ndjson", "application/jsonl"}
BODY = {
    "content": {
        "application/json": {"schema": {"type": "array", "maxItems": MOST_ITEMS, "items": {"$ref": "#/components/schemas/TaskRequest"}}},
        "application/x-ndjson": {"schema": {"type": "string", "description": "A TaskRequest on each line."}},
    },
    "required": True,
}


class BatchRoute(AuthenticatedRoute):
    """An authenticated route whose body is a list; an item that is an error was none."""

    async def check(self, request: Request) -> None:
        """Raises Problem 400, 413, 415 or 422."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await request.body()
        if kind in NDJSON:
            items = [_line(number, line) for number, line in enumerate(body.splitlines(), 1) if line.strip()]
        elif kind == "application/json":
            items = _array(body)
        else:
            raise Problem(
                415, "unsupported_media_type", "Send a JSON array (application/json) or one object a line (application/x-ndjson)."
            )
        if len(items) > MOST_ITEMS:
            raise Problem(413, "too_many_items", f"A batch has at most {MOST_ITEMS:,} items; this one has {len(items):,}.")
        if not items:
            raise Problem(422, "invalid_input", "The batch is empty.")
        request.state.items = items


class Batch(Shape):
    """One entry for each item, in their order: as `POST /api/tasks` answers it, or a problem with its `status`."""

    items: list[dict[str, Any]]
    accepted: int
    refused: int


router = APIRouter(route_class=BatchRoute, tags=["tasks"])


@router.post(PATH, status_code=202, openapi_extra={"requestBody": BODY})
def enqueue_tasks(request: Request, acting: ActingNow, idempotency_key: IdempotencyKey = None) -> Batch:
    """Record many runs. With an Idempotency-Key a repeated request gives the same runs, item by item."""
    key = unquoted(idempotency_key)
    if key is not None and len(key) > LONGEST_KEY:
        raise InvalidInputError(f"The Idempotency-Key of a batch has at most {LONGEST_KEY} characters.")
    entries: dict[int, dict[str, Any]] = {}
    owners: dict[tuple[str | None, str | None], dict[int, Item]] = {}
    for place, item in enumerate(request.state.items):
        try:
            owner, call = _call(item, f"{key}#{place}" if key else None)
        except (MailroomError, ValidationError) as error:
            entries[place] = entry_of(error)
        else:
            owners.setdefault(owner, {})[place] = call
    for owner, calls in owners.items():
        entries |= _enqueued(acting, owner, calls)
    answered = [entries[place] for place in sorted(entries)]
    accepted = sum("taskId" in entry for entry in answered)
    return Batch(items=answered, accepted=accepted, refused=len(answered) - accepted)


def _call(item: Any, key: str | None) -> tuple[tuple[str | None, str | None], Item]:
    if isinstance(item, MailroomError):
        raise item
    if (flaw := unstorable(item)) is not None:
        raise InvalidInputError(flaw)
    asked = TaskRequest.model_validate(item)
    tenant, user, arguments = split_owner({"tenant_id": asked.tenant_id, "user_id": asked.user_id, **asked.args})
    return (tenant, user), Item(asked.task, arguments, asked.options.model_dump(exclude_none=True), key)


def _enqueued(acting: Acting, owner: tuple[str | None, str | None], calls: dict[int, Item]) -> dict[int, dict[str, Any]]:
    """Place to entry."""
    try:
        acting = acting.narrowed_to(*owner)
    except MailroomError as error:
        return dict.fromkeys(calls, entry_of(error))
    with acting.session() as session:
        outcomes = enqueue_batch(session, list(calls.values()))
    return dict(zip(calls, map(_entry, outcomes), strict=True))


def _entry(outcome: Enqueued | MailroomError) -> dict[str, Any]:
    if isinstance(outcome, MailroomError):
        return entry_of(outcome)
    facts = {"status": outcome.state.lower(), "state": outcome.state, "queue": outcome.queue}
    return {"taskId": outcome.run_id, **facts, "href": href_of(outcome.run_id)}


def _line(number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return InvalidInputError(f"Line {number} is not well-formed JSON.")


def _array(body: bytes) -> list[Any]:
    try:
        items = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(400, "malformed_json", "The body is not well-formed JSON.") from None
    if not isinstance(items, list):
        raise Problem(422, "invalid_input", "The body must be a JSON array, or NDJSON.")
    return items
