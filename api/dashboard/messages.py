"""A stored message as its own people look at it: its text, what the spam check said of it, and the buttons to say otherwise."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from api.dashboard.sessions import FromHere, PageRoute, Viewer, ViewerNow
from api.dashboard.templating import render
from api.routes.spam import say, take_back
from api.spam_shapes import NewFeedback
from core.errors import NotFoundError
from storage.repositories.email_clients import EmailClients
from storage.repositories.mail_views import MailViews
from storage.repositories.spam_feedback import SpamFeedbacks
from storage.repositories.spam_verdicts import SpamVerdicts

router = APIRouter(route_class=PageRoute, include_in_schema=False)
LONGEST_TEXT = 20_000
Opinion = Annotated[Literal["yes", "no", "undo"], Form()]


@router.get("/mail/{message_id}")
def message(message_id: str, viewer: ViewerNow) -> Response:
    """One message. Operators see none: mail is for the tenant's own people."""
    _only_for_its_people(viewer)
    with viewer.acting.session() as session:
        views = MailViews(session)
        found = views.message(message_id)
        said = SpamFeedbacks(session).of([message_id]).get(message_id)
        facts: dict[str, Any] = {
            "judged": SpamVerdicts(session).shown([message_id]).get(message_id),
            "said": said.is_spam if said is not None else None,
            "folder": views.place(found),
            "account": EmailClients(session).one(found.client_id).name,
            "attachments": views.attachments(message_id),
        }
    sender = found.sender or {}
    facts["sender"] = " ".join(filter(None, [sender.get("name"), f"<{sender['address']}>" if sender.get("address") else None])) or "–"
    text = found.body_text or ""
    facts |= {"text": text[:LONGEST_TEXT], "is_cut": len(text) > LONGEST_TEXT, "received_at": found.internal_date or found.created_at}
    return HTMLResponse(render("message.html", viewer=viewer, stream="", message=found, **facts))


@router.post("/mail/{message_id}/spam", dependencies=[FromHere])
def opinion(message_id: str, spam: Opinion, request: Request, viewer: ViewerNow) -> Response:
    """Says that it is spam or not, or takes that back."""
    _only_for_its_people(viewer)
    if spam == "undo":
        take_back(message_id, viewer.acting)
    else:
        say(message_id, NewFeedback(spam=spam == "yes"), request, viewer.acting)
    return RedirectResponse(f"/mail/{message_id}", 303)


def _only_for_its_people(viewer: Viewer) -> None:
    if viewer.is_admin:
        raise NotFoundError("There is no message with this id.")
