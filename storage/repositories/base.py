"""The wall every repository stands behind: a query starts from `scoped(Model)`, which adds tenant and user before anything else."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, bindparam, select, true
from sqlalchemy.orm import Session

from core.errors import NotFoundError, TenantError
from core.ids import is_id
from storage.engine import identity_of
from storage.models.base import Base

Row = TypeVar("Row", bound=Base)


def column(model: type[Base], name: str) -> ColumnElement[Any]:
    """A mapped column by name, for queries over any table."""
    found: ColumnElement[Any] = getattr(model, name)
    return found


def _wall(model: type[Any], tenant_id: Any, user_id: Any) -> ColumnElement[bool]:
    """The condition that a row is the tenant's and, unless the user is None, that user's."""
    condition: ColumnElement[bool] = model.tenant_id == tenant_id
    if user_id is not None and hasattr(model, "user_id"):
        condition &= model.user_id == user_id
    return condition


@cache
def _row_of(model: type[Base], *, of_user: bool) -> Select[Any]:
    """A tenant's row by its id, built once: building it takes longer than asking."""
    owned = _wall(model, bindparam("tenant_id"), bindparam("user_id") if of_user else None)
    return select(model).where(owned, column(model, "id") == bindparam("row_id"))


class Repository:
    """Bound to a session, acts for its identity. The system sees every tenant; a user sees what is theirs."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.identity = identity_of(session)

    def owns(self, model: type[Any]) -> ColumnElement[bool]:
        """The condition that a row belongs to the identity; true for the system."""
        return true() if self.identity.is_system else _wall(model, self.identity.tenant_id, self.identity.user_id)

    def require_tenant(self, tenant_id: str) -> None:
        """Raises TenantError when rows of this tenant are not the identity's to write."""
        if not self.identity.is_system and tenant_id != self.identity.tenant_id:
            raise TenantError("These rows belong to another tenant.")

    def scoped(self, model: type[Row]) -> Select[Row]:
        """A SELECT of the identity's rows of a table."""
        return select(model).where(self.owns(model))

    def get(self, model: type[Row], row_id: str, what: str) -> Row:
        """The identity's row with that id. Raises NotFoundError for an unknown, foreign or malformed id alike."""
        row = self._row(model, row_id) if is_id(row_id) else None
        if row is None:
            raise NotFoundError(f"There is no {what} with this id.")
        return row

    def _row(self, model: type[Row], row_id: str) -> Row | None:
        if self.identity.is_system:
            return self.session.scalar(self.scoped(model).where(column(model, "id") == row_id))
        statement: Select[Row] = _row_of(model, of_user=self.identity.user_id is not None)
        names = {"tenant_id": self.identity.tenant_id, "user_id": self.identity.user_id, "row_id": row_id}
        return self.session.scalar(statement, names)
