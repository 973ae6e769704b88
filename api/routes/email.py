"""The four common tasks by name, and what sync stored. The body of a POST is the task's arguments."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.auth import ActingNow
from api.bodies import JsonRoute
from api.mail_shapes import FolderView, MessagePage, MessageSummary, MessageView
from api.routes.tasks import Arguments, IdempotencyKey, accept
from api.shapes import AcceptedRun
from runs.control import cursor_after, parse_cursor
from storage.repositories.mail_views import MailViews
from storage.repositories.messages import EmailFolders

router = APIRouter(route_class=JsonRoute, tags=["email"])
Words = Annotated[str | None, Query(max_length=200)]


@router.post("/api/email/sync", status_code=202)
def sync(body: Arguments, acting: ActingNow, response: Response, idempotency_key: IdempotencyKey = None) -> AcceptedRun:
    """Run `sync_emails`: bring an account up to date with its server."""
    return accept(acting, response, "sync_emails", body, idempotency_key=idempotency_key)


@router.post("/api/email/send", status_code=202)
def send(body: Arguments, acting: ActingNow, response: Response, idempotency_key: IdempotencyKey = None) -> AcceptedRun:
    """Run `send_email`: send a mail from an account."""
    return accept(acting, response, "send_email", body, idempotency_key=idempotency_key)


@router.post("/api/email/delete", status_code=202)
def delete(body: Arguments, acting: ActingNow, response: Response, idempotency_key: IdempotencyKey = None) -> AcceptedRun:
    """Run `delete_emails`: move mails to the bin, or remove them."""
    return accept(acting, response, "delete_emails", body, idempotency_key=idempotency_key)


@router.post("/api/email/spam-check", status_code=202)
def spam_check(body: Arguments, acting: ActingNow, response: Response, idempotency_key: IdempotencyKey = None) -> AcceptedRun:
    """Run `check_spam`: score one mail."""
    return accept(acting, response, "check_spam", body, idempotency_key=idempotency_key)


@router.get("/api/email/clients/{client_id}/folders")
def folders(client_id: str, acting: ActingNow) -> dict[str, list[FolderView]]:
    """An account's folders, by name."""
    with acting.session() as session:
        found = EmailFolders(session).of(client_id)
    return {"items": [FolderView.model_validate(folder) for folder in found]}


@router.get("/api/email/messages")
def messages(
    acting: ActingNow,
    *,
    client_id: Annotated[str | None, Query(max_length=36)] = None,
    folder_id: Annotated[str | None, Query(max_length=36)] = None,
    q: Words = None,
    cursor: Annotated[str | None, Query(max_length=300)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> MessagePage:
    """Stored messages, the newest first. `q` is looked for in subject and beginning; `client_id` and `folder_id` narrow."""
    with acting.session() as session:
        found = MailViews(session).messages(client_id, folder_id, q or None, before=parse_cursor(cursor), limit=limit + 1)
    cursor_next = cursor_after(found[limit - 1].received_at, found[limit - 1].id) if len(found) > limit else None
    return MessagePage(items=[MessageSummary.of(each) for each in found[:limit]], next_cursor=cursor_next)


@router.get("/api/email/messages/{message_id}")
def message(message_id: str, acting: ActingNow) -> MessageView:
    """One stored message with its text and the list of its attachments."""
    with acting.session() as session:
        views = MailViews(session)
        return MessageView.whole(views.message(message_id), views.attachments(message_id))
