"""Secret arguments at rest: encrypted, bound to their tenant and run, erased as soon as no attempt can need them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import orjson
from sqlalchemy import and_, delete, exists, insert, or_, select
from sqlalchemy.orm import Session

from core.errors import InvalidInputError
from core.settings import KeyRing
from storage.credentials import CredentialBox
from storage.expressions import db_now_plus
from storage.models import RunSecret, TaskRun
from storage.repositories.base import Repository
from storage.states import LIVE, State

KIND = "arguments"
KEPT_AFTER_FAILURE = 86_400.0
"""Seconds in which a dead letter can still be replayed with its secrets."""


class RunSecrets(Repository):
    """Those of the identity's tenant; the system's are everybody's."""

    def __init__(self, session: Session, keys: KeyRing | None = None) -> None:
        super().__init__(session)
        self._keys = keys

    def keep(self, tenant_id: str, secrets: Mapping[str, Mapping[str, Any]]) -> None:
        """Arguments by run id and name."""
        rows = [
            {"tenant_id": tenant_id, "run_id": run_id, "sealed": self._box().seal(orjson.dumps(kept), **_binding(tenant_id, run_id))}
            for run_id, kept in secrets.items()
        ]
        if rows:
            self.session.execute(insert(RunSecret), rows)

    def of_run(self, tenant_id: str, run_id: str) -> dict[str, Any] | None:
        """In clear; None when they were erased."""
        sealed = self.session.scalar(select(RunSecret.sealed).where(self._mine(tenant_id, run_id)))
        if sealed is None:
            return None
        kept: dict[str, Any] = orjson.loads(self._box().open(sealed, **_binding(tenant_id, run_id)))
        return kept

    def is_kept(self, tenant_id: str, run_id: str) -> bool:
        """Whether there is anything to reveal."""
        return self.session.scalar(select(RunSecret.run_id).where(self._mine(tenant_id, run_id))) is not None

    def erase(self, tenant_id: str, run_ids: Collection[str]) -> None:
        """Whatever their runs are doing."""
        mine = delete(RunSecret).where(self.owns(RunSecret), RunSecret.tenant_id == tenant_id)
        self.session.execute(mine.where(RunSecret.run_id.in_(list(run_ids))))

    def erase_ended(self, run_ids: Collection[str] | None = None) -> int:
        """Of the runs, or of all, those that succeeded, were revoked, were purged, or failed a day ago. Returns how many."""
        is_run = and_(TaskRun.tenant_id == RunSecret.tenant_id, TaskRun.id == RunSecret.run_id)
        is_replayable = and_(TaskRun.state == State.FAILURE, TaskRun.dead_lettered_at > db_now_plus(-KEPT_AFTER_FAILURE))
        is_needed = exists().where(is_run, or_(TaskRun.state.in_(sorted(LIVE)), is_replayable))
        ended = delete(RunSecret).where(self.owns(RunSecret), ~is_needed)
        if run_ids is not None:
            ended = ended.where(RunSecret.run_id.in_(list(run_ids)))
        return len(self.session.scalars(ended.returning(RunSecret.run_id)).all())

    def _mine(self, tenant_id: str, run_id: str) -> Any:
        return and_(self.owns(RunSecret), RunSecret.tenant_id == tenant_id, RunSecret.run_id == run_id)

    def _box(self) -> CredentialBox:
        if self._keys is None:
            raise InvalidInputError("Secrets cannot be read or written here: no key ring was given.")
        return CredentialBox(self._keys)


def _binding(tenant_id: str, run_id: str) -> dict[str, str]:
    return {"tenant_id": tenant_id, "account_id": run_id, "kind": KIND}
