"""Addresses that are told of a tenant's events, and what became of each telling."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi import Request as HttpRequest
from pydantic import Field

from api.auth import Acting, ActingNow
from api.bodies import JsonRoute
from api.outbound_shapes import Request
from api.routes.tasks import IdempotencyKey, unquoted
from api.shapes import Shape
from core.errors import TenantError
from core.settings import Settings
from runs.control import cursor_after, parse_cursor
from runs.webhooks.posting import check_url
from runs.webhooks.signature import new_secret
from storage.event_types import EVENTS
from storage.models import Webhook
from storage.repositories.requests import RequestKeys
from storage.repositories.webhooks import Deliveries, Webhooks

router = APIRouter(route_class=JsonRoute, tags=["webhooks"])
Url = Annotated[str, Field(max_length=4000)]
Events = Annotated[list[Annotated[str, Field(max_length=50)]], Field(min_length=1, max_length=50)]
Description = Annotated[str, Field(max_length=500)]


class NewWebhook(Request):
    """Where to, and which events; without `events` all there are."""

    url: Url
    events: Events = Field(default_factory=lambda: list(EVENTS))
    description: Description = ""


class WebhookChanges(Request):
    """What is to be changed."""

    url: Url | None = None
    events: Events | None = None
    description: Description | None = None
    is_active: bool | None = None


class WebhookView(Shape):
    """A webhook. `failures` in a row since `failingSince`; one that was switched off says why."""

    id: str
    url: str
    events: list[str]
    description: str
    is_active: bool
    disabled_reason: str | None
    failures: int
    failing_since: datetime | None
    previous_until: datetime | None
    created_at: datetime


class WebhookSecret(WebhookView):
    """With the secret, which is shown this once."""

    secret: str

    @classmethod
    def of(cls, row: Webhook, secret: str) -> WebhookSecret:
        """As recorded."""
        return cls(**WebhookView.model_validate(row).model_dump(), secret=secret)


class DeliveryView(Shape):
    """An event for a webhook. `status`: pending, delivered, failed, cancelled. `responseText` is how the last answer began."""

    id: str
    webhook_id: str
    type: str
    payload: dict[str, Any]
    status: str
    attempts: int
    next_attempt_at: datetime | None
    response_code: int | None
    response_text: str | None
    last_error: str | None
    duration_ms: int | None
    created_at: datetime
    finished_at: datetime | None


class DeliveryPage(Shape):
    """A page of deliveries, newest first."""

    items: list[DeliveryView]
    next_cursor: str | None


@router.post("/api/webhooks", status_code=201)
def create_webhook(body: NewWebhook, request: HttpRequest, acting: ActingNow, idempotency_key: IdempotencyKey = None) -> WebhookSecret:
    """Be told of events from now on. Keep the secret: it is not shown again, but to the same request with the same Idempotency-Key."""
    settings = _settings(request)
    url = check_url(body.url, allow_private=settings.allow_private_webhook_hosts)
    require_tenant(acting)
    with acting.session() as session:
        webhooks = Webhooks(session, settings.credential_keys)

        def add() -> str:
            return webhooks.add(url, body.events, new_secret(), body.description).id

        asked = ["create", url, body.events, body.description]
        return _with_secret(webhooks, RequestKeys(session).once(unquoted(idempotency_key), asked, add))


@router.get("/api/webhooks")
def list_webhooks(acting: ActingNow) -> dict[str, list[WebhookView]]:
    """The tenant's, the oldest first."""
    require_tenant(acting)
    with acting.session() as session:
        return {"items": [WebhookView.model_validate(row) for row in Webhooks(session).all()]}


@router.get("/api/webhooks/{webhook_id}")
def get_webhook(webhook_id: str, acting: ActingNow) -> WebhookView:
    """One of them."""
    require_tenant(acting)
    with acting.session() as session:
        return WebhookView.model_validate(Webhooks(session).one(webhook_id))


