"""Who calls: a bearer key, and for whom it may speak. A route sees none of this but its `Acting`.

Keys are checked before a body is read, so that nobody without one can make us parse or keep anything.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.callers import Asked, KnownCallers
from api.problems import Problem
from core.errors import NotFoundError, TenantError
from core.tenancy import SYSTEM, SYSTEM_TENANT, Identity, acting_as
from storage.engine import session_scope
from storage.repositories.tenants import ApiKeys, Caller, Tenants

OPERATOR = "mailroom.operator"
"""A key of the ASGI scope, which no request over a network can set."""
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="mailroom"'}
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True, slots=True)
class Acting:
    """Who this request acts for, and the way to their data."""

    identity: Identity
    caller: Caller
    engine: Engine

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction as the identity. Opened in the thread that uses it: a binding does not travel between threads."""
        with acting_as(self.identity), session_scope(engine=self.engine) as session:
            yield session

    @contextmanager
    def system_session(self) -> Iterator[Session]:
        """A transaction as Mailroom itself, for what belongs to no tenant."""
        with session_scope(system=True, engine=self.engine) as session:
            yield session

    def narrowed_to(self, tenant: str | None, user: str | None) -> Acting:
        """The same caller with the tenant and user that a request names. Raises TenantError when the key may not name them."""
        if tenant is None and user is None:
            return self
        with self.system_session() as session:
            return replace(self, identity=narrow(session, self.identity, tenant, user))


class FailedLogins:
    """Counts wrong keys by address. A good key is never refused for its neighbours' bad ones: both may sit behind one proxy."""

    def __init__(self, limit: int = 10, per_seconds: float = 60.0) -> None:
        self._limit = limit
        self._per_seconds = per_seconds
        self._failures: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def failed(self, address: str) -> int:
        """Counts one. Returns the seconds to wait when there were too many, else 0."""
        moment = time.monotonic()
        with self._lock:
            if len(self._failures) > 10_000:
                self._failures = {key: times for key, times in self._failures.items() if times[-1] > moment - self._per_seconds}
            times = self._failures.setdefault(address, deque(maxlen=self._limit + 1))
            while times and times[0] <= moment - self._per_seconds:
                times.popleft()
            times.append(moment)
            return max(1, round(times[0] + self._per_seconds - moment)) if len(times) > self._limit else 0


class AuthenticatedRoute(APIRoute):
    """A route that nobody reaches without a good key."""

    def get_route_handler(self) -> Handler:
        """FastAPI's own place for what happens around a handler, before the body is read."""
        answer = super().get_route_handler()

        async def authenticated(request: Request) -> Response:
            acting = request.state.acting = await find_acting(request)
            request.state.tenant_id = acting.identity.tenant_id
            await self.check(request)
            return await answer(request)

        return authenticated

    async def check(self, request: Request) -> None:
        """What else must hold before the body is parsed; JsonRoute looks at the body here."""


async def get_acting(request: Request) -> Acting:
    """What AuthenticatedRoute found. A coroutine, for which FastAPI needs no thread."""
    acting: Acting = request.state.acting
    return acting


ActingNow = Annotated[Acting, Depends(get_acting)]


async def find_acting(request: Request) -> Acting:
    """From memory, or else from the database, on another thread. Raises what `authenticate` raises."""
    if request.scope.get(OPERATOR) is True:
        return await run_in_threadpool(authenticate, request, None)
    known: KnownCallers[Acting] = request.app.state.known_callers
    key, since = _bearer_key(request), known.now()
    asked = Asked.by(key, *_named(request))
    acting = known.find(asked)
    if acting is None:
        acting = await run_in_threadpool(authenticate, request, key)
        known.remember(asked, acting, since)
    return acting


def _named(request: Request) -> tuple[str | None, str | None]:
    """The tenant and the user that the caller wants to act for."""
    return request.headers.get("x-tenant-id"), request.headers.get("x-user-id")


def _bearer_key(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Problem(401, "unauthorized", "Send an API key: Authorization: Bearer mr_...", headers=CHALLENGE)
    return key.strip()


def authenticate(request: Request, key: str | None) -> Acting:
    """Raises Problem 401 or 429, or TenantError for a tenant or user that the key may not name.

    Without a key it is whoever mounts the application in a process of their own: they have the database, and so speak for all tenants.
    """
    engine: Engine = request.app.state.engine
    with session_scope(system=True, engine=engine) as session:
        caller = ApiKeys(session).authenticate(key) if key is not None else Caller(SYSTEM, "", is_admin=True, tenant_name="system")
        if caller is None:
            raise refused(request)
        return Acting(narrow(session, caller.identity, *_named(request)), caller, engine)


def refused(request: Request) -> Problem:
    """The answer to a wrong key: 401, and 429 once there were too many."""
    failures: FailedLogins = request.app.state.failed_logins
    wait = failures.failed(request.client.host if request.client else "unknown")
    if wait:
        return Problem(429, "too_many_requests", "Too many wrong keys came from this address.", headers={"Retry-After": str(wait)})
    return Problem(401, "unauthorized", "This API key is unknown, expired or revoked.", headers=CHALLENGE)


def narrow(session: Session, identity: Identity, tenant: str | None, user: str | None) -> Identity:
    """The identity of a named tenant and user, within what the identity may speak for. `session` is the system's."""
    tenants = Tenants(session)
    tenant_id = _tenant(tenants, identity, tenant) if tenant is not None else identity.tenant_id
    if user is None:
        stays = tenant_id == identity.tenant_id
        return identity if stays else Identity(tenant_id)
    if tenant_id == SYSTEM_TENANT:
        raise TenantError("A user belongs to a tenant; name the tenant too (X-Tenant-Id).")
    try:
        user_id = tenants.user(tenant_id, user).id
    except NotFoundError:
        raise TenantError("This tenant has no active user of that name or id.") from None
    if identity.user_id not in {None, user_id}:
        raise TenantError("This key belongs to another user.")
    return Identity(tenant_id, user_id)


def _tenant(tenants: Tenants, identity: Identity, named: str) -> str:
    """An admin may name any active tenant, everybody else only their own."""
    try:
        tenant = tenants.find(named)
    except NotFoundError:
        tenant = None
    if tenant is None or not tenant.is_active or (not identity.is_system and tenant.id != identity.tenant_id):
        raise TenantError("This key may not act for that tenant.")
    return tenant.id
