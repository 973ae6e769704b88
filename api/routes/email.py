"""The four common tasks by name, and an account's folders. The body of a POST is the task's arguments."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.auth import ActingNow
from api.bodies import JsonRoute
from api.mail_shapes import FolderView
from api.routes import messages
from api.routes.tasks import Arguments, IdempotencyKey, accept
from api.shapes import AcceptedRun
from storage.repositories.folders import EmailFolders

router = APIRouter(route_class=JsonRoute, tags=["email"])


@router.post("/api/email/sync", status_code=202)
async def sync(body: Arguments, acting: ActingNow, response: Response, idempotency_key: IdempotencyKey = None) -> AcceptedRun:
    """Run `sync_emails`: bring an account up to date with its server."""
    return await accept(acting, response, "sync_emails", body, idempotency_key=idempotency_key)


@router.post("/api/email/send", status_code=202)
async def send(body: Arguments, acting: ActingNow, response: Response, idempotency_key: IdempotencyKey = None) -> AcceptedRun:
    """Run `send_email`: send a mail from an account."""
    return await accept(acting, response, "send_email", body, idempotency_key=idempotency_key)


@router.post("/api/email/delete", status_code=202)
async def delete(body: Arguments, acting: ActingNow, response: Response, idempotency_key: IdempotencyKey = None) -> AcceptedRun:
    """Run `delete_emails`: move mails to the bin, or remove them."""
    return await accept(acting, response, "delete_emails", body, idempotency_key=idempotency_key)


@router.post("/api/email/spam-check", status_code=202)
async def spam_check(body: Arguments, acting: ActingNow, response: Response, idempotency_key: IdempotencyKey = None) -> AcceptedRun:
    """Run `check_spam`: score one mail."""
    return await accept(acting, response, "check_spam", body, idempotency_key=idempotency_key)


@router.get("/api/email/clients/{client_id}/folders")
def folders(client_id: str, acting: ActingNow) -> dict[str, list[FolderView]]:
    """An account's folders, by name."""
    with acting.session() as session:
        found = EmailFolders(session).of(client_id)
    return {"items": [FolderView.model_validate(folder) for folder in found]}


router.include_router(messages.router)
