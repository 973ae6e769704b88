"""`enqueue`: the run is recorded in the caller's transaction and published after its commit.

Committed is accepted: whatever happens to the brokers, the relay publishes what is recorded. Rolled back is never published. What is all
that its transaction does is committed together with other threads' (runs/intake.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import structlog
from sqlalchemy.orm import Session

from core.errors import InvalidInputError, NotFoundError, TenantError
from core.ids import is_id, new_id
from core.settings import get_settings
from core.tenancy import SYSTEM_TENANT, Identity
from runs.intake import Gathering
from runs.publication import publish_after_commit
from runs.registry import check_arguments, has_resources, resources_in, secrets_of
from runs.secrets import keep_secrets, masked
from runs.task import Call, Task
from storage import dispatch
from storage.deferred import defer, deferred, may_defer
from storage.engine import identity_of, session_scope
from storage.followers import has_members
from storage.outcomes import NewRow
from storage.repositories.resources import Resources
from storage.repositories.runs import NewRun, TaskRuns

P = ParamSpec("P")
R = TypeVar("R")


def enqueue(session: Session, what: Task[P, R] | Call[P, R], *args: P.args, **kwargs: P.kwargs) -> str:
    """Records a run and returns its id, or that of the live run with the same unique key.

    Raises InvalidInputError for wrong arguments, NotFoundError for an id that is not the tenant's, TenantError without a
    tenant. Nothing is recorded then.
    """
    step = what.with_arguments(*args, **kwargs)
    require_predecessor(session, step.call)
    return record(session, step.call, step.arguments)[0]


def enqueue_now(what: Task[P, R] | Call[P, R], *args: P.args, **kwargs: P.kwargs) -> str:
    """`enqueue` for the bound identity and callers without a session. Raises what `enqueue` raises."""
    with session_scope() as session:
        return enqueue(session, what, *args, **kwargs)


def record(session: Session, call: Call[Any, Any], arguments: dict[str, Any]) -> tuple[str, bool]:
    """`enqueue` with the arguments as data, and without a look at what the run is to follow. Also tells whether the run is new."""
    task = call.task
    checked = check_arguments(task, arguments)
    tenant_id, user_id = owner_of(identity_of(session), call)
    if _is_plain(call) and (gathering := _gathering_of(session, task.broker)) is not None:
        run = replace(new_run(call, checked, tenant_id, user_id), run_id=new_id())
        gathering.add(run)
        return run.run_id, True
    resources = Resources(session)
    for argument, kind, row_id in resources_in(task, checked):
        resources.require(argument, kind, row_id)
    run = replace(new_run(call, masked(task, checked), tenant_id, user_id), mail_host=task.mail_host(session, checked))
    recorded = TaskRuns(session).insert(run, dispatch.PUBLISH_GRACE_SECONDS, get_settings().tenant_window)
    if recorded.is_new:
        keep_secrets(session, task, tenant_id, {recorded.run_id: checked})
    publish_after_commit(session, task.broker, run, [recorded])
    return recorded.run_id, recorded.is_new


def _is_plain(call: Call[Any, Any]) -> bool:
    """Nothing of it has to be looked up, or kept apart, in the tenant's own session."""
    task = call.task
    return not (call.is_for_one or call.after or call.group or has_resources(task) or secrets_of(task) or "mail_host" in task.options)


def _gathering_of(session: Session, broker: Any) -> Gathering | None:
    """Where the session's plain runs wait for its commit. None when they are recorded at once: it has begun its transaction."""
    waiting = deferred(session)
    if waiting is None and may_defer(session) and session.get_bind() is broker.intake.engine:
        waiting = Gathering(broker.intake, broker)
        defer(session, waiting)
    return waiting if isinstance(waiting, Gathering) and may_defer(session) else None


