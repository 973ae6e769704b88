"""All SQL that only PostgreSQL understands: row-level security, SKIP LOCKED, set-based claims and outcomes."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import orjson
import psycopg2
from sqlalchemy import Connection, Engine, text

from core.tenancy import Identity
from storage.event_types import DELIVERS, TASK_EVENTS
from storage.outcomes import Claim, HeldLane, NewRow, Outcome, OwnRun, RecordRefusedError
from storage.states import FINAL

_BIND = text(
    "SELECT set_config('mailroom.tenant_id', :tenant_id, true), set_config('mailroom.is_system', :is_system, true)",
)
_BIND_RELAY = text(
    "SELECT set_config('mailroom.is_system', 'on', true), set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true)",
)  # a small table that is read whole nevertheless seems so dear that PostgreSQL would spend a second on compiling the statement
_PLAN_WITH_INDEXES = text("SELECT set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true)")
VISIBLE = (
    "((SELECT current_setting('mailroom.is_system', true)) = 'on'"
    " OR {column} = (SELECT nullif(current_setting('mailroom.tenant_id', true), '')::uuid))"
)
# NULLIF: after its first use on a connection an unset setting reads as '' and not as NULL.


def bind_identity(connection: Connection, identity: Identity) -> None:
    """Tells the server who acts, for this transaction only (set_config(..., true)): a pooled connection forgets it."""
    connection.execute(_BIND, {"tenant_id": identity.tenant_id, "is_system": "on" if identity.is_system else "off"})


def bind_relay(connection: Connection) -> None:
    """The system, for a transaction whose statements are all answered from indexes, whatever stale statistics say."""
    connection.execute(_BIND_RELAY)


def plan_with_indexes(connection: Connection) -> None:
    """For this transaction: its statements are all answered from indexes, whatever stale statistics say."""
    connection.execute(_PLAN_WITH_INDEXES)


def row_level_security(table: str, column: str = "tenant_id") -> Iterable[str]:
    """The statements that make a table refuse other tenants' rows even to a wrong query.

    FORCE, because the application usually owns its tables and an owner is not subject to its own policies otherwise.
    """
    visible = VISIBLE.format(column=column)
    yield f'ALTER TABLE "{table}" ENABLE ROW LEVEL SECURITY'
    yield f'ALTER TABLE "{table}" FORCE ROW LEVEL SECURITY'
    yield f'CREATE POLICY tenant_wall ON "{table}" USING ({visible}) WITH CHECK ({visible})'


def bypasses_row_level_security(connection: Connection) -> bool:
    """Whether the connected role would walk through the walls (a superuser, or BYPASSRLS)."""
    return bool(connection.scalar(text("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user")))


_IS_REVOKED = "run.ending IN ('revoke', 'terminate')"
_TOLD = {  # how webhooks are told of an outcome
    "types": " ".join(f"WHEN '{state}' THEN '{name}'" for state, name in TASK_EVENTS.items()),
    "delivers": DELIVERS,
    "moment": "(to_jsonb(date_trunc('milliseconds', statement_timestamp() AT TIME ZONE 'UTC')) #>> ARRAY[]::text[]) || 'Z'",
}
_OUTCOMES = """
    done AS (
        SELECT * FROM jsonb_to_recordset({outcomes}) AS done (
            run_id uuid, fence bigint, state text, result jsonb, error_type text, error text, reason text, traceback jsonb,
            run_again_in double precision, waiting_for text, given_back int, is_final boolean, is_suspect boolean, duration_ms int)
    ), changed AS (
        UPDATE task_runs run
        SET state = CASE WHEN {revoked} THEN 'REVOKED' ELSE done.state END,
            reason = CASE WHEN {revoked} THEN 'revoked' ELSE done.reason END,
            result = done.result, error_type = done.error_type, error = done.error,
            eta = CASE WHEN {revoked} THEN NULL ELSE statement_timestamp() + make_interval(secs => done.run_again_in) END,
            publish_at = CASE WHEN {revoked} THEN NULL ELSE statement_timestamp() + make_interval(secs => done.run_again_in) END,
            waiting_for = CASE WHEN {revoked} OR done.run_again_in IS NULL THEN NULL ELSE coalesce(done.waiting_for, 'eta') END,
            attempt = run.attempt - done.given_back,
            finished_at = CASE WHEN done.is_final OR {revoked} THEN statement_timestamp() END,
            dead_lettered_at = CASE WHEN done.state = 'FAILURE' AND ({revoked}) IS NOT TRUE THEN statement_timestamp() END,
            duration_ms = done.duration_ms, is_suspect = done.is_suspect, ending = NULL
        FROM done
        WHERE run.id = ANY (ARRAY[done.run_id]) AND run.fence = done.fence AND (run.state || '') = 'STARTED'
        RETURNING run.id, run.tenant_id, run.attempt + done.given_back AS attempt, run.worker_id, run.started_at, run.state,
                  run.task, run.queue, run.user_id, run.error_type, run.reason, run.duration_ms
    ), history AS (
        INSERT INTO task_attempts (run_id, fence, tenant_id, attempt, worker_id, state, error_type, error, traceback, started_at,
                                   finished_at, duration_ms)
        SELECT done.run_id, done.fence, changed.tenant_id, changed.attempt, changed.worker_id, changed.state, done.error_type,
               done.error, done.traceback, changed.started_at, statement_timestamp(), done.duration_ms
        FROM done JOIN changed ON changed.id = done.run_id
    ), heard AS (
        INSERT INTO webhook_deliveries (id, tenant_id, webhook_id, type, payload, status, attempts, created_at)
        SELECT gen_random_uuid(), webhooks.tenant_id, webhooks.id, event.type, jsonb_build_object(
                   'type', event.type, 'timestamp', {moment},
                   'data', jsonb_build_object(
                       'taskId', changed.id, 'task', changed.task, 'queue', changed.queue, 'state', changed.state,
                       'userId', changed.user_id, 'attempt', changed.attempt, 'errorType', changed.error_type,
                       'reason', changed.reason, 'durationMs', changed.duration_ms)),
               'pending', 0, statement_timestamp()
        FROM changed JOIN webhooks ON webhooks.tenant_id = changed.tenant_id AND webhooks.is_active CROSS JOIN LATERAL (
            SELECT CASE changed.state {types} END AS type) event
        WHERE EXISTS (SELECT 1 FROM webhooks) AND webhooks.events @> to_jsonb(event.type) AND changed.task <> '{delivers}'
    )"""  # EXISTS is answered once for all: where there is no webhook nothing else is looked at
_WRITE_OUTCOMES = text(
    f"WITH {_OUTCOMES.format(outcomes='CAST(:outcomes AS jsonb)', revoked=_IS_REVOKED, **_TOLD)} SELECT id::text FROM changed"  # noqa: S608  (our own text)
)
_MAY_START = """(run.expires_at IS NULL OR run.expires_at > statement_timestamp()) AND NOT run.is_suspect
          AND (NOT EXISTS (SELECT 1 FROM pauses)
               OR NOT EXISTS (SELECT 1 FROM pauses WHERE (kind, name) IN (('queue', run.queue), ('task', run.task),
                                                                          ('tenant', run.tenant_id::text))))"""
# Nobody's slot: what was not admitted to a limit is not claimed, whatever message may still be about.
_IS_FREE = """NOT EXISTS (SELECT 1 FROM limits WHERE kind = 'tenant' AND name = run.tenant_id::text)
               AND NOT EXISTS (SELECT 1 FROM limits WHERE kind = 'host' AND name = run.mail_host)"""
_RETURNED = """run.id, run.tenant_id, run.user_id, run.task, run.queue, run.args, run.attempt, run.max_attempts, run.fence,
                  run.request_id, run.soft_limit, run.hard_limit, run.priority, run.is_suspect,
                  run.is_suspect AND coalesce(run.reason, '') = 'lost_in_company' AS was_lost_in_company,
                  run.group_id, EXISTS (SELECT 1 FROM task_runs follower WHERE follower.waiting_for = 'run'
                                                                           AND follower.after_run_id = run.id) AS is_followed"""

# $1 the outcomes, $2 the claims and $3 their tenants, $4 the worker, $5 the claims in doubt; $6-$10 the lanes of held runs: queue,
# tenant, priority, after which id, how many. One statement, one commit. A run is never in both halves: the recorder claims
# nothing that it holds. `|| ''` keeps the planner off the indexes over `state`: with statistics from when nothing waited it would
# read every waiting run to find sixteen. Ids are compared as arrays of one and tenants by IS NOT DISTINCT FROM: a plain `=` makes an
# index's order worth something, and of a table that was small when this was planned every run would be read in that order, to find
# one. Rows are compared whole, so that only the index over held runs will do and is entered right behind the last run that was
# claimed, not at the dead entries before it.
_TURN = f"""
    PREPARE mailroom_turn (jsonb, uuid[], uuid[], text, uuid[], text[], uuid[], int[], uuid[], int[]) AS
    WITH {_OUTCOMES.format(outcomes="$1", revoked=_IS_REVOKED, **_TOLD)}, wanted AS (
        SELECT * FROM unnest($2, $3) AS wanted (id, tenant_id)
        UNION ALL
        SELECT held.id, lane.tenant_id
        FROM unnest($6, $7, $8, $9, $10) AS lane (queue, tenant_id, priority, after, wanted) CROSS JOIN LATERAL (
            SELECT run.id FROM task_runs run
            WHERE run.waiting_for = 'queue' AND run.publish_at IS NULL
              AND (run.queue, run.tenant_id, run.priority, run.id) > (lane.queue, lane.tenant_id, lane.priority, lane.after)
              AND (run.queue, run.tenant_id, run.priority) <= (lane.queue, lane.tenant_id, lane.priority) AND {_MAY_START}
            ORDER BY run.queue, run.tenant_id, run.priority, run.id LIMIT lane.wanted FOR UPDATE SKIP LOCKED) held
    ), claimed AS (
        UPDATE task_runs run
        SET state = 'STARTED', worker_id = $4, started_at = statement_timestamp(), publish_at = NULL, waiting_for = NULL, eta = NULL,
            attempt = run.attempt + CASE WHEN run.state = 'STARTED' THEN 0 ELSE 1 END,
            fence = run.fence + CASE WHEN run.state = 'STARTED' THEN 0 ELSE 1 END
        FROM wanted
        WHERE run.id = ANY (ARRAY[wanted.id]) AND run.tenant_id IS NOT DISTINCT FROM wanted.tenant_id
          AND ((run.state || '') IN ('PENDING', 'RETRY') AND (run.eta IS NULL OR run.eta <= statement_timestamp())
               AND (run.waiting_for = 'queue' OR run.waiting_for IN ('eta', 'broker') AND {_IS_FREE}) AND {_MAY_START}
               OR (run.state || '') = 'STARTED' AND run.worker_id = $4 AND run.id = ANY ($5))
        RETURNING {_RETURNED}
    )
    SELECT id::text, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM changed
    UNION ALL
    SELECT id::text, tenant_id::text, user_id::text, task, queue, args::text, attempt, max_attempts, fence, request_id, soft_limit,
           hard_limit, priority, is_suspect, was_lost_in_company, group_id::text, is_followed
    FROM claimed
