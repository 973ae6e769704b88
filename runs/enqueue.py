"""`enqueue`: the run is recorded in the caller's transaction and published after its commit.

Committed is accepted: whatever happens to the brokers, the relay publishes what is recorded. Rolled back is never published.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ParamSpec, TypeVar

import structlog
from sqlalchemy.orm import Session

from brokers.message import Envelope
from core.errors import InvalidInputError, TenantError
from core.ids import new_id
from core.settings import get_settings
from core.tenancy import SYSTEM_TENANT, Identity
from runs.registry import check_arguments, resources_in
from runs.task import Call, Task
from storage.accept import level_of
from storage.dispatch import PUBLISH_GRACE_SECONDS
from storage.engine import after_commit, identity_of
from storage.repositories.resources import Resources
from storage.repositories.runs import NewRun, Recorded, TaskRuns

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
    run = _new_run(call, checked, tenant_id, user_id)
    recorded = TaskRuns(session).insert(run, PUBLISH_GRACE_SECONDS, get_settings().tenant_window)
    if recorded.is_published:
        _publish_after_commit(session, task, [_envelope(run, recorded)])
    return recorded.run_id, recorded.is_new


def enqueue_many(session: Session, what: Task[P, R] | Call[P, R], many: Sequence[dict[str, Any]]) -> list[str]:
    """Records one due run for each of the given arguments and returns their ids in the same order, all of them or none.

    For thousands at a time: a few statements, whatever their number. Raises what `enqueue` raises, and InvalidInputError for an
    option that makes sense for a single run only (a key, a delay).
    """
    call = what if isinstance(what, Call) else Call(what)
    if call.unique_key or call.idempotency_key or call.delay or call.eta or call.run_id or call.after or call.after_group:
        raise InvalidInputError("Runs that are enqueued together start at once and have no keys of their own; enqueue them one by one.")
    tenant_id, user_id = _owner(session, call)
    resources = Resources(session)
    checked = [check_arguments(call.task, arguments) for arguments in many]
    for wanted in {resource for arguments in checked for resource in resources_in(call.task, arguments)}:
        resources.require(*wanted)
    if not checked:
        return []
    run = _new_run(call, {}, tenant_id, user_id)
    recorded = TaskRuns(session).insert_many(run, checked, PUBLISH_GRACE_SECONDS, get_settings().tenant_window)
    published = [_envelope(run, each) for each in recorded if each.is_published]
    if published:
        _publish_after_commit(session, call.task, published)
    return [each.run_id for each in recorded]


def _new_run(call: Call[Any, Any], arguments: dict[str, Any], tenant_id: str, user_id: str | None) -> NewRun:
    return NewRun(
        tenant_id=tenant_id,
        user_id=user_id,
        task=call.task.actor_name,
        queue=call.task.queue_name,
        args=arguments,
        max_attempts=call.max_attempts or call.task.max_attempts,
        priority=int(call.priority),
        delay=call.delay,
        eta=call.eta,
        expires_in=call.expires_in,
        expires_at=call.expires_at,
        unique_key=call.unique_key,
        idempotency_key=call.idempotency_key,
        request_hash=call.request_hash,
        request_id=structlog.contextvars.get_contextvars().get("request_id") or new_id(),
        soft_limit=call.soft_limit,
        hard_limit=call.hard_limit or call.task.limits()[1],
        after_run_id=call.after,
        after_group_id=call.after_group,
        group_id=call.group,
        run_id=call.run_id,
    )


def _envelope(run: NewRun, recorded: Recorded) -> Envelope:
    level = level_of(run.priority, recorded.crowd)
    return Envelope(recorded.run_id, run.task, run.queue, run.tenant_id, run.user_id, run.request_id, 0, level)


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


def _publish_after_commit(session: Session, task: Task[Any, Any], new: list[Envelope]) -> None:
    """All envelopes of a transaction go to the publisher together."""
    waiting: list[Envelope] | None = session.info.get("envelopes")
    if waiting is not None:
        waiting += new
        return
    envelopes = session.info["envelopes"] = new

    def publish() -> None:
        session.info.pop("envelopes", None)
        task.broker.publisher.publish(envelopes)  # type: ignore[attr-defined]  # the RunBroker's

    after_commit(session, publish)