def enqueue_many(session: Session, what: Task[P, R] | Call[P, R], many: Sequence[dict[str, Any]]) -> list[str]:
    """Records one due run for each of the given arguments and returns their ids in the same order, all of them or none.

    For thousands at a time: a few statements, whatever their number. Raises what `enqueue` raises, and InvalidInputError for an
    option that makes sense for a single run only (a key, a delay, an end).
    """
    call = what if isinstance(what, Call) else Call(what)
    if call.is_for_one:
        raise InvalidInputError("Runs that are enqueued together have no keys and times of their own; enqueue them one by one.")
    require_predecessor(session, call)
    return record_many(session, call, many)


def record_many(
    session: Session, call: Call[Any, Any], many: Sequence[dict[str, Any]], ids: Sequence[str] = (), after: Sequence[str] = ()
) -> list[str]:
    """`enqueue_many`, with ids of the caller's own, and without a look at what the runs are to follow. `after`: what each of them follows,
    where that is not the same for all; the call must follow something, too."""
    resources = Resources(session)
    checked = [check_arguments(call.task, arguments) for arguments in many]
    for wanted in {resource for arguments in checked for resource in resources_in(call.task, arguments)}:
        resources.require(*wanted)
    run_ids = record_checked(session, call, [masked(call.task, arguments) for arguments in checked], ids, after=after)
    keep_secrets(session, call.task, owner_of(identity_of(session), call)[0], dict(zip(run_ids, checked, strict=True)))
    return run_ids


def record_checked(
    session: Session,
    call: Call[Any, Any],
    checked: Sequence[dict[str, Any]],
    ids: Sequence[str] = (),
    request_ids: Sequence[str] = (),
    after: Sequence[str] = (),
) -> list[str]:
    """`record_many` for arguments that were checked, resources too, and that hold no secret."""
    tenant_id, user_id = owner_of(identity_of(session), call)
    if not checked:
        return []
    run = new_run(call, {}, tenant_id, user_id)
    recorded: dict[int, str] = {}
    for mail_host, places in _by_mail_host(session, call.task, checked).items():
        rows = [
            NewRow(
                ids[place] if ids else new_id(),
                checked[place],
                request_ids[place] if request_ids else run.request_id,
                after[place] if after else None,
            )
            for place in places
        ]
        part = replace(run, mail_host=mail_host)
        new = TaskRuns(session).insert_many(part, rows, dispatch.PUBLISH_GRACE_SECONDS, get_settings().tenant_window)
        publish_after_commit(session, call.task.broker, part, new)
        recorded |= {place: each.run_id for place, each in zip(places, new, strict=True)}
    return [recorded[place] for place in range(len(checked))]


def _by_mail_host(session: Session, task: Task[Any, Any], many: Sequence[dict[str, Any]]) -> dict[str | None, list[int]]:
    """Which of the arguments go to which server."""
    places: dict[str | None, list[int]] = defaultdict(list)
    for place, arguments in enumerate(many):
        places[task.mail_host(session, arguments)].append(place)
    return places


def new_run(call: Call[Any, Any], arguments: dict[str, Any], tenant_id: str, user_id: str | None) -> NewRun:
    """The row of a call, checked."""
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


def require_predecessor(session: Session, call: Call[Any, Any]) -> None:
    """Raises NotFoundError if the run or the group that the call is to follow is not its tenant's."""
    if call.after is None and call.after_group is None:
        return
    if call.after is not None and call.after_group is not None:
        raise InvalidInputError("A run follows a run or a group, not both; put another run between them.")
    tenant_id, _ = owner_of(identity_of(session), call)
    if call.after is not None and TaskRuns(session).one(call.after).tenant_id != tenant_id:
        raise NotFoundError("There is no task run with this id.")
    if call.after_group is not None and not (is_id(call.after_group) and has_members(session, call.after_group, tenant_id)):
        raise NotFoundError("There is no group with this id.")


def owner_of(identity: Identity, call: Call[Any, Any]) -> tuple[str, str | None]:
    """Whose run it is: the identity's, unless the system enqueues for a tenant."""
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
