"""The wording of transactional mails: what ships, what a tenant says instead, and how it looks."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi import Request as HttpRequest
from pydantic import Field

from api.auth import Acting, ActingNow
from api.bodies import JsonRoute
from api.outbound_shapes import Request
from api.shapes import Shape
from core.errors import TenantError
from core.settings import Settings
from core.tenancy import SYSTEM_TENANT
from mail.templates.catalogue import KINDS, Source, kind_named, normal_locale, shipped_locales
from mail.templates.letters import Letter, Template, check_template, compose, sample_values
from storage.repositories.letters import MailTemplates, TenantMail

router = APIRouter(route_class=JsonRoute, tags=["templates"])
Locale = Annotated[str | None, Query(max_length=35, description="A language tag; without one the tenant's own locale.")]


class NewTemplate(Request):
    """A tenant's own wording. Without `html` the mail is plain text. Jinja2 without loops, attributes and calls; see docs/letters.md."""

    subject: Annotated[str, Field(max_length=2_000)]
    text: Annotated[str, Field(max_length=200_000)]
    html: Annotated[str, Field(max_length=500_000)] = ""


class PreviewRequest(Request):
    """What to show: parts that are given replace those in force, `variables` replace the samples."""

    locale: Annotated[str, Field(max_length=35)] | None = None
    subject: Annotated[str, Field(max_length=2_000)] | None = None
    text: Annotated[str, Field(max_length=200_000)] | None = None
    html: Annotated[str, Field(max_length=500_000)] | None = None
    variables: dict[Annotated[str, Field(max_length=40)], Annotated[str, Field(max_length=100_000)]] | None = None


class TemplateSummary(Shape):
    """A letter: its variables with what they are, the languages that ship, and those a tenant has its own words in."""

    name: str
    about: str
    variables: dict[str, str]
    secret_variables: list[str]
    shipped_locales: list[str]
    own_locales: list[str]


class TemplateView(TemplateSummary):
    """What is in force in a language. `isOwn`: the tenant's own words."""

    locale: str
    is_own: bool
    subject: str
    text: str
    html: str
    updated_at: datetime | None


class PreviewView(Shape):
    """A letter as it would be sent."""

    name: str
    locale: str
    is_own: bool
    subject: str
    text: str
    html: str | None


@router.get("/api/mail/templates")
def list_templates(acting: ActingNow) -> dict[str, list[TemplateSummary]]:
    """The letters there are."""
    with acting.session() as session:
        own = [(row.name, row.locale) for row in MailTemplates(session).all()]
    return {"items": [TemplateSummary(**_facts(name, own)) for name in KINDS]}


@router.get("/api/mail/templates/{name}")
def get_template(name: str, request: HttpRequest, acting: ActingNow, locale: Locale = None) -> TemplateView:
    """What a letter says in a language, or in the nearest there is: `de-AT`, `de`, `en`."""
    with acting.session() as session:
        templates = MailTemplates(session)
        found = templates.find(name, locale or TenantMail(session).house(settings_of(request)).locale)
        rows = templates.all()
    return _view(found, [(row.name, row.locale) for row in rows], {(row.name, row.locale): row.updated_at for row in rows})


@router.put("/api/mail/templates/{name}")
def put_template(name: str, body: NewTemplate, request: HttpRequest, acting: ActingNow, locale: Locale = None) -> TemplateView:
    """Say it in the tenant's own words. It is checked and rendered once; 422 says what is wrong and in which line."""
    kind, source = kind_named(name), Source(body.subject, body.text, body.html)
    with acting.session() as session:
        tag = normal_locale(locale or TenantMail(session).house(settings_of(request)).locale)
        check_template(kind, tag, source)
        row = MailTemplates(session).put(kind, tag, source)
        own = [(each.name, each.locale) for each in MailTemplates(session).all()]
    return _view(Template(kind, tag, source, is_own=True), own, {(name, tag): row.updated_at})


@router.delete("/api/mail/templates/{name}", status_code=204, response_class=Response)
def delete_template(name: str, request: HttpRequest, acting: ActingNow, locale: Locale = None) -> None:
    """Use what ships again."""
    with acting.session() as session:
        MailTemplates(session).remove(name, locale or TenantMail(session).house(settings_of(request)).locale)


@router.post("/api/mail/templates/{name}/preview")
def preview_template(name: str, request: HttpRequest, acting: ActingNow, body: PreviewRequest | None = None) -> PreviewView:
    """A letter with samples, before anything is kept or sent."""
    asked = body or PreviewRequest()
    template, letter = preview(acting, settings_of(request), name, asked)
    return PreviewView(
        name=name, locale=template.locale, is_own=template.is_own, subject=letter.subject, text=letter.text, html=letter.html
    )


def preview(acting: Acting, settings: Settings, name: str, asked: PreviewRequest) -> tuple[Template, Letter]:
    """What the routes, the page and the command show. Raises NotFoundError, TemplateRefused."""
    with acting.session() as session:
        house = TenantMail(session).house(settings)
        template = MailTemplates(session).find(name, asked.locale or house.locale)
    given = {part: value for part in ("subject", "text", "html") if (value := getattr(asked, part)) is not None}
    if given:
        template = replace(template, source=replace(template.source, **given))
        check_template(template.kind, template.locale, template.source)
    house = replace(house, locale=template.locale, link_base_url=house.link_base_url or "https://app.example.com")
    return template, compose(template, sample_values(template.kind, house, asked.variables))


def settings_of(request: HttpRequest) -> Settings:
    """Those of the application."""
    settings: Settings = request.app.state.settings
    return settings


def require_tenant(acting: Acting, what: str) -> None:
    """Raises TenantError where no tenant is named."""
    if acting.identity.tenant_id == SYSTEM_TENANT:
        raise TenantError(f"{what} belong to a tenant; name it in X-Tenant-Id.")


def _facts(name: str, own: list[tuple[str, str]]) -> dict[str, object]:
    kind = KINDS[name]
    return {
        "name": name,
        "about": kind.about,
        "variables": kind.variables,
        "secret_variables": sorted(kind.secrets),
        "shipped_locales": list(shipped_locales(name)),
        "own_locales": [locale for found, locale in own if found == name],
    }


def _view(found: Template, own: list[tuple[str, str]], updated: dict[tuple[str, str], datetime]) -> TemplateView:
    name, source = found.kind.name, found.source
    facts = {"locale": found.locale, "is_own": found.is_own, "updated_at": updated.get((name, found.locale)) if found.is_own else None}
    return TemplateView(**_facts(name, own), **facts, subject=source.subject, text=source.text, html=source.html)
