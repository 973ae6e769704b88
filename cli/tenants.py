"""Tenants and their API keys."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cli.processes import checked_session

tenant_commands = typer.Typer(help="Tenants.", no_args_is_help=True)
key_commands = typer.Typer(help="API keys.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    tenant_commands.command("create")(create_tenant)
    tenant_commands.command("list")(list_tenants)
    key_commands.command("create")(create_key)
    key_commands.command("revoke")(revoke_key)
    app.add_typer(tenant_commands, name="tenant")
    app.add_typer(key_commands, name="key")


def create_tenant(
    name: str, user: Annotated[list[str] | None, typer.Option("--user", help="Also make a user of this name; may be repeated.")] = None
) -> None:
    """Make a tenant; prints its id."""
    from storage.repositories.tenants import Tenants

    with checked_session() as session:
        tenant = Tenants(session).create(name)
        for user_name in user or []:
            Tenants(session).add_user(tenant.id, user_name)
    print(tenant.id)


def list_tenants(as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False) -> None:
    """List the tenants."""
    from storage.repositories.tenants import Tenants

    with checked_session() as session:
        for tenant in Tenants(session).all():
            print(
                json.dumps({"id": tenant.id, "name": tenant.name, "isActive": tenant.is_active})
                if as_json
                else f"{tenant.id}  {tenant.name}"
            )


def create_key(
    tenant: Annotated[str | None, typer.Argument(help="The tenant, by name or id.")] = None,
    name: Annotated[str, typer.Option("--name", help="What the key is for.")] = "cli",
    user: Annotated[str | None, typer.Option("--user", help="Bind the key to this user.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="A key for all tenants.")] = False,
    days: Annotated[int | None, typer.Option("--days", min=1, help="Days until it expires.")] = None,
) -> None:
    """Make an API key; it is printed once and cannot be shown again."""
    from core.errors import InvalidInputError
    from core.tenancy import SYSTEM_TENANT
    from storage.repositories.tenants import ApiKeys, Tenants

    if admin == (tenant is not None):
        raise InvalidInputError("Name the tenant the key is for, or give --admin for a key for all of them.")
    with checked_session() as session:
        tenants = Tenants(session)
        tenant_id = SYSTEM_TENANT if tenant is None else tenants.find(tenant).id
        user_id = tenants.user(tenant_id, user).id if user is not None else None
        key = ApiKeys(session).create(tenant_id, name, user_id=user_id, is_admin=admin, days=days)
    print(key)


def revoke_key(key_id: Annotated[str, typer.Argument(help="The 12 characters after mr_.")]) -> None:
    """End an API key and the dashboard sessions opened with it."""
    from storage.repositories.tenants import ApiKeys

    with checked_session() as session:
        ApiKeys(session).revoke(key_id.removeprefix("mr_").split("_", 1)[0])
