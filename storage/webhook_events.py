"""Events for webhooks, written in the transaction of what they tell of: what is rolled back is told to nobody, what is committed to all.

A tenant without a webhook costs one probe of an empty index for each batch of outcomes, and nothing for a mail.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from core.ids import new_id
from storage.event_types import DELIVERS, MAIL_EVENTS, TASK_EVENTS
from storage.expressions import db_now
from storage.models import TaskRun, Webhook, WebhookDelivery
from storage.states import OutboundStatus

FRESH_SECONDS = 2.0
"""A process that has seen no webhook of a tenant looks again after so long, where every mail would cost a look."""
_seen: dict[tuple[int, str], tuple[float, bool]] = {}


@dataclass(frozen=True, slots=True)
class NewEvent:
    """Something that happened to a tenant. `data` has ids, states and numbers: no address, no content, no secret."""

    tenant_id: str
    type: str
    data: dict[str, Any]


def note(connection: Connection, events: Sequence[NewEvent]) -> None:
    """Writes a delivery for each webhook that wants to know. Two statements, one where there is no webhook."""
    if not events:
        return
    tenants = {event.tenant_id for event in events}
    found = select(Webhook.id, Webhook.tenant_id, Webhook.events).where(Webhook.tenant_id.in_(sorted(tenants)), Webhook.is_active)
    hooks = connection.execute(found).all()
    if not hooks:
        return
    moment = connection.execute(select(db_now())).scalar_one().isoformat(timespec="milliseconds").replace("+00:00", "Z")
    rows = [
        {"id": new_id(), "tenant_id": hook.tenant_id, "webhook_id": hook.id, "type": event.type, "payload": payload_of(event, moment)}
        for event in events
        for hook in hooks
        if hook.tenant_id == event.tenant_id and event.type in hook.events
    ]
    if rows:
        connection.execute(insert(WebhookDelivery).values(created_at=db_now(), status="pending", attempts=0), rows)


def payload_of(event: NewEvent, moment: str) -> dict[str, Any]:
    """The body of the request, as Standard Webhooks has it."""
    return {"type": event.type, "timestamp": moment, "data": event.data}


def note_revoked(connection: Connection, run_ids: Collection[str]) -> None:
    """Runs that were ended while they waited."""
    if not run_ids or connection.execute(select(Webhook.id).where(Webhook.is_active).limit(1)).scalar() is None:
        return
    columns = (TaskRun.id, TaskRun.tenant_id, TaskRun.user_id, TaskRun.task, TaskRun.queue, TaskRun.attempt, TaskRun.state, TaskRun.reason)
    runs = connection.execute(select(*columns).where(TaskRun.id.in_(list(run_ids))))
    note(connection, [event for run in runs if (event := task_event(run)) is not None])


def task_event(run: Any) -> NewEvent | None:
    """Of a row with a run's columns, the ones in storage/postgres.py; None where nobody is told."""
    kind = TASK_EVENTS.get(run.state)
    if kind is None or run.task == DELIVERS:
        return None
    data = {
        "taskId": run.id,
        "task": run.task,
        "queue": run.queue,
        "state": run.state,
        "userId": run.user_id,
        "attempt": run.attempt,
        "errorType": getattr(run, "error_type", None),
        "reason": run.reason,
        "durationMs": getattr(run, "duration_ms", None),
    }
    return NewEvent(run.tenant_id, kind, data)


def note_mail(connection: Connection, tenant_id: str, email_id: str, status: str, run_id: str | None) -> None:
    """An outbound mail has come to an end, if that status is one. `run_id`: the run that put it into the outbox, if one did."""
    kind = MAIL_EVENTS.get(OutboundStatus(status))
    if kind is not None:
        note(connection, [NewEvent(tenant_id, kind, {"emailId": email_id, "status": status, "taskId": run_id})])


def may_be_heard(connection: Connection, tenant_id: str) -> bool:
    """Whether the tenant has a webhook, as far as this process has seen within the last FRESH_SECONDS."""
    engine: Engine = connection.engine
    key, now = (id(engine), tenant_id), time.monotonic()
    seen = _seen.get(key)
    if seen is None or now - seen[0] > FRESH_SECONDS:
        if len(_seen) > 10_000:
            _seen.clear()
        found = connection.execute(select(Webhook.id).where(Webhook.tenant_id == tenant_id, Webhook.is_active).limit(1)).scalar()
        seen = _seen[key] = (now, found is not None)
    return seen[1]
