"""Tenants, users, API keys and dashboard sessions."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete as sql_delete
from sqlalchemy import or_, select, update

from core.clock import now
from core.errors import ConflictError, InvalidInputError, NotFoundError
from core.ids import is_id
from core.tenancy import SYSTEM_TENANT, Identity
from storage.expressions import db_now
from storage.models import ApiKey, DashboardSession, Tenant, User
from storage.repositories.base import Repository

SESSION_HOURS = 12
DUMMY_DIGEST = "0" * 64


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a key or a session speaks for."""

    identity: Identity
    key_id: str
    is_admin: bool
    tenant_name: str


class Tenants(Repository):
    """Tenants and their users; for the system."""

    def create(self, name: str) -> Tenant:
        """Raises InvalidInputError for an empty name, ConflictError for one that is taken."""
        cleaned = name.strip()
        if not cleaned or len(cleaned) > 100:
            raise InvalidInputError("A tenant's name has 1 to 100 characters.")
        if self.by_name(cleaned) is not None:
            raise ConflictError(f"There is a tenant named {cleaned} already.")
        tenant = Tenant(name=cleaned)
        self.session.add(tenant)
        self.session.flush()
        return tenant

    def by_name(self, name: str) -> Tenant | None:
        """The tenant with that name, if any."""
        return self.session.scalar(select(Tenant).where(Tenant.name == name))

    def find(self, name_or_id: str) -> Tenant:
        """A tenant by name or id. Raises NotFoundError."""
        tenant = self.by_name(name_or_id)
        return tenant if tenant is not None else self.get(Tenant, name_or_id, "tenant")

    def all(self) -> list[Tenant]:
        """Every tenant but the system's, by name."""
        return list(self.session.scalars(select(Tenant).where(Tenant.id != SYSTEM_TENANT).order_by(Tenant.name)))

    def names(self) -> dict[str, str]:
        """Id to name of the tenants the identity may see."""
        condition = Tenant.id == self.identity.tenant_id if not self.identity.is_system else None
        statement = select(Tenant.id, Tenant.name)
        return {row[0]: row[1] for row in self.session.execute(statement if condition is None else statement.where(condition))}

    def add_user(self, tenant_id: str, name: str) -> User:
        """A new user. Raises ConflictError when the name is taken."""
        if self.session.scalar(select(User).where(User.tenant_id == tenant_id, User.name == name)) is not None:
            raise ConflictError(f"The tenant has a user named {name} already.")
        user = User(tenant_id=tenant_id, name=name)
        self.session.add(user)
        self.session.flush()
        return user

    def user(self, tenant_id: str, name_or_id: str) -> User:
        """An active user by name or id. Raises NotFoundError."""
        user = self.session.scalar(
            select(User).where(User.tenant_id == tenant_id, User.is_active, or_(User.name == name_or_id, User.id == _id_or_nil(name_or_id)))
        )
        if user is None:
            raise NotFoundError("There is no such user in this tenant.")
        return user


class ApiKeys(Repository):
    """Bearer keys: `mr_<id>_<secret>`. The secret has 256 random bits, so a plain SHA-256 of it is enough to keep."""

    def create(self, tenant_id: str, name: str, *, user_id: str | None = None, is_admin: bool = False, days: int | None = None) -> str:
        """Returns the key, which cannot be shown again."""
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        expires_at = now() + timedelta(days=days) if days is not None else None
        self.session.add(
            ApiKey(
                id=key_id, tenant_id=tenant_id, user_id=user_id, name=name, digest=_digest(secret), is_admin=is_admin, expires_at=expires_at
            )
        )
        self.session.flush()
        return f"mr_{key_id}_{secret}"

    def authenticate(self, key: str) -> Caller | None:
        """Who the key speaks for; None for an unknown, wrong, revoked or expired one, after the same work."""
        prefix, _, rest = key.partition("_")
        key_id, _, secret = rest.partition("_")
        row = self._usable(key_id) if prefix == "mr" and key_id.isascii() else None
        matches = hmac.compare_digest(_digest(secret), row[0].digest if row else DUMMY_DIGEST)
        return _caller(*row) if row and matches else None

    def revoke(self, key_id: str) -> None:
        """Ends a key and the dashboard sessions opened with it. Raises NotFoundError."""
        revoked = self.session.execute(
            update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=db_now()).returning(ApiKey.id)
        ).scalar()
        if revoked is None:
            raise NotFoundError("There is no active key with this id.")
        self.session.execute(sql_delete(DashboardSession).where(DashboardSession.api_key_id == key_id))

    def open_session(self, caller: Caller) -> tuple[str, str]:
        """A dashboard session for a caller. Returns its token (for the cookie) and its CSRF token."""
        token, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(24)
        self.session.add(
            DashboardSession(
                digest=_digest(token),
                tenant_id=caller.identity.tenant_id,
                api_key_id=caller.key_id,
                csrf_token=csrf,
                expires_at=now() + timedelta(hours=SESSION_HOURS),
            )
        )
        self.session.flush()
        return token, csrf

    def resume_session(self, token: str) -> tuple[Caller, str] | None:
        """The caller and the CSRF token of a session that is still good."""
        opened = self.session.scalar(
            select(DashboardSession).where(DashboardSession.digest == _digest(token), DashboardSession.expires_at > db_now())
        )
        row = self._usable(opened.api_key_id) if opened is not None else None
        return (_caller(*row), opened.csrf_token) if opened is not None and row is not None else None

    def close_session(self, token: str) -> None:
        """Logs out; closing twice is fine."""
        self.session.execute(sql_delete(DashboardSession).where(DashboardSession.digest == _digest(token)))

    def _usable(self, key_id: str) -> tuple[ApiKey, Tenant] | None:
        row = self.session.execute(
            select(ApiKey, Tenant)
            .join(Tenant, Tenant.id == ApiKey.tenant_id)
            .where(
                ApiKey.id == key_id,
                ApiKey.revoked_at.is_(None),
                Tenant.is_active,
                or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > db_now()),
            )
        ).one_or_none()
        return (row[0], row[1]) if row is not None else None


def _caller(key: ApiKey, tenant: Tenant) -> Caller:
    return Caller(Identity(key.tenant_id, key.user_id, is_system=key.is_admin), key.id, key.is_admin, tenant.name)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _id_or_nil(text: str) -> str:
    """An id, or one that no row has: PostgreSQL would refuse to compare a UUID with other text."""
    return text if is_id(text) else "00000000-0000-0000-0000-000000000000"