"""  # noqa: S608  (our own text)
# One plan for a while, over indexes: it is made when the tables may be empty and has to serve when they are not.
PLAN_SECONDS = 10.0
_PLANNER = """
    SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
    SET enable_sort = off; SET enable_incremental_sort = off; SET enable_bitmapscan = off;
    SET jit = off; SELECT set_config('mailroom.is_system', 'on', false)"""

BEFORE_ANY_ID = "00000000-0000-0000-0000-000000000000"
# A loose index scan: one probe for each lane, however many runs are held in it.
_HELD_LANES = text("""
    WITH RECURSIVE lane AS (
        (SELECT queue, tenant_id, priority, id FROM task_runs WHERE waiting_for = 'queue' AND publish_at IS NULL
         ORDER BY queue, tenant_id, priority, id LIMIT 1)
        UNION ALL
        SELECT next.* FROM lane CROSS JOIN LATERAL (
            SELECT run.queue, run.tenant_id, run.priority, run.id FROM task_runs run
            WHERE run.waiting_for = 'queue' AND run.publish_at IS NULL
              AND (run.queue, run.tenant_id, run.priority) > (lane.queue, lane.tenant_id, lane.priority)
            ORDER BY run.queue, run.tenant_id, run.priority, run.id LIMIT 1) next
    ) SELECT queue, tenant_id::text, priority FROM lane WHERE queue = ANY (:queues) LIMIT :limit""")


def held_lanes(connection: Connection, queues: Sequence[str], limit: int) -> list[HeldLane]:
    """See storage/dispatch.py."""
    rows = connection.execute(_HELD_LANES, {"queues": list(queues), "limit": limit})
    return [HeldLane(queue, tenant_id, priority, BEFORE_ANY_ID) for queue, tenant_id, priority in rows]


_FIRST_HELD = text(
    _HELD_LANES.text.replace("SELECT queue, tenant_id::text, priority FROM lane WHERE queue = ANY (:queues)", "SELECT id::text FROM lane")
)


def first_held(connection: Connection, limit: int) -> list[str]:
    """The first held run of each lane, of so many lanes."""
    return list(connection.scalars(_FIRST_HELD, {"limit": limit}))


_ACCEPT_MANY = """
    INSERT INTO task_runs ({columns}, id, args, request_id, state, attempt, fence, is_suspect, created_at, waiting_for, publish_at)
    SELECT {values}, run.id, run.args::jsonb, run.request_id, 'PENDING', 0, 0, false, statement_timestamp(), %(waiting_for)s,
           CASE WHEN run.place <= %(room)s THEN statement_timestamp() + make_interval(secs => %(grace)s) END
    FROM unnest(%(ids)s::uuid[], %(arguments)s::text[], %(request_ids)s::text[]) WITH ORDINALITY
         AS run (id, args, request_id, place)"""


def accept_many(
    connection: Connection, common: Mapping[str, Any], rows: Sequence[NewRow], waiting_for: str, room: int, grace: float
) -> None:
    """See storage/accept.py. Three arrays: the columns in common are sent once."""
    given = {name: value for name, value in common.items() if value is not None}
    values = {name: f"%({name})s{'::uuid' if name.endswith('_id') else ''}" for name in given}
    if rows and rows[0].after_run_id is not None:
        given["after_run_id"] = [row.after_run_id for row in rows]
        values["after_run_id"] = "(%(after_run_id)s::uuid[])[run.place]"
    parameters = {
        **given,
        "ids": [row.run_id for row in rows],
        "arguments": [orjson.dumps(row.args).decode() for row in rows],
        "request_ids": [row.request_id for row in rows],
        "waiting_for": waiting_for,
        "room": room,
        "grace": grace,
    }
    connection.exec_driver_sql(_ACCEPT_MANY.format(columns=", ".join(values), values=", ".join(values.values())), parameters)


_EXECUTE = "EXECUTE mailroom_turn (%s, %s::uuid[], %s::uuid[], %s, %s::uuid[], %s::text[], %s::uuid[], %s::int[], %s::uuid[], %s::int[])"


def write_outcomes(connection: Connection, outcomes: Sequence[Outcome]) -> set[str]:
    """Writes outcomes and their attempts in one statement. Returns the ids of the runs that were changed."""
    return set(connection.execute(_WRITE_OUTCOMES, {"outcomes": _packed(outcomes)}).scalars())


class Prepared:
    """A connection of its own for one thread: the system's for good, with one prepared statement and its planner's settings."""

    def __init__(self, engine: Engine, prepare: str) -> None:
        self._engine = engine
        self._prepare = prepare
        self._connection: Any = None
        self._planned_at = 0.0

    def close(self) -> None:
        """Closes the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def cursor(self) -> Any:
        """Opens the connection if it is not open; has the statement planned anew if its plan is old. Raises what the driver raises."""
        if self._connection is None or self._connection.closed:
            borrowed = self._engine.raw_connection()
            connection = borrowed.driver_connection
            borrowed.detach()  # it is set up for the system and must never reach anybody else through the pool
            assert connection is not None
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(_PLANNER)
                cursor.execute(self._prepare)
            self._connection, self._planned_at = connection, time.monotonic()
        cursor = self._connection.cursor()
        if time.monotonic() - self._planned_at > PLAN_SECONDS:
            cursor.execute("DISCARD PLANS")
            self._planned_at = time.monotonic()
        return cursor


