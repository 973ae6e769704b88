"""The demo's two tenants in the database: their users, their mail accounts, and a key for each."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from core.errors import ConflictError
from core.settings import KeyRing
from core.tenancy import SYSTEM_TENANT, Identity
from demo.accounts import ACME_ORDERS, ACME_SUPPORT, GLOBEX_OFFICE, GLOBEX_SALES, WRONG_PASSWORD, DemoAccount
from storage.engine import new_session, session_scope
from storage.models import EmailClient
from storage.repositories.email_clients import EmailClients
from storage.repositories.runs import RunFilter, TaskRuns
from storage.repositories.tenants import ApiKeys, Tenants
from storage.states import WAITING


@dataclass(frozen=True, slots=True)
class DemoPorts:
    """Where the demo's servers listen, on the loopback."""

    imap: int
    flaky_imap: int
    smtp: int


@dataclass(frozen=True, slots=True)
class DemoKeys:
    """The demo's API keys. Kept in a file that only this user can read, so that a second start prints the same."""

    admin: str
    acme: str
    globex: str


@dataclass(frozen=True, slots=True)
class DemoClients:
    """The ids of the demo's accounts; the names say what each is for."""

    acme_support: str
    acme_orders_flaky: str
    globex_office: str
    globex_sales_wrong_password: str


def seed(keys: KeyRing, ports: DemoPorts, key_file: Path) -> tuple[DemoKeys, DemoClients]:
    """Makes what is missing and brings ports and passwords up to date; a second start keeps the data."""
    with session_scope(system=True) as session:
        identities = {name: _tenant(session, name) for name in ("acme", "globex")}
        api_keys = _keys(session, identities, key_file)
        _come_to_rest(session)
    support = _client(identities["acme"], keys, "Support", ACME_SUPPORT, ports.imap, ports.smtp)
    orders = _client(identities["acme"], keys, "Orders (server is away at first)", ACME_ORDERS, ports.flaky_imap, ports.smtp)
    office = _client(identities["globex"], keys, "Office", GLOBEX_OFFICE, ports.imap, ports.smtp)
    sales = _client(identities["globex"], keys, "Sales (wrong password)", GLOBEX_SALES, ports.imap, ports.smtp, WRONG_PASSWORD)
    return api_keys, DemoClients(support, orders, office, sales)


def _tenant(session: Session, name: str) -> Identity:
    tenants = Tenants(session)
    tenant = tenants.by_name(name) or tenants.create(name)
    try:
        user = tenants.add_user(tenant.id, "demo")
    except ConflictError:
        user = tenants.user(tenant.id, "demo")
    return Identity(tenant.id, user.id)


def _keys(session: Session, identities: dict[str, Identity], key_file: Path) -> DemoKeys:
    api_keys = ApiKeys(session)
    if key_file.exists():
        known = DemoKeys(**json.loads(key_file.read_text()))
        if all(api_keys.authenticate(key) for key in asdict(known).values()):
            return known
    made = DemoKeys(
        admin=api_keys.create(SYSTEM_TENANT, "demo admin", is_admin=True),
        acme=api_keys.create(identities["acme"].tenant_id, "demo acme", user_id=identities["acme"].user_id),
        globex=api_keys.create(identities["globex"].tenant_id, "demo globex", user_id=identities["globex"].user_id),
    )
    descriptor = os.open(key_file, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(made), file)
    return made


def _come_to_rest(session: Session) -> None:
    """What an interrupted demo left waiting would take the first refusal of the server that is away at first."""
    runs = TaskRuns(session)
    for run in runs.page(RunFilter(states=sorted(WAITING)), limit=1000):
        runs.revoke(run.id)


def _client(
    identity: Identity, keys: KeyRing, name: str, account: DemoAccount, imap_port: int, smtp_port: int, password: str | None = None
) -> str:
    fields: dict[str, Any] = {
        "name": name,
        "email": account.address,
        "imap_host": "127.0.0.1",
        "imap_port": imap_port,
        "imap_security": "plain",
        "imap_username": account.address,
        "imap_password": password or account.password,
        "smtp_host": "127.0.0.1",
        "smtp_port": smtp_port,
        "smtp_security": "plain",
    }
    session = new_session(identity)
    with session, session.begin():
        clients = EmailClients(session, keys)
        known: EmailClient | None = next((client for client in clients.all() if client.email == account.address), None)
        return (clients.create(str(identity.user_id), fields) if known is None else clients.change(known.id, fields)).id
