"""What sync stored: messages, whole conversations, and the files in them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from api.auth import ActingNow, AuthenticatedRoute
from api.downloads import download, source_of
from api.mail_shapes import MessagePage, MessageSummary, MessageView
from mail.mime import attachment_content
from runs.control import cursor_after, parse_cursor
from storage.repositories.mail_views import MailViews
from storage.repositories.spam_feedback import SpamFeedbacks
from storage.repositories.spam_verdicts import SpamVerdicts

router = APIRouter(route_class=AuthenticatedRoute, tags=["email"])
Id = Annotated[str | None, Query(max_length=36)]
Words = Annotated[str | None, Query(max_length=10_000)]
BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}, "description": "The bytes."}
}


@router.get("/api/email/messages")
def messages(
    acting: ActingNow,
    *,
    client_id: Id = None,
    folder_id: Id = None,
    thread: Id = None,
    q: Words = None,
    spam: bool | None = None,
    cursor: Annotated[str | None, Query(max_length=300)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> MessagePage:
    """Stored messages, the newest first. All words of `q` are searched in subject, addresses and text; the last may be unfinished.
    `spam`: only what was found to be spam, or only what was not."""
    before = parse_cursor(cursor)
    with acting.session() as session:
        found = MailViews(session).messages(client_id, folder_id, q or None, thread_id=thread, is_spam=spam, before=before, limit=limit + 1)
        verdicts = SpamVerdicts(session).shown([each.id for each in found])
    cursor_next = cursor_after(found[limit - 1].received_at, found[limit - 1].id) if len(found) > limit else None
    return MessagePage(items=[MessageSummary.of(each, verdicts.get(each.id)) for each in found[:limit]], next_cursor=cursor_next)


@router.get("/api/email/messages/{message_id}")
def message(message_id: str, acting: ActingNow) -> MessageView:
    """One stored message with its text, the list of its attachments, and what the spam check and people said of it."""
    with acting.session() as session:
        views = MailViews(session)
        found, files = views.message(message_id), views.attachments(message_id)
        verdict = SpamVerdicts(session).shown([message_id]).get(message_id)
        return MessageView.whole(found, files, verdict, SpamFeedbacks(session).of([message_id]).get(message_id))


@router.get("/api/email/messages/{message_id}/source", response_class=Response, responses=BYTES)
def source(message_id: str, request: Request, acting: ActingNow) -> Response:
    """The message as it came. Read from its mail server if it was not kept."""
    return download(source_of(request, acting, message_id), "message/rfc822", f"{message_id}.eml")


@router.get("/api/email/messages/{message_id}/attachments/{attachment_id}", response_class=Response, responses=BYTES)
def attachment(message_id: str, attachment_id: str, request: Request, acting: ActingNow) -> Response:
    """One file of a message. Read from the mail server if the message was not kept."""
    with acting.session() as session:
        views = MailViews(session)
        views.message(message_id)
        found = views.attachment(message_id, attachment_id)
    content = attachment_content(source_of(request, acting, message_id), found.part or "")
    return download(content, found.content_type, found.filename)
