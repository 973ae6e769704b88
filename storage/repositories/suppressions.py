"""Addresses that a tenant does not write to, and the keys that sign a tenant's mail."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.errors import ConflictError, InvalidInputError, NotFoundError
from core.ids import is_id
from core.settings import KeyRing
from mail.dkim import PrivateKey, Signer, load_private_key
from storage.credentials import CredentialBox
from storage.models import DkimKey, Suppression
from storage.repositories.base import Repository

REASONS = ("bounce", "complaint", "manual")


class Suppressions(Repository):
    """The list of the identity's tenant; it is the same for all its users."""

    def among(self, tenant_id: str, addresses: Sequence[str]) -> set[str]:
        """Those of the addresses, in lower case, that the tenant does not write to."""
        if not addresses:
            return set()
        wanted = [address.lower() for address in addresses]
        found = select(Suppression.address).where(self.owns(Suppression), Suppression.tenant_id == tenant_id)
        return set(self.session.scalars(found.where(Suppression.address.in_(wanted))))

    def page(self, *, before: tuple[datetime, str] | None = None, limit: int = 50) -> list[Suppression]:
        """The newest first."""
        statement = self.scoped(Suppression)
        if before is not None:
            statement = statement.where(tuple_(Suppression.created_at, Suppression.id) < before)
        return list(self.session.scalars(statement.order_by(Suppression.created_at.desc(), Suppression.id.desc()).limit(limit)))

    def one(self, name: str) -> Suppression:
        """By id or address. Raises NotFoundError."""
        if is_id(name):
            return self.get(Suppression, name, "suppressed address")
        found = self.session.scalars(self.scoped(Suppression).where(Suppression.address == name.lower()).limit(2)).all()
        if len(found) != 1:  # the system sees those of several tenants
            raise NotFoundError("There is no suppressed address with this id.")
        return found[0]

    def add(self, tenant_id: str, address: str, reason: str, detail: str | None = None) -> Suppression:
        """Twice is fine: the first reason stays."""
        found = self._of(tenant_id, address)
        if found is not None:
            return found
        row = Suppression(tenant_id=tenant_id, address=address.lower(), reason=reason, detail=detail)
        try:
            with self.session.begin_nested():
                self.session.add(row)
                self.session.flush()
        except IntegrityError:  # somebody else was faster
            found = self._of(tenant_id, address)
            if found is None:
                raise
            return found
        self.session.refresh(row)
        return row

    def remove(self, name: str) -> None:
        """The address may be written to again. Raises NotFoundError."""
        self.session.execute(delete(Suppression).where(self.owns(Suppression), Suppression.id == self.one(name).id))

    def _of(self, tenant_id: str, address: str) -> Suppression | None:
        return self.session.scalar(
            self.scoped(Suppression).where(Suppression.tenant_id == tenant_id, Suppression.address == address.lower())
        )


class DkimKeys(Repository):
    """At most one key for each domain of a tenant. The private key is encrypted, bound to its tenant and row."""

    def __init__(self, session: Session, keys: KeyRing | None = None) -> None:
        super().__init__(session)
        self._keys = keys

    def all(self) -> list[DkimKey]:
        """By domain."""
        return list(self.session.scalars(self.scoped(DkimKey).order_by(DkimKey.domain, DkimKey.tenant_id)))

    def one(self, name: str) -> DkimKey:
        """By id or domain. Raises NotFoundError."""
        if is_id(name):
            return self.get(DkimKey, name, "DKIM key")
        found = self.session.scalars(self.scoped(DkimKey).where(DkimKey.domain == name.lower()).limit(2)).all()
        if len(found) != 1:
            raise NotFoundError("There is no DKIM key with this id.")
        return found[0]

    def add(self, domain: str, selector: str, private_key: PrivateKey) -> DkimKey:
        """Raises ConflictError when the domain has a key: delete that one once no mail signed with it is under way."""
        tenant_id = self.identity.tenant_id
        row = DkimKey(tenant_id=tenant_id, domain=domain, selector=selector, private_key=b"")
        try:
            with self.session.begin_nested():
                self.session.add(row)
                self.session.flush()
        except IntegrityError:
            raise ConflictError("There is a DKIM key for this domain; delete it first.") from None
        row.private_key = self._box().encrypt(private_key.as_text(), tenant_id=tenant_id, account_id=row.id, kind="dkim")
        self.session.flush()
        self.session.refresh(row)
        return row

    def remove(self, name: str) -> None:
        """Mails that are accepted from now on are not signed. Raises NotFoundError."""
        self.session.execute(delete(DkimKey).where(self.owns(DkimKey), DkimKey.id == self.one(name).id))

    def private_key(self, row: DkimKey) -> PrivateKey:
        """In clear. Lives as short as possible and is never logged."""
        return load_private_key(self._box().decrypt(row.private_key, tenant_id=row.tenant_id, account_id=row.id, kind="dkim"))

    def of_domain(self, tenant_id: str, domain: str) -> DkimKey | None:
        """The key of the tenant's domain, if it has one."""
        return self.session.scalar(self.scoped(DkimKey).where(DkimKey.tenant_id == tenant_id, DkimKey.domain == domain))

    def signer(self, row: DkimKey) -> Signer:
        """What signs mail from the key's domain."""
        return Signer(row.domain, row.selector, self.private_key(row))

    def _box(self) -> CredentialBox:
        if self._keys is None:
            raise InvalidInputError("Keys cannot be read or written here: no key ring was given.")
        return CredentialBox(self._keys)
