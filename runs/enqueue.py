"""`enqueue`: the run is recorded in the caller's transaction and published after its commit.

Committed is accepted: whatever happens to the brokers, the relay publishes what is recorded. Rolled back is never published.
"""

from __future__ import annotations

import inspect
from typing import Any, ParamSpec, TypeVar

import structlog
from sqlalchemy.orm import Session

from brokers.message import Envelope
from core.errors import TenantError
from core.ids import new_id
from core.tenancy import SYSTEM_TENANT, Identity
from runs.registry import check_arguments, resources_in
from runs.task import Call, Task
from storage.dispatch import PUBLISH_GRACE_SECONDS
from storage.engine import after_commit, identity_of
from storage.repositories.resources import Resources
from storage.repositories.runs import NewRun, TaskRuns

P = ParamSpec("P")
R = TypeVar("R")


def enqueue(session: Session, what: Task[P, R] | Call[P, R], *args: P.args, **kwargs: P.kwargs) -> str:
    """Records a run and returns its id, or that of the live run with the same unique key.

    Raises InvalidInputError for wrong arguments, NotFoundError for an id that is not the tenant's, TenantError without a
    tenant. Nothing is recorded then.
    """
    call = what if isinstance(what, Call) else Call(what)
    positional = zip(inspect.signature(call.task.fn).parameters, args, strict=False)
    return record(session, call, {**dict(positional), **kwargs})[0]


def record(session: Session, call: Call[Any, Any], arguments: dict[str, Any]) -> tuple[str, bool]:
    """`enqueue` with the arguments as data. Also tells whether the run is new."""
    task = call.task
    checked = check_arguments(task, arguments)
    tenant_id, user_id = _owner(session, call)
    resources = Resources(session)
    for argument, kind, row_id in resources_in(task, checked):
        resources.require(argument, kind, row_id)
    request_id = structlog.contextvars.get_contextvars().get("request_id") or new_id()
    run = NewRun(
        tenant_id=tenant_id,
        user_id=user_id,
        task=task.actor_name,
        queue=task.queue_name,
        args=checked,
        max_attempts=call.max_attempts or task.max_attempts,
        priority=int(call.priority),
        delay=call.delay,
        eta=call.eta,
        expires_in=call.expires_in,
        expires_at=call.expires_at,
        unique_key=call.unique_key,
        idempotency_key=call.idempotency_key,
        request_hash=call.request_hash,
        request_id=request_id,
        soft_limit=call.soft_limit,
        hard_limit=call.hard_limit,
        run_id=call.run_id,
    )
    run_id, is_new = TaskRuns(session).insert(run, PUBLISH_GRACE_SECONDS)
    if is_new and call.eta is None and not call.delay:
        envelope = Envelope(run_id, task.actor_name, task.queue_name, tenant_id, user_id, request_id, 0, int(call.priority))
        _publish_after_commit(session, task, envelope)
    return run_id, is_new


def _owner(session: Session, call: Call[Any, Any]) -> tuple[str, str | None]:
    """Whose run it is: the session's identity's, unless the system enqueues for a tenant."""
    identity: Identity = identity_of(session)
    is_systems = "periodic" in call.task.options
    if is_systems and not identity.is_system:
        raise TenantError(f"{call.task.actor_name} works over all tenants; only the system may run it.")
    if identity.is_system:
        if call.tenant is None and not is_systems:
            raise TenantError(f"{call.task.actor_name} works on a tenant's data; the system must name the tenant in its options.")
        return call.tenant or SYSTEM_TENANT, call.user
    if call.tenant not in {None, identity.tenant_id} or (identity.user_id is not None and call.user not in {None, identity.user_id}):
        raise TenantError("A run belongs to the tenant and user that are bound.")
    return identity.tenant_id, call.user or identity.user_id


def _publish_after_commit(session: Session, task: Task[Any, Any], envelope: Envelope) -> None:
    """All envelopes of a transaction go to the publisher together."""
    waiting: list[Envelope] | None = session.info.get("envelopes")
    if waiting is not None:
        waiting.append(envelope)
        return
    envelopes = session.info["envelopes"] = [envelope]

    def publish() -> None:
        session.info.pop("envelopes", None)
        task.broker.publisher.publish(envelopes)  # type: ignore[attr-defined]  # the RunBroker's

    after_commit(session, publish)
