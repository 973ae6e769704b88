"""What was asked for under an Idempotency-Key, where no run bears it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import orjson
from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from core.errors import ConflictError, InvalidInputError
from storage.expressions import db_now_plus
from storage.models import RequestKey
from storage.repositories.base import Repository

BATCH = 500


class RequestKeys(Repository):
    """Those of the identity's tenant."""

    def once(self, key: str | None, request: list[Any], carry_out: Callable[[], str]) -> str:
        """Carries a request out and returns the id of its answer: that of the first time, if the key was used for it before.

        Raises InvalidInputError when the key was used for another request, ConflictError when the same is being carried out now.
        """
        if key is None:
            return carry_out()
        digest = hashlib.sha256(orjson.dumps(request, option=orjson.OPT_SORT_KEYS)).hexdigest()
        mine = select(RequestKey).where(RequestKey.tenant_id == self.identity.tenant_id, RequestKey.idempotency_key == key)
        earlier = self.session.scalar(mine)
        if earlier is not None:
            if earlier.request_hash != digest:
                raise InvalidInputError("This Idempotency-Key was used for a different request; use a new key.")
            return earlier.answer_id
        answer_id = carry_out()
        self.session.add(RequestKey(tenant_id=self.identity.tenant_id, idempotency_key=key, request_hash=digest, answer_id=answer_id))
        try:
            self.session.flush()
        except IntegrityError:
            raise ConflictError("A request with this Idempotency-Key is being worked on; send it again.") from None
        return answer_id

    def forget_old(self, days: int) -> int:
        """Deletes up to BATCH keys that are older. Returns how many."""
        old = select(RequestKey.tenant_id, RequestKey.idempotency_key).where(RequestKey.created_at < db_now_plus(-days * 86_400.0))
        rows = self.session.execute(old.order_by(RequestKey.created_at).limit(BATCH)).all()
        for tenant_id, key in rows:
            self.session.execute(delete(RequestKey).where(RequestKey.tenant_id == tenant_id, RequestKey.idempotency_key == key))
        return len(rows)
