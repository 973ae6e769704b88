"""The keys that sign a tenant's mail. A private key is made here, encrypted, and never leaves."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import Field

from api.auth import ActingNow
from api.bodies import JsonRoute
from api.outbound_shapes import Request
from api.shapes import Shape
from core.clock import now
from core.errors import TenantError
from core.settings import Settings
from mail.addresses import domain_of, normalise_address
from mail.dkim import PrivateKey, check_selector, new_private_key, record_name, txt_strings
from storage.models import DkimKey
from storage.repositories.suppressions import DkimKeys

router = APIRouter(route_class=JsonRoute, tags=["outbox"])


class NewDkimKey(Request):
    """A domain of the tenant's. Without a `selector` it gets one of today."""

    domain: Annotated[str, Field(min_length=3, max_length=253)]
    selector: Annotated[str, Field(max_length=63)] | None = None
    algorithm: Literal["rsa-sha256", "ed25519-sha256"] = "rsa-sha256"


class DkimKeyView(Shape):
    """A key and the TXT record to publish: `recordStrings` joined are `recordValue`, as DNS wants it."""

    id: str
    domain: str
    selector: str
    algorithm: str
    record_name: str
    record_value: str
    record_strings: list[str]
    created_at: datetime

    @classmethod
    def of(cls, row: DkimKey, key: PrivateKey) -> DkimKeyView:
        """The public half."""
        value = key.public_record()
        return cls(
            id=row.id,
            domain=row.domain,
            selector=row.selector,
            algorithm=key.algorithm,
            record_name=record_name(row.selector, row.domain),
            record_value=value,
            record_strings=txt_strings(value),
            created_at=row.created_at,
        )


@router.post("/api/dkim-keys", status_code=201)
def create_dkim_key(body: NewDkimKey, request: HttpRequest, acting: ActingNow) -> DkimKeyView:
    """Make a key. Mails from the domain are signed from now on: publish the record first thing. 409 if the domain has one."""
    if acting.identity.is_system:
        raise TenantError("A DKIM key belongs to a tenant; name it in X-Tenant-Id.")
    domain = domain_of(normalise_address(f"postmaster@{body.domain}", field="domain"))
    selector = check_selector(body.selector or f"mailroom-{now():%Y%m%d}")
    key = new_private_key(body.algorithm)
    settings: Settings = request.app.state.settings
    with acting.session() as session:
        return DkimKeyView.of(DkimKeys(session, settings.credential_keys).add(domain, selector, key), key)


@router.get("/api/dkim-keys")
def list_dkim_keys(request: HttpRequest, acting: ActingNow) -> dict[str, list[DkimKeyView]]:
    """The keys with their records, by domain."""
    settings: Settings = request.app.state.settings
    with acting.session() as session:
        rows = DkimKeys(session).all()
        keys = DkimKeys(session, settings.credential_keys) if rows else None
        return {"items": [DkimKeyView.of(row, keys.private_key(row)) for row in rows] if keys is not None else []}


@router.delete("/api/dkim-keys/{name}", status_code=204, response_class=Response)
def delete_dkim_key(name: str, acting: ActingNow) -> None:
    """Sign no more mails with it; by its id or domain. Leave the record in DNS until the last signed mail has arrived."""
    with acting.session() as session:
        DkimKeys(session).remove(name)
