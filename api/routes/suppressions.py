"""Addresses that a tenant does not write to."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from pydantic import Field

from api.auth import ActingNow
from api.bodies import JsonRoute
from api.outbound_shapes import Request, Typed
from api.shapes import Shape
from core.errors import TenantError
from mail.addresses import normalise_address
from runs.control import cursor_after, parse_cursor
from storage.repositories.suppressions import Suppressions

router = APIRouter(route_class=JsonRoute, tags=["outbox"])


class NewSuppression(Request):
    """An address that is not written to any more, and why."""

    address: Typed
    reason: Literal["bounce", "complaint", "manual"] = "manual"
    detail: Annotated[str, Field(max_length=1000)] | None = None


class SuppressionView(Shape):
    """As recorded."""

    id: str
    address: str
    reason: str
    detail: str | None
    created_at: datetime


class SuppressionPage(Shape):
    """A page of the list, newest first."""

    items: list[SuppressionView]
    next_cursor: str | None


@router.get("/api/suppressions")
def list_suppressions(
    acting: ActingNow, cursor: Annotated[str | None, Query(max_length=300)] = None, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> SuppressionPage:
    """The suppressed addresses, the newest first."""
    with acting.session() as session:
        found = Suppressions(session).page(before=parse_cursor(cursor), limit=limit + 1)
    following = cursor_after(found[limit - 1].created_at, found[limit - 1].id) if len(found) > limit else None
    return SuppressionPage(items=[SuppressionView.model_validate(row) for row in found[:limit]], next_cursor=following)


@router.post("/api/suppressions", status_code=201)
def add_suppression(body: NewSuppression, acting: ActingNow) -> SuppressionView:
    """Do not write to an address any more; mails that wait for it count, too. Twice is fine."""
    if acting.identity.is_system:
        raise TenantError("A suppressed address belongs to a tenant; name it in X-Tenant-Id.")
    address = normalise_address(body.address)
    with acting.session() as session:
        return SuppressionView.model_validate(Suppressions(session).add(acting.identity.tenant_id, address, body.reason, body.detail))


@router.delete("/api/suppressions/{name}", status_code=204, response_class=Response)
def remove_suppression(name: str, acting: ActingNow) -> None:
    """Write to an address again; by its id or itself."""
    with acting.session() as session:
        Suppressions(session).remove(name)
