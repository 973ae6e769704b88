"""The outbox: accept a mail, look, cancel, and decide about those of which nobody knows whether they were sent."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from api.auth import ActingNow
from api.bodies import JsonRoute
from api.outbound_shapes import NewOutbound, OutboundPage, OutboundSummary, OutboundView, Resolution
from api.routes.tasks import IdempotencyKey, unquoted
from api.shapes import AcceptedRun
from brokers.queues import Priority
from core.errors import ConflictError, InvalidInputError, TenantError
from core.settings import Settings
from runs.control import cursor_after, parse_cursor
from runs.enqueue import record
from runs.registry import get_task
from runs.task import Call, Task
from storage.drafts import accept
from storage.models import OutboundEmail
from storage.repositories.mail_views import MailViews
from storage.repositories.outbound import OutboundEmails
from storage.repositories.outbox import Outbox, send_key
from storage.repositories.runs import TaskRuns
from storage.states import OutboundStatus

router = APIRouter(route_class=JsonRoute, tags=["outbox"])
MAY_BE_RETRIED = {OutboundStatus.FAILED, OutboundStatus.CANCELLED, OutboundStatus.PENDING}


@router.get("/api/outbound-emails")
def list_outbound(
    acting: ActingNow,
    *,
    status: Annotated[str | None, Query(max_length=20)] = None,
    cursor: Annotated[str | None, Query(max_length=300)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> OutboundPage:
    """Mails on their way out, the newest first. `status=uncertain` are those that wait for somebody's decision."""
    if status and status not in list(OutboundStatus):
        raise InvalidInputError(f"A status is one of {', '.join(OutboundStatus)}.")
    with acting.session() as session:
        found = MailViews(session).outbound(status or None, before=parse_cursor(cursor), limit=limit + 1)
    following = cursor_after(found[limit - 1].created_at, found[limit - 1].id) if len(found) > limit else None
    return OutboundPage(items=[OutboundSummary.model_validate(row) for row in found[:limit]], next_cursor=following)


@router.post("/api/outbound-emails", status_code=202)
def create_outbound(
    body: NewOutbound, request: Request, acting: ActingNow, response: Response, idempotency_key: IdempotencyKey = None
) -> OutboundView:
    """Accept a mail: its bytes are fixed now, and a run of `send_outbound_email` (`runId`) delivers them when it is time."""
    if acting.identity.is_system:
        raise TenantError("A mail belongs to a tenant; name it in X-Tenant-Id.")
    settings: Settings = request.app.state.settings
    draft = body.draft()
    with acting.session() as session:
        email = accept(session, body.email_client_id, draft, files=settings.files, keys=lambda: settings.credential_keys)
        call = replace(
            _call("send_outbound_email", email),
            eta=draft.scheduled_at,
            idempotency_key=unquoted(idempotency_key),
            request_hash=hashlib.sha256(body.model_dump_json().encode()).hexdigest() if idempotency_key else None,
        )
        run_id, is_new = record(session, call, {"email_id": email.id})
        if is_new:
            email.run_id = run_id
        else:  # an earlier request has the key: its mail is the answer, and no savepoint's commit must publish what is not committed
            session.delete(email)
            email = _of_earlier_request(session, run_id)
        answer = _view(session, email.id)
    response.headers["Location"] = f"/api/outbound-emails/{answer.id}"
    return answer


@router.get("/api/outbound-emails/{email_id}")
def get_outbound(email_id: str, acting: ActingNow) -> OutboundView:
    """One mail and what the server said of each recipient."""
    with acting.session() as session:
        return _view(session, email_id)


@router.post("/api/outbound-emails/{email_id}/cancel")
def cancel_outbound(email_id: str, acting: ActingNow) -> OutboundView:
    """Do not send a mail that still waits; who already got it has it. 409 once it is being handed over."""
    with acting.session() as session:
        outbox = Outbox(session)
        email = outbox.cancel(email_id)
        for run_id in outbox.live_runs(email):
            _revoke(session, run_id)
        return _view(session, email_id)


@router.post("/api/outbound-emails/{email_id}/resolve")
def resolve_outbound(email_id: str, body: Resolution, acting: ActingNow) -> OutboundView:
    """Decide about an `uncertain` mail: it was `sent`, it `failed`, or `retry`: send it once more, at the risk of sending it twice."""
    with acting.session() as session:
        outbox = Outbox(session)
        outbox.one(email_id)
        email = outbox.resolve(email_id, body.outcome)
        if email.status == OutboundStatus.PENDING:
            record(session, _call("send_outbound_email", email), {"email_id": email.id})
        return _view(session, email_id)


@router.post("/admin/emails/{email_id}/retry", status_code=202)
def retry_outbound(email_id: str, acting: ActingNow, response: Response) -> AcceptedRun:
    """Try a failed, cancelled or waiting mail again at once, for everybody who has not got it; for admin keys."""
    with acting.session() as session:
        emails = OutboundEmails(session)
        email = emails.one(email_id)
        if not acting.caller.is_admin:
            raise TenantError("This is for an admin key.")
        if email.status not in MAY_BE_RETRIED:
            raise ConflictError(f"The mail is {email.status}; one that failed, was cancelled or waits can be tried again.")
        emails.reopen(email_id)
        run_id, _ = record(session, _call("retry_failed_email", email), {"email_id": email.id})
        answer = AcceptedRun.of(TaskRuns(session).one(run_id))
    response.headers["Location"] = answer.href
    return answer


def _call(task: str, email: OutboundEmail) -> Call[..., object]:
    """A run for the mail's owner; while one of the task is live, there is no second."""
    declared = get_task(task)
    assert isinstance(declared, Task)
    return Call(declared, tenant=email.tenant_id, user=email.user_id, priority=Priority(email.priority), unique_key=send_key(email.id))


def _of_earlier_request(session: Session, run_id: str) -> OutboundEmail:
    found = OutboundEmails(session).of_run(run_id)
    if found is None:
        raise InvalidInputError("This Idempotency-Key was used for a different request; use a new key.")
    return found


def _revoke(session: Session, run_id: str) -> None:
    """The run has nothing to do any more, however far it is."""
    try:
        TaskRuns(session).revoke(run_id)
    except ConflictError:
        return


def _view(session: Session, email_id: str) -> OutboundView:
    emails = OutboundEmails(session)
    email = emails.one(email_id)
    session.flush()
    session.refresh(email)
    return OutboundView.whole(email, emails.recipients(email_id))
