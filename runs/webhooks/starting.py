"""Gives every event that waits to be told a run that tells it. The relay calls this when there are any."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from dramatiq.errors import ActorNotFound
from sqlalchemy import Engine

from core.ids import new_id
from runs.enqueue import record_many
from runs.task import Call
from storage.engine import session_scope
from storage.event_types import DELIVERS
from storage.repositories.webhooks import BATCH, Deliveries

if TYPE_CHECKING:
    from runs.broker import RunBroker


def start_deliveries(broker: RunBroker, engine: Engine) -> None:
    """Any number of processes may do so at once. A process that does not know the task leaves it to others."""
    try:
        task = broker.task(DELIVERS)
    except ActorNotFound:
        return
    found = BATCH
    while found == BATCH:
        with session_scope(system=True, engine=engine) as session:
            deliveries = Deliveries(session)
            by_tenant: dict[str, list[str]] = defaultdict(list)
            for tenant_id, delivery_id in deliveries.not_started():
                by_tenant[tenant_id].append(delivery_id)
            for tenant_id, ids in by_tenant.items():
                arguments = [{"delivery_id": each} for each in ids]
                run_ids = record_many(session, Call(task, tenant=tenant_id), arguments, [new_id() for _ in ids])
                deliveries.started(list(zip(ids, run_ids, strict=True)))
        found = sum(map(len, by_tenant.values()))
