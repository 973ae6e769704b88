"""SQL of stored mail that only PostgreSQL understands: a batch by COPY, many rows changed by one statement, and the words of messages.

Words stand behind a wall of their own. Row-level security checks a tenant's rows before it calls any function that is not leakproof,
and `@@` is not: an index over words would never be used. So the policy itself holds the search: a transaction sees those rows of
`email_search` that are its tenant's and contain the words it has set in `mailroom.search`; without words it sees none.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
import psycopg2
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from storage.postgres import VISIBLE

WORDS_OF_TEXT = 50_000
"""Characters of a message's text that are searched. A tsvector takes at most 1 MB."""

OUTGROWN, LARGE = 4, 25_000
"""By so many times the table of messages may grow before its statistics are made anew; one of so many pages is left to the server."""

_WORDS = """setweight(to_tsvector('simple', {subject}), 'A') || setweight(to_tsvector('simple', {people}), 'B')
            || to_tsvector('simple', left({text}, {limit})) || array_to_tsvector(ARRAY['tenant ' || tenant_id])"""
# The tenant is a word too (one that no text can hold: it has a space in it), so that the index answers for one tenant alone.
_ARRIVING_WORDS = _WORDS.format(subject="subject", people="people", text="coalesce(words, body_text, '')", limit=WORDS_OF_TEXT)
_STORED_WORDS = _WORDS.format(
    subject="subject",
    people="concat_ws(' ', sender, to_addresses, cc_addresses)",
    text="coalesce(body_text, snippet)",
    limit=WORDS_OF_TEXT,
)
INDEX_STORED = text(f"""
    WITH acting AS MATERIALIZED (SELECT set_config('mailroom.is_system', 'on', true))
    INSERT INTO email_search (tenant_id, email_id, words)
    SELECT tenant_id, id, {_STORED_WORDS} FROM acting, email_messages""")  # noqa: S608  (our own text)
"""For messages that were stored before words were."""

_CAN_SQUEEZE = text("SELECT count(*) FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)")
_SQUEEZE = text("SET LOCAL default_toast_compression = 'lz4'")
"""Long values are compressed as they arrive: lz4, where the server has it (PostgreSQL 14 and built with it), takes a third of the time."""

_HAS_OUTGROWN_STATISTICS = text(f"""
    SELECT relpages < {LARGE} AND pg_relation_size(oid) / current_setting('block_size')::int > {OUTGROWN} * greatest(relpages, 4)
    FROM pg_class WHERE oid = to_regclass('email_messages')""")  # noqa: S608  (our own text)
_STATISTICS = text("""
    ANALYZE (SKIP_LOCKED) email_messages
        (tenant_id, client_id, folder_id, uid_validity, uid, message_id, thread_id, sha256, remote_id, internal_date, vanished_at),
    thread_links""")

_INSERT = """
    WITH added AS (
        INSERT INTO email_messages ({names}, created_at) SELECT {names}, statement_timestamp() FROM pg_temp.arriving_messages
        ON CONFLICT DO NOTHING RETURNING id
    ), indexed AS (
        INSERT INTO email_search (tenant_id, email_id, words)
        SELECT tenant_id, id, {words} FROM pg_temp.arriving_messages JOIN added USING (id)
    ) SELECT id::text FROM added"""
_SEARCH = text("""
    SELECT set_config('mailroom.search', coalesce(words && CAST(:tenant AS tsquery), words)::text, true)
    FROM (SELECT CASE WHEN parsed::text LIKE '%''' THEN (parsed::text || '\\:*')::tsquery ELSE parsed END AS words
          FROM websearch_to_tsquery('simple', :words) AS parsed) AS search""")
_FLAGS = text("""
    UPDATE email_messages message SET flags = wanted.flags
    FROM jsonb_to_recordset(CAST(:wanted AS jsonb)) AS wanted (uid bigint, flags jsonb)
    WHERE message.tenant_id = :tenant_id AND message.folder_id = :folder_id AND message.uid_validity = :uid_validity
      AND message.uid = wanted.uid AND message.vanished_at IS NULL AND message.flags <> wanted.flags""")
