"""All SQL that only PostgreSQL understands: row-level security, SKIP LOCKED, set-based claims and outcomes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import orjson
import psycopg2
from sqlalchemy import Connection, Engine, text

from core.tenancy import Identity
from storage.outcomes import Claim, Outcome, RecordRefusedError
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


_OUTCOMES = """
    done AS (
        SELECT * FROM jsonb_to_recordset({outcomes}) AS done (
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
        WHERE run.id = done.run_id AND run.fence = done.fence AND (run.state || '') = 'STARTED'
        RETURNING run.id, run.tenant_id, run.attempt + done.unspent AS attempt, run.worker_id, run.started_at
    ), history AS (
        INSERT INTO task_attempts (run_id, fence, tenant_id, attempt, worker_id, state, error_type, error, traceback, started_at,
                                   finished_at, duration_ms)
        SELECT done.run_id, done.fence, changed.tenant_id, changed.attempt, changed.worker_id, done.state, done.error_type, done.error,
               done.traceback, changed.started_at, statement_timestamp(), done.duration_ms
        FROM done JOIN changed ON changed.id = done.run_id
    )"""
_WRITE_OUTCOMES = text(f"WITH {_OUTCOMES.format(outcomes='CAST(:outcomes AS jsonb)')} SELECT id::text FROM changed")  # noqa: S608  (our own text)

# $1 the outcomes, $2 the claims and $3 their tenants by id, $4 the worker, $5 the claims in doubt. One statement, one commit.
# A run is never in both halves: the recorder claims nothing that it holds. `|| ''` keeps the planner off the indexes over `state`:
# with statistics from when nothing waited it would read every waiting run to find sixteen.
_TURN = f"""
    PREPARE mailroom_turn (jsonb, uuid[], jsonb, text, uuid[]) AS
    WITH {_OUTCOMES.format(outcomes="$1")}, claimed AS (
        UPDATE task_runs run
        SET state = 'STARTED', worker_id = $4, started_at = statement_timestamp(), publish_at = NULL, waiting_for = NULL, eta = NULL,
            attempt = run.attempt + CASE WHEN run.state = 'STARTED' THEN 0 ELSE 1 END,
            fence = run.fence + CASE WHEN run.state = 'STARTED' THEN 0 ELSE 1 END
        WHERE run.id = ANY ($2) AND run.tenant_id = ($3 ->> run.id::text)::uuid
          AND ((run.state || '') IN ('PENDING', 'RETRY') AND (run.eta IS NULL OR run.eta <= statement_timestamp())
                                                         AND (run.expires_at IS NULL OR run.expires_at > statement_timestamp())
               OR (run.state || '') = 'STARTED' AND run.worker_id = $4 AND run.id = ANY ($5))
        RETURNING run.id, run.tenant_id, run.user_id, run.task, run.queue, run.args, run.attempt, run.max_attempts, run.fence,
                  run.request_id, run.soft_limit, run.hard_limit
    )
    SELECT id::text, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM changed
    UNION ALL
    SELECT id::text, tenant_id::text, user_id::text, task, queue, args::text, attempt, max_attempts, fence, request_id, soft_limit,
           hard_limit
    FROM claimed
"""  # noqa: S608  (our own text)


def write_outcomes(connection: Connection, outcomes: Sequence[Outcome]) -> set[str]:
    """Writes outcomes and their attempts in one statement. Returns the ids of the runs that were changed."""
    return set(connection.execute(_WRITE_OUTCOMES, {"outcomes": _packed(outcomes)}).scalars())


class PostgresRecord:
    """See storage/record.py. A connection of its own, for one thread: the system's for good, its one statement prepared."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Any = None

    def turn(
        self, worker_id: str, outcomes: Sequence[Outcome], wanted: Mapping[str, str], in_doubt: Collection[str]
    ) -> tuple[set[str], dict[str, Claim]]:
        """See Record. A broken connection raises; the next turn opens a new one."""
        try:
            with self._cursor() as cursor:
                values = (_packed(outcomes), sorted(wanted), orjson.dumps(dict(wanted)).decode(), worker_id, list(in_doubt))
                cursor.execute("EXECUTE mailroom_turn (%s, %s::uuid[], %s, %s, %s::uuid[])", values)
                rows = cursor.fetchall()
        except (psycopg2.DataError, psycopg2.IntegrityError) as error:
            raise RecordRefusedError from error
        except psycopg2.Error:
            self.close()
            raise
        claims = [_claim(row) for row in rows if row[1] is not None]
        return {row[0] for row in rows if row[1] is None}, {claim.run_id: claim for claim in claims}

    def close(self) -> None:
        """Closes the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _cursor(self) -> Any:
        if self._connection is None or self._connection.closed:
            borrowed = self._engine.raw_connection()
            connection = borrowed.driver_connection
            borrowed.detach()  # it is set up for the system and must never reach anybody else through the pool
            assert connection is not None
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT set_config('mailroom.is_system', 'on', false)")
                cursor.execute(_TURN)
            self._connection = connection
        return self._connection.cursor()


def _claim(row: Any) -> Claim:
    """From the second half of the turn's answer."""
    run_id, tenant_id, user_id, task, queue, args, *rest = row
    attempt, max_attempts, fence, request_id, soft_limit, hard_limit = rest
    arguments = orjson.loads(args)
    return Claim(run_id, tenant_id, user_id, task, queue, arguments, attempt, max_attempts, fence, request_id, soft_limit, hard_limit)


def _packed(outcomes: Sequence[Outcome]) -> str:
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
    return orjson.dumps(rows).decode()
