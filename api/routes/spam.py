"""Spam: what people say of messages, what a tenant wants of the check, the senders it is sure of, and how well it all goes."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session
from starlette.requests import Request as HttpRequest

from api.auth import Acting, ActingNow
from api.bodies import JsonRoute
from api.problems import Problem
from api.routes.tasks import Arguments, IdempotencyKey, accept
from api.shapes import AcceptedRun
from api.spam_shapes import FeedbackView, NewFeedback, NewListEntry, SettingsBody, SettingsView, SpamListEntryView, SpamListPage, StatsView
from core.errors import TenantError
from core.settings import Settings
from mail.spam.model import load_model
from runs.control import call_of, cursor_after, parse_cursor
from runs.enqueue import record
from runs.registry import get_task
from runs.task import Task
from storage.repositories.email_clients import EmailClients
from storage.repositories.mail_views import MailViews
from storage.repositories.spam_choices import SpamChoices
from storage.repositories.spam_feedback import SpamFeedbacks
from storage.repositories.spam_verdicts import SpamVerdicts

router = APIRouter(route_class=JsonRoute, tags=["spam"])


@router.post("/api/email/messages/{message_id}/spam-feedback")
def say(message_id: str, body: NewFeedback, request: HttpRequest, acting: ActingNow) -> FeedbackView:
    """Say that a message is spam, or that it is not. Twice is fine; another opinion takes the place of the first.

    What is not spam and lies in Junk goes back to the inbox where its account moves spam to Junk."""
    tenant_id, settings = _tenant_of(acting), _settings(request)
    with acting.session() as session:
        message = MailViews(session).message(message_id)
        feedback = SpamFeedbacks(session)
        said = feedback.record(tenant_id, {message.id: body.spam}, via="api", per_hour=settings.spam_feedback_per_hour)
        if said.over_the_limit:
            raise Problem(429, "too_many_requests", "You have said enough in the last hour; go on later.", headers={"Retry-After": "600"})
        if said.revision is not None:
            _learn(session, said.revision)
            if settings.spam_teach_engines and (settings.rspamd_url or settings.spamd_url):
                _start(session, "teach_engines", {"email_id": message.id}, {})
        if not body.spam:
            _start_back(session, message.id)
        session.flush()
        return FeedbackView.of(feedback.of([message.id])[message.id])


@router.delete("/api/email/messages/{message_id}/spam-feedback", status_code=204, response_class=Response)
def take_back(message_id: str, acting: ActingNow) -> None:
    """As if it had never been said: what was learned from it goes, too."""
    tenant_id = _tenant_of(acting)
    with acting.session() as session:
        _learn(session, SpamFeedbacks(session).undo(tenant_id, MailViews(session).message(message_id).id))


@router.get("/api/spam/settings")
def get_settings_of_tenant(acting: ActingNow) -> SettingsView:
    """What the tenant wants of the check."""
    tenant_id = _tenant_of(acting)
    with acting.session() as session:
        return SettingsView.of(SpamChoices(session).settings(tenant_id))


@router.put("/api/spam/settings")
def set_settings_of_tenant(body: SettingsBody, acting: ActingNow) -> SettingsView:
    """Set all of it; what is left out is as for a new tenant. A new threshold or budget is worked into what was learned."""
    tenant_id = _tenant_of(acting)
    with acting.session() as session:
        choices = SpamChoices(session)
        answer = SettingsView.of(choices.change(tenant_id, body.columns()))
        if choices.weights(tenant_id) is not None:
            weights = choices.locked_weights(tenant_id)
            weights.revision += 1
            session.flush()
            _learn(session, weights.learned_revision)
        return answer


@router.get("/api/spam/lists")
def lists(
    acting: ActingNow,
    *,
    kind: Literal["allow", "block"] | None = None,
    cursor: Annotated[str | None, Query(max_length=300)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> SpamListPage:
    """The senders whose mail always passes, or never; the newest first."""
    with acting.session() as session:
        found = SpamChoices(session).entries(kind, before=parse_cursor(cursor), limit=limit + 1)
    following = cursor_after(found[limit - 1].created_at, found[limit - 1].id) if len(found) > limit else None
    return SpamListPage(items=[SpamListEntryView.model_validate(row) for row in found[:limit]], next_cursor=following)


@router.post("/api/spam/lists", status_code=201)
def add_to_lists(body: NewListEntry, acting: ActingNow) -> SpamListEntryView:
    """Put an address, or a domain with everything below it, on a list. Twice is fine; from the other list it changes over."""
    tenant_id = _tenant_of(acting)
    with acting.session() as session:
        return SpamListEntryView.model_validate(SpamChoices(session).add_entry(tenant_id, body.kind, body.pattern))


@router.delete("/api/spam/lists/{entry_id}", status_code=204, response_class=Response)
def remove_from_lists(entry_id: str, acting: ActingNow) -> None:
    """Take a sender off its list."""
    with acting.session() as session:
        SpamChoices(session).remove_entry(entry_id)


@router.get("/api/spam/stats")
def stats(request: HttpRequest, acting: ActingNow) -> StatsView:
    """What was checked, what people said of it, and what was learned."""
    tenant_id, settings, model = _tenant_of(acting), _settings(request), load_model()
    with acting.session() as session:
        return StatsView.of(
            SpamVerdicts(session).counts(),
            SpamFeedbacks(session).counts(),
            SpamChoices(session).weights(tenant_id),
            model=model.name if model is not None else None,
            engines=[name for name, url in (("rspamd", settings.rspamd_url), ("spamassassin", settings.spamd_url)) if url],
        )


@router.post("/api/spam/backfill", status_code=202)
async def backfill(body: Arguments, acting: ActingNow, response: Response, idempotency_key: IdempotencyKey = None) -> AcceptedRun:
    """Run `check_mailbox_spam`: check the messages of an account (or a folder of it) that never were. One at a time for each."""
    what = f"spam:{body.get('email_client_id')}:{body.get('folder_id') or ''}"[:200]
    return await accept(acting, response, "check_mailbox_spam", body, {"unique_key": what}, idempotency_key)


def _learn(session: Session, revision: int) -> None:
    """One run for all that is said until it has begun, see `learn_soon` of the actors. It may be another user's."""
    _start(session, "learn_spam", {}, {"unique_key": f"learn:{revision}"})


def _start_back(session: Session, message_id: str) -> None:
    for each in SpamVerdicts(session).to_check([message_id]):
        client = EmailClients(session).one(each.client_id)
        if each.role == "junk" and client.imap_host and SpamChoices(session).moves_junk(client):
            arguments: Arguments = {"email_client_id": client.id, "email_ids": [message_id]}
            _start(session, "move_out_of_junk", arguments, {"unique_key": f"back:{message_id}"})


def _start(session: Session, task: str, arguments: Arguments, options: Arguments) -> None:
    declared = get_task(task)
    assert isinstance(declared, Task)
    record(session, call_of(declared, arguments, options, None), arguments)


def _settings(request: HttpRequest) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _tenant_of(acting: Acting) -> str:
    if acting.identity.is_system:
        raise TenantError("This belongs to a tenant; name it in X-Tenant-Id.")
    return acting.identity.tenant_id
