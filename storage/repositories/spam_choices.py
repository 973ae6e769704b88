"""What a tenant wants of the spam check: its settings, the senders it is sure of, and the weights it has taught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from core.errors import InvalidInputError, NotFoundError
from core.ids import is_id
from mail.spam.senders import SenderLists, normalise_pattern
from storage import mail_batches
from storage.expressions import db_now
from storage.models import EmailClient, SpamListEntry, SpamSettings, SpamWeights
from storage.repositories.base import Repository

if TYPE_CHECKING:
    from mail.spam.trial import Learned

MOST_ENTRIES = 10_000
"""Of a tenant's lists: they are read with every check."""
FIELDS = ("threshold", "false_positive_budget", "moves_junk", "is_learning", "trusted_authserv_ids", "own_domains", "brands")


@dataclass(frozen=True, slots=True)
class Choices:
    """All of it, as one check needs it. `delta` are the tenant's weights, None while they do not count."""

    settings: SpamSettings
    lists: SenderLists
    delta: bytes | None
    threshold: float | None


class SpamChoices(Repository):
    """The identity's tenant's; the same for all its users."""

    def all(self, tenant_id: str) -> Choices:
        """Read once for a check or a batch of checks."""
        settings, weights = self.settings(tenant_id), self.weights(tenant_id)
        counts = weights is not None and weights.is_active and settings.is_learning
        learned = weights.threshold if weights is not None and settings.false_positive_budget is not None else None
        return Choices(
            settings=settings,
            lists=self.lists(tenant_id),
            delta=weights.weights if weights is not None and counts else None,
            threshold=settings.threshold if settings.threshold is not None else learned,
        )

    def settings(self, tenant_id: str) -> SpamSettings:
        """The tenant's, or the defaults, which are then no row of the database."""
        found = self.session.scalar(self.scoped(SpamSettings).where(SpamSettings.tenant_id == tenant_id))
        if found is not None:
            return found
        empty: dict[str, Any] = {"trusted_authserv_ids": [], "own_domains": [], "brands": {}}
        return SpamSettings(tenant_id=tenant_id, moves_junk=False, is_learning=True, **empty)

    def moves_junk(self, client: EmailClient) -> bool:
        """What the account wants or, where it says nothing, its tenant."""
        return client.moves_junk if client.moves_junk is not None else self.settings(client.tenant_id).moves_junk

    def change(self, tenant_id: str, fields: dict[str, Any]) -> SpamSettings:
        """Sets what is given, of FIELDS."""
        self.require_tenant(tenant_id)
        row = {name: getattr(self.settings(tenant_id), name) for name in FIELDS} | fields
        statement: Any = self._insert()(SpamSettings).values(tenant_id=tenant_id, **row)
        changed = {name: statement.excluded[name] for name in fields} | {"updated_at": db_now()}
        self.session.execute(statement.on_conflict_do_update(index_elements=["tenant_id"], set_=changed))
        self.session.expire_all()
        return self.settings(tenant_id)

    def lists(self, tenant_id: str) -> SenderLists:
        """The senders that the tenant is sure of."""
        columns = (SpamListEntry.kind, SpamListEntry.pattern)
        rows = self.session.execute(select(*columns).where(self.owns(SpamListEntry), SpamListEntry.tenant_id == tenant_id))
        kinds: dict[str, set[str]] = {"allow": set(), "block": set()}
        for kind, pattern in rows:
            kinds[kind].add(pattern)
        return SenderLists(frozenset(kinds["allow"]), frozenset(kinds["block"]))

    def entries(self, kind: str | None, *, before: tuple[datetime, str] | None = None, limit: int = 50) -> Sequence[SpamListEntry]:
        """The newest first."""
        statement = self.scoped(SpamListEntry)
        if kind is not None:
            statement = statement.where(SpamListEntry.kind == kind)
        if before is not None:
            statement = statement.where(tuple_(SpamListEntry.created_at, SpamListEntry.id) < before)
        return self.session.scalars(statement.order_by(SpamListEntry.created_at.desc(), SpamListEntry.id.desc()).limit(limit)).all()

    def add_entry(self, tenant_id: str, kind: str, pattern: str) -> SpamListEntry:
        """Twice is fine; what is on the other list changes over. Raises InvalidInputError for no address or domain, and for too many."""
        self.require_tenant(tenant_id)
        wanted = normalise_pattern(pattern)
        lists = self.lists(tenant_id)
        if len(lists) >= MOST_ENTRIES and wanted not in lists:
            raise InvalidInputError(f"The lists hold {MOST_ENTRIES} senders; remove some, or list a domain instead of its addresses.")
        statement: Any = self._insert()(SpamListEntry).values(tenant_id=tenant_id, kind=kind, pattern=wanted)
        self.session.execute(statement.on_conflict_do_update(index_elements=["tenant_id", "pattern"], set_={"kind": kind}))
        mine = self.scoped(SpamListEntry).where(SpamListEntry.tenant_id == tenant_id, SpamListEntry.pattern == wanted)
        return self.session.scalars(mine.execution_options(populate_existing=True)).one()

    def remove_entry(self, entry_id: str) -> None:
        """Raises NotFoundError."""
        mine = delete(SpamListEntry).where(self.owns(SpamListEntry), SpamListEntry.id == entry_id).returning(SpamListEntry.id)
        if not is_id(entry_id) or self.session.execute(mine).first() is None:
            raise NotFoundError("There is no sender with this id on the spam lists.")

    def weights(self, tenant_id: str) -> SpamWeights | None:
        """None while nobody of the tenant has said anything."""
        return self.session.scalar(self.scoped(SpamWeights).where(SpamWeights.tenant_id == tenant_id))

    def locked_weights(self, tenant_id: str) -> SpamWeights:
        """The tenant's row, made if there is none, to this transaction alone: feedback and learning take turns on it."""
        self.require_tenant(tenant_id)
        statement: Any = self._insert()(SpamWeights).values(tenant_id=tenant_id, trial={})
        self.session.execute(statement.on_conflict_do_nothing())
        mine = self.scoped(SpamWeights).where(SpamWeights.tenant_id == tenant_id)
        return self.session.scalars(mine.with_for_update().execution_options(populate_existing=True)).one()

    def learned(self, row: SpamWeights, learned: Learned) -> None:
        """Into the tenant's row that is locked."""
        row.learned_revision, row.weights, row.is_active = row.revision, learned.delta.to_bytes(), learned.is_active
        row.spam_count, row.ham_count = learned.spam_count, learned.ham_count
        row.threshold, row.trial, row.updated_at = learned.threshold, learned.trial.as_dict(), db_now()
        self.session.flush()

    def _insert(self) -> Any:
        return postgresql.insert if mail_batches.is_postgres(self.session) else sqlite.insert
