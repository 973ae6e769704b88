"""Accepting runs of many callers in one transaction; on PostgreSQL one prepared statement and one round trip."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import orjson
import psycopg2
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from core.errors import UnavailableError
from storage.engine import TRUSTED_SECONDS
from storage.patience import PING
from storage.postgres import Prepared
from storage.repositories.runs import NewRun, Recorded

# $1 the runs, $2 the window, $3 the grace. How each waits is decided as storage/accept.py does it for one. Rows are compared whole, so
# that only the index over published runs will do: that over `publish_at` holds every delayed run, too. And one held run is looked for by
# LIMIT: an EXISTS may be answered from a hash of all that are held.
_ACCEPT = """
    PREPARE mailroom_accept (jsonb, int, double precision) AS
    WITH new AS (
        SELECT *, row_number() OVER (PARTITION BY queue, tenant_id ORDER BY place) AS nth
        FROM jsonb_to_recordset($1) AS new (
            place int, id uuid, tenant_id uuid, user_id uuid, task text, queue text, priority int, args jsonb, max_attempts int,
            soft_limit double precision, hard_limit double precision, request_id text)
    ), lane AS MATERIALIZED (
        SELECT lane.queue, lane.tenant_id,
               (SELECT count(*) FROM (
                    SELECT 1 FROM task_runs run
                    WHERE run.waiting_for = 'queue' AND run.publish_at IS NOT NULL
                      AND (run.queue, run.tenant_id) >= (lane.queue, lane.tenant_id)
                      AND (run.queue, run.tenant_id) <= (lane.queue, lane.tenant_id)
                    ORDER BY run.queue, run.tenant_id LIMIT $2) front) AS crowd,
               (SELECT true FROM task_runs run
                WHERE run.waiting_for = 'queue' AND run.publish_at IS NULL AND run.queue = lane.queue
                  AND run.tenant_id = lane.tenant_id LIMIT 1) IS NOT NULL AS has_held
        FROM (SELECT DISTINCT queue, tenant_id FROM new) lane
    ), waits AS (
        SELECT new.*, lane.crowd + new.nth - 1 AS ahead, NOT lane.has_held AND lane.crowd + new.nth <= $2 AS has_room,
               CASE WHEN EXISTS (SELECT 1 FROM pauses) AND EXISTS (
                             SELECT 1 FROM pauses WHERE (kind, name) IN (('queue', new.queue), ('task', new.task),
                                                                         ('tenant', new.tenant_id::text))) THEN 'pause'
                    WHEN EXISTS (SELECT 1 FROM limits) AND EXISTS (
                             SELECT 1 FROM limits WHERE kind = 'tenant' AND name = new.tenant_id::text) THEN 'limit'
                    ELSE 'queue' END AS waiting_for
        FROM new CROSS JOIN LATERAL (
            SELECT * FROM lane WHERE lane.queue = new.queue AND lane.tenant_id = new.tenant_id) lane
    ), written AS (
        INSERT INTO task_runs (id, tenant_id, user_id, task, queue, priority, args, max_attempts, soft_limit, hard_limit, request_id,
                               state, attempt, fence, is_suspect, created_at, waiting_for, publish_at)
        SELECT id, tenant_id, user_id, task, queue, priority, args, max_attempts, soft_limit, hard_limit, request_id,
               'PENDING', 0, 0, false, statement_timestamp(), waiting_for,
               CASE WHEN waiting_for = 'queue' AND has_room THEN statement_timestamp() + make_interval(secs => $3) END
        FROM waits
    )
    SELECT id::text, waiting_for = 'queue' AND has_room, ahead, waiting_for = 'limit' FROM waits ORDER BY place
"""
_COLUMNS = ("tenant_id", "user_id", "task", "queue", "priority", "args", "max_attempts", "soft_limit", "hard_limit", "request_id")


class PostgresIntake:
    """For one thread."""

    def __init__(self, engine: Engine) -> None:
        self._prepared = Prepared(engine, _ACCEPT)
        self._used_at = 0.0

    def accept(self, runs: Sequence[NewRun], grace: float, window: int) -> list[Recorded]:
        """Records plain runs (due, without keys, followers, mail hosts), all or none, and commits.

        Raises UnavailableError when the database cannot be reached, and for a run that it refuses what SQLAlchemy raises.
        """
        rows = [{"place": place, "id": run.run_id, **{name: getattr(run, name) for name in _COLUMNS}} for place, run in enumerate(runs)]
        try:
            with self._cursor() as cursor:
                cursor.execute("EXECUTE mailroom_accept (%s, %s, %s)", (orjson.dumps(rows).decode(), window, grace))
                return [self._recorded(row) for row in cursor.fetchall()]
        except (psycopg2.DataError, psycopg2.IntegrityError) as error:
            raise DBAPIError.instance("mailroom_accept", None, error, psycopg2.Error, hide_parameters=True) from error
        except psycopg2.Error as error:
            self.close()
            raise UnavailableError("The database cannot be reached; nothing was changed.", retry_after=5) from error

    def _cursor(self) -> Any:
        """As with the pool's, a connection that was idle is asked first whether it still is one: a server that was started anew in between
        costs nobody a run."""
        idle, self._used_at = time.monotonic() - self._used_at, time.monotonic()
        if idle > TRUSTED_SECONDS:
            try:
                self._prepared.cursor().execute(PING)
            except psycopg2.Error:
                self.close()
        return self._prepared.cursor()

    def close(self) -> None:
        """Closes the connection; the next call opens it again."""
        self._prepared.close()

    @staticmethod
    def _recorded(row: Any) -> Recorded:
        run_id, is_published, ahead, is_limited = row
        return Recorded(run_id, True, is_published, ahead, is_limited)
