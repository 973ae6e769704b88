"""What a request narrows runs to, and the count it must confirm before many of them are changed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from sqlalchemy.orm import Session

from api.auth import Acting
from core.errors import InvalidInputError, NotFoundError, TenantError
from storage.repositories.runs import RunFilter
from storage.repositories.tenants import Tenants
from storage.states import LIVE, WAITING, State

Name = Annotated[str | None, Field(max_length=200)]
STATES: dict[str | None, frozenset[State]] = {"waiting": WAITING, "running": frozenset({State.STARTED}), None: LIVE}


class Sweep(BaseModel):
    """`dryRun` counts; without it `expect` must be that count, or nothing is changed."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)

    dry_run: bool = False
    expect: int | None = Field(None, ge=0)

    @property
    def confirmed(self) -> int:
        """The count the caller agrees to. Raises InvalidInputError."""
        if self.expect is None:
            raise InvalidInputError("Send dryRun: true for the count first, and then expect with that count instead.")
        return self.expect


class RevokeMany(Sweep):
    """Which runs: of a tenant (for admins), a queue, a task; those that wait, those that run, or (neither is said) both."""

    tenant: Name = None
    queue: Name = None
    task: Name = None
    state: Literal["waiting", "running"] | None = None
    terminate: bool = False

    def narrowed(self, session: Session, acting: Acting) -> RunFilter:
        """As the repository takes it."""
        return RunFilter(sorted(STATES[self.state]), self.queue, self.task, tenant_id_of(session, acting, self.tenant))


class DeadLetters(Sweep):
    """Which dead letters: these ids, or those of a tenant (for admins), a queue, a task, a reason."""

    ids: list[Annotated[str, Field(max_length=36)]] | None = Field(None, max_length=1000)
    tenant: Name = None
    queue: Name = None
    task: Name = None
    reason: Name = None

    def narrowed(self, session: Session, acting: Acting) -> RunFilter:
        """As the repository takes it."""
        tenant_id = tenant_id_of(session, acting, self.tenant)
        return RunFilter((), self.queue, self.task, tenant_id, dead_letters_only=True, reason=self.reason, ids=self.ids)


def tenant_id_of(session: Session, acting: Acting, named: str | None) -> str | None:
    """A tenant by name or id; None stays None. A foreign tenant is as unknown as none."""
    if not named:
        return None
    tenants = Tenants(session)
    if acting.identity.is_system:
        return tenants.find(named).id
    if named in {acting.identity.tenant_id, tenants.names().get(acting.identity.tenant_id)}:
        return acting.identity.tenant_id
    raise NotFoundError("There is no tenant with this id.")


def require_admin(acting: Acting) -> None:
    """Raises TenantError for whoever does not act for all tenants."""
    if not acting.identity.is_system:
        raise TenantError("This is for an admin key (without X-Tenant-Id): it concerns every tenant.")
