"""The page of webhooks: where a tenant's events go, whether they get there, and the buttons to test, switch and tell again.

Secrets are never shown, nor is an address in full: its query may be one. Operators see hosts only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from markupsafe import Markup

from api.auth import Acting
from api.dashboard import words
from api.dashboard.sessions import FromHere, PageRoute, Viewer, ViewerNow
from api.dashboard.templating import page, render, stream_of, tenants_of
from api.routes.webhooks import WebhookChanges, change_webhook, redeliver, send_test
from core.errors import TenantError
from runs.control import cursor_after, parse_cursor
from storage.repositories.tenants import Tenants
from storage.repositories.webhooks import RETRY_SECONDS, Deliveries, Webhooks

router = APIRouter(route_class=PageRoute, include_in_schema=False)
PAGE = 50
Id = Annotated[str, Form(max_length=36)]
Narrowing = Annotated[str, Form(max_length=100)]


@router.get("/webhooks")
def webhooks(request: Request, viewer: ViewerNow) -> Response:
    """The webhooks and what they were told."""
    query = request.query_params
    chosen = _given(query)
    stream = "" if query.get("cursor") else stream_of("webhooks", _query(**chosen))
    return page("webhooks.html", viewer, stream, chosen=chosen, tenants=tenants_of(viewer), **region(viewer, query))


@router.post("/webhooks/redeliver", dependencies=[FromHere])
def tell_again(viewer: ViewerNow, delivery_id: Id, tenant: Narrowing = "", webhook: Narrowing = "") -> Response:
    """Tells an event once more."""
    with viewer.acting.session() as session:
        owner = Deliveries(session).delivery(delivery_id).tenant_id
    redeliver(delivery_id, viewer.looking_at(owner).acting)
    return _back(tenant, webhook)


@router.post("/webhooks/{action}", dependencies=[FromHere])
def change(
    action: Literal["test", "enable", "disable"],
    request: Request,
    viewer: ViewerNow,
    webhook_id: Id,
    tenant: Narrowing = "",
    webhook: Narrowing = "",
) -> Response:
    """Sends a test event, or switches a webhook on or off."""
    acting = _acting_for(viewer, webhook_id)
    if action == "test":
        send_test(webhook_id, acting)
    else:
        change_webhook(webhook_id, WebhookChanges(is_active=action == "enable"), request, acting)
    return _back(tenant, webhook)


def region(viewer: Viewer, query: Mapping[str, str]) -> dict[str, Markup]:
    """Both tables. Raises TenantError for a user's session: webhooks tell of all users."""
    if viewer.acting.identity.user_id is not None:
        raise TenantError("A webhook is told of all users of a tenant; log in with a key of the tenant's, without a user.")
    chosen, before = _given(query), parse_cursor(query.get("cursor", "")[:300])
    looking = viewer.looking_at(chosen["tenant"])
    with looking.acting.session() as session:
        deliveries = Deliveries(session)
        hooks = deliveries.all()
        wanted = [hook for hook in hooks if chosen["webhook"] in {"", hook.id}]
        if looking.acting.identity.is_system and not chosen["webhook"]:
            told = deliveries.newest_of_all(before=before, limit=PAGE + 1)
        else:
            told = deliveries.newest(wanted, before=before, limit=PAGE + 1)
        names = Tenants(session).names() if viewer.is_admin else {}
    last = told[PAGE - 1] if len(told) > PAGE else None
    facts = {
        "hooks": hooks,
        "by_id": {hook.id: hook for hook in hooks},
        "told": told[:PAGE],
        "names": names,
        "chosen": chosen,
        "most_tries": len(RETRY_SECONDS) + 1,
        "older": _query(**chosen, cursor=cursor_after(last.created_at, last.id)) if last is not None else "",
        "newest": _query(**chosen) if before is not None else None,
    }
    parts = {"hooks": "_webhooks.html", "deliveries": "_deliveries.html"}
    return {name: render(template, viewer=viewer, words=words, **facts) for name, template in parts.items()}


def _given(query: Mapping[str, str]) -> dict[str, str]:
    return {name: query.get(name, "").strip()[:100] for name in ("tenant", "webhook")}


def _query(**given: str) -> str:
    return urlencode({name: value for name, value in given.items() if value})


def _acting_for(viewer: Viewer, webhook_id: str) -> Acting:
    """An operator acts for the tenant whose webhook it is."""
    with viewer.acting.session() as session:
        owner = Webhooks(session).one(webhook_id).tenant_id
    return viewer.looking_at(owner).acting


def _back(tenant: str, webhook: str) -> Response:
    return RedirectResponse(f"/webhooks?{_query(tenant=tenant, webhook=webhook)}".rstrip("?"), 303)
