"""Secret arguments: whoever enqueues gives them, the actor gets them, and nobody sees them between.

An argument typed `SecretText` never stands in `task_runs.args`, where a mask takes its place, so that no list, page, message, event
or hash can show it. It is kept encrypted in `run_secrets`, bound to its tenant and run, and handed to the actor by the call itself.
It is erased when the run succeeds or is revoked, and a day after it has failed: until then a dead letter can be replayed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping
from typing import Any

import orjson
from dramatiq import Actor
from sqlalchemy.orm import Session

from core.errors import ConflictError, PermanentError
from core.settings import get_settings
from runs.current import MASK, hold_secrets
from runs.registry import secrets_of
from storage.engine import session_scope
from storage.models import TaskRun
from storage.outcomes import Claim
from storage.repositories.run_secrets import RunSecrets

Arguments = dict[str, Any]


class SecretErasedError(PermanentError):
    """The run's secret argument is not kept any more."""

    code = "secret_erased"


def masked(task: Actor[..., Any], arguments: Arguments) -> Arguments:
    """The arguments as they may be recorded and shown."""
    hidden = {name: MASK for name in secrets_of(task) if arguments.get(name) is not None}
    return {**arguments, **hidden} if hidden else arguments


def keep_secrets(session: Session, task: Actor[..., Any], tenant_id: str, runs: Mapping[str, Arguments]) -> None:
    """Keeps what was masked, by run id, in the transaction that records the runs."""
    names = secrets_of(task)
    if names and runs:
        secrets = {run_id: {name: given[name] for name in names if given.get(name) is not None} for run_id, given in runs.items()}
        RunSecrets(session, get_settings().credential_keys).keep(tenant_id, {run_id: kept for run_id, kept in secrets.items() if kept})


def reveal(task: Actor[..., Any], run: Claim) -> Arguments:
    """The run's secret arguments, for the call of its actor. Raises SecretErasedError, and CredentialError when they cannot be read."""
    wanted = [name for name in secrets_of(task) if run.args.get(name) == MASK]
    if not wanted:
        return {}
    with session_scope() as session:
        kept = RunSecrets(session, get_settings().credential_keys).of_run(run.tenant_id, run.run_id)
    if kept is None:
        raise SecretErasedError(_erased(wanted))
    hold_secrets(kept.values())
    return {name: kept[name] for name in wanted}


def erase_ended(session: Session, runs: Collection[str] | None = None) -> int:
    """Erases the secrets of those of the runs (of all: None) that can need them no more. Returns how many were."""
    return RunSecrets(session).erase_ended(runs)


def require_kept(session: Session, task: Actor[..., Any], run: TaskRun) -> None:
    """Before a replay. Raises ConflictError if a secret argument was erased: it would only fail again."""
    wanted = [name for name in secrets_of(task) if run.args.get(name) == MASK]
    if wanted and not RunSecrets(session).is_kept(run.tenant_id, run.id):
        raise ConflictError(_erased(wanted))


def fingerprint(task: Actor[..., Any], arguments: Arguments) -> Arguments:
    """The arguments for a hash of the request: a secret is replaced by a keyed digest, since short ones can be guessed from a plain one."""
    names = [name for name in secrets_of(task) if arguments.get(name) is not None]
    if not names:
        return arguments
    key = next(iter(get_settings().credential_keys.values()))
    digests = {
        name: hmac.new(
            key, b"request|" + task.actor_name.encode() + b"|" + orjson.dumps([name, arguments[name]]), hashlib.sha256
        ).hexdigest()
        for name in names
    }
    return {**arguments, **digests}


def _erased(names: list[str]) -> str:
    return f"The secret argument {', '.join(names)} was erased when the run ended; start the task anew with a fresh one."
