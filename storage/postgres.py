"""All SQL that only PostgreSQL understands: row-level security, SKIP LOCKED, set-based claims and outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import orjson
from sqlalchemy import Connection, text

from core.tenancy import Identity
from storage.outcomes import Outcome
from storage.states import FINAL

_BIND = text(
    "SELECT set_config('mailroom.tenant_id', :tenant_id, true), set_config('mailroom.is_system', :is_system, true)",
)
_VISIBLE = (
    "((SELECT current_setting('mailroom.is_system', true)) = 'on'"
    " OR {column} = (SELECT nullif(current_setting('mailroom.tenant_id', true), '')::uuid))"
)
# NULLIF: after its first use on a connection an unset setting reads as '' and not as NULL.


def bind_identity(connection: Connection, identity: Identity) -> None:
    """Tells the server who acts, for this transaction only (set_config(..., true)): a pooled connection forgets it."""
    connection.execute(_BIND, {"tenant_id": identity.tenant_id, "is_system": "on" if identity.is_system else "off"})


def row_level_security(table: str, column: str = "tenant_id") -> Iterable[str]:
    """The statements that make a table refuse other tenants' rows even to a wrong query.

    FORCE, because the application usually owns its tables and an owner is not subject to its own policies otherwise.
    """
    visible = _VISIBLE.format(column=column)
    yield f'ALTER TABLE "{table}" ENABLE ROW LEVEL SECURITY'
    yield f'ALTER TABLE "{table}" FORCE ROW LEVEL SECURITY'
    yield f'CREATE POLICY tenant_wall ON "{table}" USING ({visible}) WITH CHECK ({visible})'


def bypasses_row_level_security(connection: Connection) -> bool:
    """Whether the connected role would walk through the walls (a superuser, or BYPASSRLS)."""
    return bool(connection.scalar(text("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user")))


# One round trip for any number of outcomes. The fence is what makes an old one change nothing.
_WRITE_OUTCOMES = text(
    """
    WITH done AS (
        SELECT * FROM jsonb_to_recordset(CAST(:outcomes AS jsonb)) AS done (
            run_id uuid, fence bigint, state text, result jsonb, error_type text, error text, reason text, traceback jsonb,
            run_again_in double precision, waiting_for text, unspent int, is_final boolean, duration_ms int)
    ), changed AS (
        UPDATE task_runs run
        SET state = done.state, result = done.result, error_type = done.error_type, error = done.error, reason = done.reason,
            eta = statement_timestamp() + make_interval(secs => done.run_again_in),
            publish_at = statement_timestamp() + make_interval(secs => done.run_again_in),
            waiting_for = coalesce(done.waiting_for, CASE WHEN done.run_again_in IS NOT NULL THEN 'eta' END),
            attempt = run.attempt - done.unspent,
            finished_at = CASE WHEN done.is_final THEN statement_timestamp() END,
            dead_lettered_at = CASE WHEN done.state = 'FAILURE' THEN statement_timestamp() END,
            duration_ms = done.duration_ms
        FROM done
        WHERE run.id = done.run_id AND run.fence = done.fence AND run.state = 'STARTED'
        RETURNING run.id, run.tenant_id, run.attempt + done.unspent AS attempt, run.worker_id, run.started_at
    ), history AS (
        INSERT INTO task_attempts (run_id, fence, tenant_id, attempt, worker_id, state, error_type, error, traceback, started_at,
                                   finished_at, duration_ms)
        SELECT done.run_id, done.fence, changed.tenant_id, changed.attempt, changed.worker_id, done.state, done.error_type, done.error,
               done.traceback, changed.started_at, statement_timestamp(), done.duration_ms
        FROM done JOIN changed ON changed.id = done.run_id
    )
    SELECT id::text FROM changed
    """
)


def write_outcomes(connection: Connection, outcomes: Sequence[Outcome]) -> set[str]:
    """Writes outcomes and their attempts in one statement. Returns the ids of the runs that were changed."""
    rows = [
        {
            "run_id": outcome.run_id,
            "fence": outcome.fence,
            "state": outcome.state,
            "result": outcome.result,
            "error_type": outcome.error_type,
            "error": outcome.error,
            "reason": outcome.reason,
            "traceback": outcome.traceback,
            "run_again_in": outcome.run_again_in,
            "waiting_for": outcome.waiting_for,
            "unspent": 0 if outcome.spends_attempt else 1,
            "is_final": outcome.state in FINAL,
            "duration_ms": outcome.duration_ms,
        }
        for outcome in outcomes
    ]
    return set(connection.execute(_WRITE_OUTCOMES, {"outcomes": orjson.dumps(rows).decode()}).scalars())
