"""Mail accounts. Fields are the columns' names; a password goes in and never comes out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, StrictBool, StrictInt, StringConstraints, model_validator

from api.auth import ActingNow
from api.bodies import JsonRoute
from api.mail_shapes import ClientView
from core.errors import InvalidInputError, TenantError
from core.settings import Settings
from mail.addresses import parse_address
from storage.repositories.email_clients import SECRET_FIELDS, EmailClients

router = APIRouter(route_class=JsonRoute, tags=["e-mail clients"])


def _address(text: str) -> str:
    try:
        parse_address(text, field="email")
    except InvalidInputError:
        raise ValueError("it is not an e-mail address") from None
    return text


Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Email = Annotated[str, StringConstraints(strip_whitespace=True, min_length=3, max_length=320), AfterValidator(_address)]
Host = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=255, pattern=r"^[^\s/@]+$")]
Port = Annotated[StrictInt, Field(ge=1, le=65535)]
Security = Literal["tls", "starttls", "plain"]
Username = Annotated[str, StringConstraints(min_length=1, max_length=320)]
Password = Annotated[SecretStr, Field(min_length=1, max_length=4000)]
Interval = Annotated[StrictInt, Field(ge=10, le=7 * 86_400)]
NEVER_NULL = ("name", "email", "sync_interval", "is_sync_enabled", "saves_sent")


class ClientChanges(BaseModel):
    """What may be set of an account; what is left out stays as it is, null clears."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    email: Email | None = None
    imap_host: Host | None = None
    imap_port: Port | None = None
    imap_security: Security | None = None
    imap_username: Username | None = None
    imap_password: Password | None = None
    smtp_host: Host | None = None
    smtp_port: Port | None = None
    smtp_security: Security | None = None
    smtp_username: Username | None = None
    smtp_password: Password | None = None
    pop3_host: Host | None = None
    pop3_port: Port | None = None
    pop3_security: Security | None = None
    pop3_username: Username | None = None
    pop3_password: Password | None = None
    oauth_token_url: Annotated[str, StringConstraints(max_length=500, pattern=r"^https?://[^\s@]+$")] | None = None
    oauth_client_id: Username | None = None
    oauth_client_secret: Password | None = None
    oauth_refresh_token: Password | None = None
    saves_sent: StrictBool | None = None
    checks_spam: StrictBool | None = None
    moves_junk: StrictBool | None = None
    sync_interval: Interval | None = None
    is_sync_enabled: StrictBool | None = None

    @model_validator(mode="after")
    def _no_null_where_none_can_be(self) -> ClientChanges:
        for name in NEVER_NULL:
            if name in self.model_fields_set and getattr(self, name) is None:
                raise ValueError(f"{name} cannot be null")
        return self

    def columns(self) -> dict[str, Any]:
        """What was given, the passwords in clear for the moment it takes to encrypt them."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return {name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in given.items()}


class NewClient(ClientChanges):
    """A new account; it needs a server to read from or one to send with."""

    name: Name
    email: Email


@router.post("/api/email/clients", status_code=201)
def create_client(body: NewClient, request: Request, acting: ActingNow, response: Response) -> ClientView:
    """Add an account to the user that X-User-Id or the key names."""
    if acting.identity.is_system:
        raise TenantError("An account belongs to a tenant; name it in X-Tenant-Id.")
    if acting.identity.user_id is None:
        raise InvalidInputError("An account belongs to a user; name one in X-User-Id, or use a key of that user.")
    fields = body.columns()
    with acting.session() as session:
        client = _clients(session, request, fields).create(acting.identity.user_id, fields)
        session.refresh(client)
        answer = ClientView.of(client)
    response.headers["Location"] = f"/api/email/clients/{answer.id}"
    return answer


@router.get("/api/email/clients")
def list_clients(acting: ActingNow) -> dict[str, list[ClientView]]:
    """The accounts, by name."""
    with acting.session() as session:
        return {"items": [ClientView.of(client) for client in EmailClients(session).all()]}


@router.get("/api/email/clients/{client_id}")
def get_client(client_id: str, acting: ActingNow) -> ClientView:
    """One account."""
    with acting.session() as session:
        return ClientView.of(EmailClients(session).one(client_id))


@router.patch("/api/email/clients/{client_id}")
def change_client(client_id: str, body: ClientChanges, request: Request, acting: ActingNow) -> ClientView:
    """Change what is given. New servers or credentials let the account's syncs go on."""
    fields = body.columns()
    with acting.session() as session:
        return ClientView.of(_clients(session, request, fields).change(client_id, fields))


@router.delete("/api/email/clients/{client_id}", status_code=204, response_class=Response)
def delete_client(client_id: str, acting: ActingNow) -> None:
    """Remove an account and everything that was synced from it."""
    with acting.session() as session:
        EmailClients(session).delete(client_id)


def _clients(session: Any, request: Request, fields: dict[str, Any]) -> EmailClients:
    """With the keys only where a password is to be encrypted: an account without one needs none."""
    settings: Settings = request.app.state.settings
    needs_keys = any(fields.get(name) for name in SECRET_FIELDS)
    return EmailClients(session, settings.credential_keys if needs_keys else None)