_PLACES = text("""
    UPDATE email_messages message
    SET folder_id = place.folder_id, uid_validity = place.uid_validity, uid = place.uid, flags = place.flags,
        internal_date = place.internal_date, remote_id = place.remote_id, vanished_at = NULL
    FROM jsonb_to_recordset(CAST(:places AS jsonb))
      AS place (id uuid, folder_id uuid, uid_validity bigint, uid bigint, flags jsonb, internal_date timestamptz, remote_id text)
    WHERE message.tenant_id = :tenant_id AND message.id = place.id""")
_UIDS = text("""
    UPDATE email_messages message SET uid_validity = :uid_validity, uid = number.uid, vanished_at = NULL
    FROM jsonb_to_recordset(CAST(:numbers AS jsonb)) AS number (id uuid, uid bigint)
    WHERE message.tenant_id = :tenant_id AND message.id = number.id""")
_LINKS = text("""
    INSERT INTO thread_links (tenant_id, client_id, message_id, thread_id)
    SELECT :tenant_id, :client_id, link.message_id, link.thread_id
    FROM jsonb_to_recordset(CAST(:links AS jsonb)) AS link (message_id text, thread_id uuid)
    ON CONFLICT DO NOTHING""")


def wall_of_words(table: str) -> Iterable[str]:
    """The statements that let a transaction see the rows of its tenant that hold the words it searches for, and write its tenant's."""
    visible = VISIBLE.format(column="tenant_id")
    searched = "words @@ (SELECT nullif(current_setting('mailroom.search', true), '')::tsquery)"
    yield f'ALTER TABLE "{table}" ENABLE ROW LEVEL SECURITY'
    yield f'ALTER TABLE "{table}" FORCE ROW LEVEL SECURITY'
    yield f'CREATE POLICY tenant_wall ON "{table}" FOR SELECT USING ({visible} AND {searched})'
    yield f'CREATE POLICY tenant_writes ON "{table}" FOR INSERT WITH CHECK ({visible})'


def search_for(connection: Connection, words: str, tenant_id: str | None) -> None:
    """Sets what this transaction sees of `email_search`, read as a web search; the last word may go on."""
    connection.execute(_SEARCH, {"words": words, "tenant": f"'tenant {tenant_id}'" if tenant_id else None})


def add_messages(connection: Connection, rows: Sequence[Mapping[str, Any]], words: Sequence[tuple[str, str | None]]) -> set[str]:
    """Inserts the rows that are not there yet, with the words they are found by (people; text, None: body_text). Returns their ids."""
    _squeeze(connection)
    _stage(connection, "arriving_messages", "email_messages", ", '' AS people, '' AS words")
    columns = [*rows[0], "people", "words"]
    _copy(connection, "arriving_messages", columns, ((*row.values(), *more) for row, more in zip(rows, words, strict=True)))
    return set(connection.scalars(text(_INSERT.format(names=", ".join(rows[0]), words=_ARRIVING_WORDS))))


def _squeeze(connection: Connection) -> None:
    """For this transaction. Whether the server can is asked once for a connection: the answer takes it longer than most statements."""
    if "squeezes" not in connection.info:
        connection.info["squeezes"] = bool(connection.scalar(_CAN_SQUEEZE))
    if connection.info["squeezes"]:
        connection.execute(_SQUEEZE)


def keep_statistics(connection: Connection) -> None:
    """Statistics of messages whose table has outgrown those it has: without any, or with those of an empty table, PostgreSQL looks for
    twenty messages by reading the whole folder. Its own daemon comes by once a minute, and a first sync is over by then."""
    if connection.scalar(_HAS_OUTGROWN_STATISTICS):
        connection.execute(_STATISTICS)