class PostgresRecord(Prepared):
    """See storage/record.py."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, _TURN)

    def turn(
        self,
        worker_id: str,
        outcomes: Sequence[Outcome],
        wanted: Mapping[str, str],
        in_doubt: Collection[str],
        lanes: Sequence[HeldLane] = (),
    ) -> tuple[set[str], dict[str, Claim]]:
        """See Record. A broken connection raises; the next turn opens a new one."""
        ids = sorted(wanted)
        values = (
            _packed(outcomes),
            ids,
            [wanted[run_id] for run_id in ids],
            worker_id,
            list(in_doubt),
            [lane.queue for lane in lanes],
            [lane.tenant_id for lane in lanes],
            [lane.priority for lane in lanes],
            [lane.after for lane in lanes],
            [lane.wanted for lane in lanes],
        )
        try:
            with self.cursor() as cursor:
                cursor.execute(_EXECUTE, values)
                rows = cursor.fetchall()
        except (psycopg2.DataError, psycopg2.IntegrityError) as error:
            raise RecordRefusedError from error
        except psycopg2.Error:
            self.close()
            raise
        claims = [_claim(row) for row in rows if row[1] is not None]
        return {row[0] for row in rows if row[1] is None}, {claim.run_id: claim for claim in claims}

    def own(self, worker_id: str) -> list[OwnRun]:
        """See Record."""
        with self.cursor() as cursor:
            cursor.execute(
                "SELECT id::text, tenant_id::text, task, queue FROM task_runs WHERE worker_id = %s AND state = 'STARTED'", (worker_id,)
            )
            return list(cursor.fetchall())


def _claim(row: Any) -> Claim:
    """From the second half of the turn's answer."""
    run_id, tenant_id, user_id, task, queue, args, *rest = row
    return Claim(run_id, tenant_id, user_id, task, queue, orjson.loads(args), *rest)


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
            "given_back": outcome.gives_back,
            "is_final": outcome.state in FINAL,
            "is_suspect": outcome.is_suspect,
            "duration_ms": outcome.duration_ms,
        }
        for outcome in outcomes
    ]
    return orjson.dumps(rows).decode()
