"""Who is acting. Every function that touches tenants' data asks here, and fails when nobody is bound.

The identity is bound by the API (from the key), by the worker's middleware (from the claimed run), by the scheduler and the
commands (the system). It is never a parameter of a task.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass

from core.errors import TenantError

SYSTEM_TENANT = "00000000-0000-7000-8000-000000000000"
"""The tenant that owns scheduled runs. It has no mail of its own."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A tenant, one of its users (None: the tenant as a whole), and whether this is Mailroom itself acting over all tenants."""

    tenant_id: str
    user_id: str | None = None
    is_system: bool = False


SYSTEM = Identity(SYSTEM_TENANT, is_system=True)

_identity: ContextVar[Identity | None] = ContextVar("identity", default=None)


def current_identity() -> Identity:
    """The bound identity. Raises TenantError when there is none: no tenant, no data."""
    identity = _identity.get()
    if identity is None:
        raise TenantError("No tenant is bound here; bind one with acting_as(identity).")
    return identity


def bound_identity() -> Identity | None:
    """The bound identity or None, for code that only describes the context (logging, defaults)."""
    return _identity.get()


def bind(identity: Identity) -> Token[Identity | None]:
    """Binds the identity until `unbind`, for code that cannot use a block (a worker's middleware)."""
    return _identity.set(identity)


def unbind(token: Token[Identity | None]) -> None:
    """Restores what was bound before `bind`."""
    _identity.reset(token)


@contextmanager
def acting_as(identity: Identity) -> Iterator[Identity]:
    """Binds the identity for the block and restores what was bound before."""
    token = bind(identity)
    try:
        yield identity
    finally:
        unbind(token)