@router.patch("/api/webhooks/{webhook_id}")
def change_webhook(webhook_id: str, body: WebhookChanges, request: HttpRequest, acting: ActingNow) -> WebhookView:
    """Change what is given. Switched on again, a webhook begins anew."""
    require_tenant(acting)
    changes = {name: value for name, value in body.model_dump().items() if value is not None}
    if "url" in changes:
        changes["url"] = check_url(changes["url"], allow_private=_settings(request).allow_private_webhook_hosts)
    with acting.session() as session:
        return WebhookView.model_validate(Webhooks(session).change(webhook_id, **changes))


@router.delete("/api/webhooks/{webhook_id}", status_code=204, response_class=Response)
def delete_webhook(webhook_id: str, acting: ActingNow) -> None:
    """Tell it nothing more; its history goes with it."""
    require_tenant(acting)
    with acting.session() as session:
        Webhooks(session).remove(webhook_id)


@router.post("/api/webhooks/{webhook_id}/rotate")
def rotate_secret(webhook_id: str, request: HttpRequest, acting: ActingNow, idempotency_key: IdempotencyKey = None) -> WebhookSecret:
    """A new secret, shown this once. For a day every request is signed with both."""
    require_tenant(acting)
    with acting.session() as session:
        webhooks = Webhooks(session, _settings(request).credential_keys)

        def rotate() -> str:
            return webhooks.rotate(webhook_id, new_secret()).id

        return _with_secret(webhooks, RequestKeys(session).once(unquoted(idempotency_key), ["rotate", webhook_id], rotate))


@router.post("/api/webhooks/{webhook_id}/test", status_code=202)
def send_test(webhook_id: str, acting: ActingNow, idempotency_key: IdempotencyKey = None) -> DeliveryView:
    """Send it a `webhook.test` event, once; the delivery says what came of it."""
    require_tenant(acting)
    with acting.session() as session:
        deliveries = Deliveries(session)
        asked = ["test", webhook_id]
        tested = RequestKeys(session).once(unquoted(idempotency_key), asked, lambda: deliveries.test(webhook_id).id)
        return DeliveryView.model_validate(deliveries.delivery(tested))


@router.get("/api/webhooks/{webhook_id}/deliveries")
def list_deliveries(
    webhook_id: str,
    acting: ActingNow,
    cursor: Annotated[str | None, Query(max_length=300)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> DeliveryPage:
    """What it was told and what came of it, the newest first."""
    require_tenant(acting)
    with acting.session() as session:
        found = Deliveries(session).page(webhook_id, before=parse_cursor(cursor), limit=limit + 1)
    following = cursor_after(found[limit - 1].created_at, found[limit - 1].id) if len(found) > limit else None
    return DeliveryPage(items=[DeliveryView.model_validate(row) for row in found[:limit]], next_cursor=following)


@router.post("/api/webhook-deliveries/{delivery_id}/redeliver", status_code=202)
def redeliver(delivery_id: str, acting: ActingNow, idempotency_key: IdempotencyKey = None) -> DeliveryView:
    """Tell it once more, under the same id. 409 while it is still being told."""
    require_tenant(acting)
    with acting.session() as session:
        deliveries = Deliveries(session)
        asked = ["redeliver", delivery_id]
        again = RequestKeys(session).once(unquoted(idempotency_key), asked, lambda: deliveries.again(delivery_id).id)
        return DeliveryView.model_validate(deliveries.delivery(again))


def _with_secret(webhooks: Webhooks, webhook_id: str) -> WebhookSecret:
    hook = webhooks.one(webhook_id)
    return WebhookSecret.of(hook, webhooks.secrets(hook)[0])


def _settings(request: HttpRequest) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def require_tenant(acting: Acting) -> None:
    """They tell of all users of a tenant."""
    if acting.identity.is_system:
        raise TenantError("A webhook belongs to a tenant; name it in X-Tenant-Id.")
    if acting.identity.user_id is not None:
        raise TenantError("A webhook is told of all users of a tenant; use a key of the tenant's, without a user.")