def add_rows(connection: Connection, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Inserts rows that are not there yet, into a table that has `created_at`."""
    names, stage = ", ".join(rows[0]), f"arriving_{table}"
    _stage(connection, stage, table)
    _copy(connection, stage, list(rows[0]), (tuple(row.values()) for row in rows))
    moved = f"INSERT INTO {table} ({names}, created_at) SELECT {names}, statement_timestamp() FROM pg_temp.{stage} ON CONFLICT DO NOTHING"  # noqa: S608
    connection.execute(text(moved))


def set_flags(connection: Connection, where: Mapping[str, Any], wanted: Mapping[int, Sequence[str]]) -> int:
    """The flags of many messages of a folder (tenant_id, folder_id, uid_validity). Returns how many really changed."""
    rows = [{"uid": uid, "flags": flags} for uid, flags in wanted.items()]
    return connection.execute(_FLAGS, {**where, "wanted": _json(rows)}).rowcount


def set_places(connection: Connection, tenant_id: str, places: Sequence[Mapping[str, Any]]) -> None:
    """Puts messages (by id) into folders under the UIDs they have there."""
    connection.execute(_PLACES, {"tenant_id": tenant_id, "places": _json(places)})


def set_uids(connection: Connection, tenant_id: str, uid_validity: int, numbers: Sequence[Mapping[str, Any]]) -> None:
    """Gives messages (by id) new UIDs in their folder."""
    connection.execute(_UIDS, {"tenant_id": tenant_id, "uid_validity": uid_validity, "numbers": _json(numbers)})


def add_links(connection: Connection, tenant_id: str, client_id: str, links: Mapping[str, str]) -> None:
    """Message-IDs (hashed) and the threads they belong to; one that is known stays where it is."""
    rows = [{"message_id": key, "thread_id": thread_id} for key, thread_id in links.items()]
    connection.execute(_LINKS, {"tenant_id": tenant_id, "client_id": client_id, "links": _json(rows)})


def _json(value: object) -> str:
    encoded: bytes = orjson.dumps(value)
    return encoded.decode()


def _stage(connection: Connection, stage: str, table: str, more: str = "") -> None:
    """A table without any constraint, for the life of the connection: what a constraint refuses would be told with the whole row."""
    connection.execute(
        text(f"CREATE TEMP TABLE IF NOT EXISTS {stage} ON COMMIT DELETE ROWS AS SELECT *{more} FROM {table} WITH NO DATA")  # noqa: S608
    )


def _copy(connection: Connection, stage: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
    """COPY in its text format into a table of this connection's own: COPY FROM refuses tables that have policies.

    Each row is encoded by itself: as one text, a single emoji would make all of a batch four bytes a character.
    """
    lines = b"".join(
        [("\t".join([_escaped(value) if type(value) is str else _field(value) for value in row]) + "\n").encode() for row in rows]
    )
    driver: Any = connection.connection.driver_connection
    try:
        with driver.cursor() as cursor:
            cursor.copy_expert(f"COPY pg_temp.{stage} ({', '.join(columns)}) FROM STDIN (ENCODING 'UTF8')", io.BytesIO(lines))
    except psycopg2.OperationalError as error:  # as SQLAlchemy would have said it
        raise OperationalError("COPY", None, error, hide_parameters=True) from error
    except psycopg2.Error as error:  # its text quotes the row, and that is somebody's mail
        raise RuntimeError(f"PostgreSQL refused a row of {stage}: SQLSTATE {error.pgcode}.") from None


def _field(value: Any) -> str:
    if value is None:
        return "\\N"
    kind = type(value)
    if kind is list or kind is dict:
        return _escaped(_json(value)) if value else "[]" if kind is list else "{}"
    if isinstance(value, bytes):
        return f"\\\\x{value.hex()}"
    if isinstance(value, str):
        return _escaped(value)
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _escaped(field: str) -> str:
    if "\\" in field:
        field = field.replace("\\", "\\\\")
    if "\n" in field:
        field = field.replace("\n", "\\n")
    if "\r" in field:
        field = field.replace("\r", "\\r")
    return field.replace("\t", "\\t") if "\t" in field else field
