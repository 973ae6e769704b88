"""The outbox, read only."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.auth import ActingNow
from api.bodies import JsonRoute
from api.mail_shapes import OutboundPage, OutboundSummary, OutboundView
from core.errors import InvalidInputError
from runs.control import cursor_after, parse_cursor
from storage.repositories.mail_views import MailViews
from storage.repositories.outbound import OutboundEmails
from storage.states import OutboundStatus

router = APIRouter(route_class=JsonRoute, tags=["outbox"])


@router.get("/api/outbound-emails")
def list_outbound(
    acting: ActingNow,
    *,
    status: Annotated[str | None, Query(max_length=20)] = None,
    cursor: Annotated[str | None, Query(max_length=300)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> OutboundPage:
    """Mails on their way out, the newest first."""
    if status and status not in list(OutboundStatus):
        raise InvalidInputError(f"A status is one of {', '.join(OutboundStatus)}.")
    with acting.session() as session:
        found = MailViews(session).outbound(status or None, before=parse_cursor(cursor), limit=limit + 1)
    following = cursor_after(found[limit - 1].created_at, found[limit - 1].id) if len(found) > limit else None
    return OutboundPage(items=[OutboundSummary.model_validate(row) for row in found[:limit]], next_cursor=following)


@router.get("/api/outbound-emails/{email_id}")
def get_outbound(email_id: str, acting: ActingNow) -> OutboundView:
    """One mail and what the server said of each recipient."""
    with acting.session() as session:
        emails = OutboundEmails(session)
        return OutboundView.whole(emails.one(email_id), emails.recipients(email_id))
