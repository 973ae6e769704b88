"""The pages of outgoing mail: the outbox with its reasons, and how the letters look.

A letter is shown in a frame of its own: its HTML wants inline styles, which the pages' policy forbids and should go on to forbid. The
framed document has a policy that allows those and nothing else, and a sandbox without scripts, forms or our origin.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from api.context import CONTENT_POLICY
from api.dashboard import regions
from api.dashboard.sessions import FromHere, PageRoute, Viewer, ViewerNow
from api.dashboard.templating import page, stream_of, tenants_of
from api.routes.mail_templates import PreviewRequest, preview, settings_of
from api.routes.outbound import retry_outbound
from mail.templates.catalogue import KINDS, shipped_locales
from storage.repositories.letters import MailTemplates, TenantMail
from storage.states import OutboundStatus

router = APIRouter(route_class=PageRoute, include_in_schema=False)
FRAMING = {"Content-Security-Policy": CONTENT_POLICY + "; frame-src 'self'"}
FRAMED = {
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'",
    "X-Frame-Options": "SAMEORIGIN",
}


@router.get("/mail/outbox")
def outbox(request: Request, viewer: ViewerNow) -> Response:
    """Mails on their way out, what became of them, and why."""
    query = request.query_params
    status, tenant = query.get("status", ""), query.get("tenant", "")
    parts = regions.outbox(viewer, query)
    stream = "" if query.get("cursor") else stream_of("outbox", urlencode({"status": status, "tenant": tenant}))
    choices = {"statuses": list(OutboundStatus), "tenants": tenants_of(viewer)}
    return page("outbox.html", viewer, stream, status=status, tenant=tenant, **choices, **parts)


@router.post("/mail/outbox/retry", dependencies=[FromHere])
def retry(viewer: ViewerNow, email_id: Annotated[str, Form(max_length=36)]) -> Response:
    """Tries a mail again at once; for admins."""
    retry_outbound(email_id, viewer.acting, Response())
    return RedirectResponse("/mail/outbox?status=pending", 303)


@router.get("/mail/templates")
def templates(request: Request, viewer: ViewerNow) -> Response:
    """The letters there are, and one of them as it would be sent."""
    query = request.query_params
    name, tenant = query.get("name", "verification")[:40], query.get("tenant", "")[:100]
    looking = viewer.looking_at(tenant)
    with looking.acting.session() as session:
        own = [(row.name, row.locale) for row in MailTemplates(session).all()]
        house = TenantMail(session).house(settings_of(request))
    locale = query.get("locale", "")[:35] or house.locale
    found, letter = preview(looking.acting, settings_of(request), name, PreviewRequest(locale=locale))
    kinds = [
        {"name": kind.name, "about": kind.about, "locales": _locales(kind.name, own), "own": [tag for of, tag in own if of == kind.name]}
        for kind in KINDS.values()
    ]
    chosen = {"name": name, "locale": locale, "tenant": tenant}
    facts: dict[str, Any] = {
        "kinds": kinds,
        "kind": found.kind,
        "letter": letter,
        "found": found,
        "house": house,
        "chosen": chosen,
        "locales": _locales(name, own),
        "frame": urlencode({key: value for key, value in chosen.items() if value}),
        "tenants": tenants_of(viewer),
    }
    response = page("templates.html", viewer, "", **facts)
    response.headers.update(FRAMING)
    return response


@router.get("/mail/templates/frame")
def frame(request: Request, viewer: ViewerNow) -> Response:
    """The HTML of a letter, for the frame."""
    query = request.query_params
    looking: Viewer = viewer.looking_at(query.get("tenant", "")[:100])
    asked = PreviewRequest(locale=query.get("locale", "")[:35] or None)
    _, letter = preview(looking.acting, settings_of(request), query.get("name", "")[:40], asked)
    return HTMLResponse(letter.html or "", headers=FRAMED)


def _locales(name: str, own: list[tuple[str, str]]) -> list[str]:
    return sorted({*shipped_locales(name), *(locale for of, locale in own if of == name)})
