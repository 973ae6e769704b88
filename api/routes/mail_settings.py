"""How a tenant's transactional mails go out: from whom, over which account, in which language, and where their links lead."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import Field, field_validator

from api.auth import Acting, ActingNow
from api.bodies import JsonRoute
from api.outbound_shapes import Id, Request
from api.routes.mail_templates import require_tenant, settings_of
from api.shapes import Shape
from core.settings import LINK_BASE, Settings
from mail.addresses import check_header_text, normalise_address
from mail.templates.catalogue import normal_locale
from storage.repositories.letters import FIELDS, TenantMail

router = APIRouter(route_class=JsonRoute, tags=["templates"])
Path = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^/([A-Za-z0-9._~?=&%-][A-Za-z0-9._~/?=&%-]*)?$")]


class MailSettingsBody(Request):
    """All of a tenant's settings; what is left out is as the installation says.

    `clientId`: the account of the tenant that the mails go out from, instead of the system's server. `senderAddress` over the system's
    server is for admin keys. Links are `linkBaseUrl` + path + `?token=...`.
    """

    client_id: Id | None = None
    sender_name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    sender_address: Annotated[str, Field(min_length=3, max_length=320)] | None = None
    locale: Annotated[str, Field(max_length=35)] | None = None
    app_name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    link_base_url: Annotated[str, Field(max_length=500)] | None = None
    verification_path: Path | None = None
    password_reset_path: Path | None = None
    accent_color: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] | None = None
    verification_expires_hours: Annotated[int, Field(ge=1, le=720)] | None = None
    password_reset_expires_minutes: Annotated[int, Field(ge=5, le=10_080)] | None = None

    @field_validator("link_base_url")
    @classmethod
    def _is_a_place(cls, value: str | None) -> str | None:
        if value is not None and not LINK_BASE.fullmatch(value):
            raise ValueError("it must be where links lead, like https://app.example.com")
        return value


class InForce(Shape):
    """What comes of the settings: from whom the mails are, over which server, and how long tokens are good."""

    sender: str | None = Field(serialization_alias="from")
    server: str | None
    locale: str
    app_name: str
    link_base_url: str | None
    verification_expires_hours: float
    password_reset_expires_minutes: int


class MailSettingsView(Shape):
    """What the tenant has set (null: as the installation says), and what is in force."""

    client_id: str | None = None
    sender_name: str | None = None
    sender_address: str | None = None
    locale: str | None = None
    app_name: str | None = None
    link_base_url: str | None = None
    verification_path: str | None = None
    password_reset_path: str | None = None
    accent_color: str | None = None
    verification_expires_hours: int | None = None
    password_reset_expires_minutes: int | None = None
    updated_at: datetime | None = None
    in_force: InForce


@router.get("/api/mail/settings")
def get_mail_settings(request: HttpRequest, acting: ActingNow) -> MailSettingsView:
    """The tenant's settings, and what comes of them."""
    require_tenant(acting, "Mail settings")
    return _view(acting, settings_of(request))


@router.put("/api/mail/settings")
def put_mail_settings(body: MailSettingsBody, request: HttpRequest, acting: ActingNow) -> MailSettingsView:
    """Replace the tenant's settings."""
    require_tenant(acting, "Mail settings")
    fields = body.model_dump()
    for name in ("sender_name", "app_name"):
        check_header_text(fields[name] or "", field=name)
    if body.sender_address is not None:
        fields["sender_address"] = normalise_address(body.sender_address, field="senderAddress")
    if body.locale is not None:
        fields["locale"] = normal_locale(body.locale)
    with acting.session() as session:
        TenantMail(session).put(fields, may_choose_sender=acting.caller.is_admin)
    return _view(acting, settings_of(request))


def _view(acting: Acting, settings: Settings) -> MailSettingsView:
    with acting.session() as session:
        mail = TenantMail(session)
        row, house, server = mail.row(), mail.house(settings), mail.server(settings)
    own = {name: getattr(row, name) for name in (*FIELDS, "updated_at")} if row is not None else {}
    sender = house.sender
    in_force = InForce(
        sender=f"{sender.name} <{sender.addr}>" if sender is not None else None,
        server=server,
        locale=house.locale,
        app_name=house.app_name,
        link_base_url=house.link_base_url,
        verification_expires_hours=house.verification_minutes / 60,
        password_reset_expires_minutes=house.password_reset_minutes,
    )
    return MailSettingsView(**own, in_force=in_force)
