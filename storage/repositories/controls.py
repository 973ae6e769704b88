"""What operators set over the runs: pauses and limits. For the system; a tenant's own session may neither see nor set them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.errors import InvalidInputError, NotFoundError, TenantError
from core.ids import is_id
from storage import admission
from storage import pauses as statements
from storage.expressions import db_now
from storage.models import Limit, Pause, Tenant
from storage.repositories.base import Repository

PAUSABLE = ("queue", "task", "tenant")
LIMITABLE = ("tenant", "host")


class Controls(Repository):
    """Raises TenantError for anybody but the system. Nothing here waits for more than a batch; the relays do the rest."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        if not self.identity.is_system:
            raise TenantError("Pauses and limits are the operator's; a tenant may not see or set them.")

    def pause(self, kind: str, name: str) -> None:
        """Nothing of a queue, a task or a tenant (`name` is its id) starts from the commit on; what is STARTED goes on.

        Pausing what is paused changes nothing. Raises InvalidInputError for another kind, NotFoundError for an unknown tenant.
        """
        name = self._checked(kind, name, PAUSABLE)
        inserted = self._insert(Pause).values(kind=kind, name=name, created_at=db_now()).on_conflict_do_nothing().returning(Pause.name)
        if self.session.execute(inserted).scalar() is not None:
            statements.turn_waiting(self.session.connection(), kind, name)

    def resume(self, kind: str, name: str) -> None:
        """What waited for this pause alone may start again. Resuming what is not paused changes nothing."""
        connection = self.session.connection()
        statements.end(connection, kind, _normal(kind, name))
        statements.release(connection)

    def pauses(self) -> list[Pause]:
        """Every pause, by kind and name."""
        return list(self.session.scalars(select(Pause).order_by(Pause.kind, Pause.name)))

    def set_limit(self, kind: str, name: str, *, concurrency: int | None = None, per_minute: int | None = None) -> None:
        """Sets or replaces the limit of a tenant (`name` is its id) or a mail host: how many of its runs may be under way at a time,
        and how many may start a minute; None is no bound.

        What is STARTED goes on; what only waits for a worker is taken back as far as it is too much. Raises InvalidInputError and
        NotFoundError.
        """
        name = self._checked(kind, name, LIMITABLE)
        if concurrency is None and per_minute is None:
            raise InvalidInputError("A limit needs concurrency or per_minute, or both.")
        if min(bound for bound in (concurrency, per_minute) if bound is not None) < 1:
            raise InvalidInputError("A limit lets at least one run through; pause what is not to run at all.")
        bounds = {"concurrency": concurrency, "per_minute": per_minute, "swept_at": None}
        new = self._insert(Limit).values(kind=kind, name=name, tokens=1.0, refilled_at=db_now(), **bounds)
        self.session.execute(new.on_conflict_do_update(index_elements=[Limit.kind, Limit.name], set_=bounds))
        admission.take_back(self.session.connection(), kind, name)

    def remove_limit(self, kind: str, name: str) -> None:
        """What waited for this limit alone is let on by the next relay. Raises NotFoundError when there is none."""
        wanted = (Limit.kind == kind, Limit.name == _normal(kind, name))
        if self.session.execute(delete(Limit).where(*wanted).returning(Limit.name)).scalar() is None:
            raise NotFoundError(f"There is no limit of the {kind} {name[:80]}.")

    def limits(self) -> list[Limit]:
        """Every limit, by kind and name."""
        return list(self.session.scalars(select(Limit).order_by(Limit.kind, Limit.name)))

    def _checked(self, kind: str, name: str, kinds: tuple[str, ...]) -> str:
        if kind not in kinds:
            raise InvalidInputError(f"It is one of {', '.join(kinds)} that is meant, not {kind[:80]!r}.")
        name = _normal(kind, name)
        if kind == "tenant" and (not is_id(name) or self.session.get(Tenant, name) is None):
            raise NotFoundError("There is no tenant with this id.")
        if not 0 < len(name) <= 200:
            raise InvalidInputError(f"The name of a {kind} has 1 to 200 characters.")
        return name

    def _insert(self, model: type[Any]) -> postgresql.Insert | sqlite.Insert:
        return (postgresql.insert if self.session.get_bind().dialect.name == "postgresql" else sqlite.insert)(model)


def _normal(kind: str, name: str) -> str:
    """As it is compared: ids and host names in lower case."""
    return name.strip().rstrip(".").lower() if kind in LIMITABLE else name
