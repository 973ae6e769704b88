"""The usual way of a mail through the record (read, marked before the final dot, settled) for many threads in one statement.

Each of the three costs a transaction of its own otherwise, and two of them a flush to disk. Here is only what happens to nearly every
mail: the first try of an account without OAuth, nobody suppressed, nothing scheduled, sealed or to be filed. Whatever else there is to
it is not found here, and goes the long way of `repositories/outbound.py`. PostgreSQL only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from typing import Any, ClassVar

import orjson
import psycopg2
from sqlalchemy import Engine

from core.errors import UnavailableError
from core.tenancy import Identity
from storage.models import OutboundEmail
from storage.postgres import Prepared

MOST_TOGETHER, LARGEST_TOGETHER = 100, 2**20
"""Recipients and bytes of a mail that others wait for while it is read: with more it takes the long way, alone."""

# One mail, its tenant's and, if the caller acts for one, its user's. A row is entered by its id and by nothing else: `IS NOT DISTINCT
# FROM`, `|| ''` and `num_nulls` keep the planner off the other indexes, with which it would read every mail that waits to find one.
# `OFFSET 0`: looked up for each mail, and not the other way round.
_OWN = """mail.id = asked.id AND mail.tenant_id IS NOT DISTINCT FROM asked.tenant_id
          AND (asked.user_id IS NULL OR mail.user_id = asked.user_id)"""
_MARKED = f"""marked AS (
        UPDATE outbound_emails mail SET status = 'sending', attempts = 1
        FROM jsonb_to_recordset({{given}}) AS asked (id uuid, tenant_id uuid, user_id uuid)
        WHERE {_OWN} AND (mail.status || '') = 'pending' AND mail.attempts = 0
          AND (mail.expires_at IS NULL OR mail.expires_at > statement_timestamp())
        RETURNING mail.id
    )"""  # noqa: S608  (our own text)
_SENT = f"""asked AS (
        SELECT * FROM jsonb_to_recordset({{given}}) AS asked (
            id uuid, tenant_id uuid, user_id uuid, addresses jsonb, reply_code int, enhanced_code text)
    ), sent AS (
        UPDATE outbound_emails mail SET status = 'sent', sent_at = statement_timestamp(), last_error = NULL, next_retry_at = NULL
        FROM asked
        WHERE {_OWN} AND (mail.status || '') = 'sending' AND mail.attempts = 1
          AND NOT EXISTS (SELECT 1 FROM outbound_recipients other
                          WHERE other.tenant_id = mail.tenant_id AND other.email_id = mail.id AND other.status = 'pending'
                            AND NOT asked.addresses ? other.address)
          AND NOT EXISTS (SELECT 1 FROM webhooks WHERE webhooks.tenant_id = mail.tenant_id AND webhooks.is_active)
        RETURNING mail.id, mail.tenant_id, mail.sent_at
    ), taken AS (
        UPDATE outbound_recipients recipient
        SET status = 'sent', reply_code = asked.reply_code, enhanced_code = asked.enhanced_code, error = NULL, next_retry_at = NULL
        FROM sent JOIN asked ON asked.id = sent.id
        WHERE recipient.tenant_id = sent.tenant_id AND recipient.email_id = sent.id AND recipient.status = 'pending'
    )"""  # noqa: S608
# The lower-case addresses are made before suppressions are asked for them: row-level security lets no index be used for the answer of
# lower(), which might tell what it was given. Other letters than ASCII have several ways to be made small.
_FOUND = f"""found AS (
        SELECT mail.id, mail.source, client.smtp_password, jsonb_build_object(
                   'message_id', mail.message_id, 'sender', mail.sender, 'client_id', client.id, 'smtp_host', client.smtp_host,
                   'smtp_port', client.smtp_port, 'smtp_security', client.smtp_security, 'smtp_username', client.smtp_username,
                   'recipients', due.addresses) AS facts
        FROM jsonb_to_recordset({{given}}) AS asked (id uuid, tenant_id uuid, user_id uuid)
        JOIN outbound_emails mail ON {_OWN}
        CROSS JOIN LATERAL (
            SELECT * FROM email_clients own WHERE own.id = mail.client_id AND own.tenant_id IS NOT DISTINCT FROM mail.tenant_id
                                              AND (asked.user_id IS NULL OR own.user_id = asked.user_id) OFFSET 0) client
        CROSS JOIN LATERAL (
            SELECT jsonb_agg(recipient.address ORDER BY recipient.id) AS addresses, array_agg(lower(recipient.address)) AS in_lower_case,
                   bool_and(recipient.status = 'pending' AND recipient.next_retry_at IS NULL
                            AND octet_length(recipient.address) = char_length(recipient.address)) AND count(*) <= {MOST_TOGETHER} AS are_due
            FROM outbound_recipients recipient WHERE recipient.tenant_id = mail.tenant_id AND recipient.email_id = mail.id) due
        WHERE (mail.status || '') = 'pending' AND mail.attempts = 0 AND NOT mail.is_sealed
          AND num_nulls(mail.saved_to_sent, mail.erased_at, mail.next_retry_at) = 3
          AND (mail.expires_at IS NULL OR mail.expires_at > statement_timestamp())
          AND (mail.scheduled_at IS NULL OR mail.scheduled_at <= statement_timestamp())
          AND octet_length(mail.source) <= {LARGEST_TOGETHER}
          AND client.smtp_host IS NOT NULL AND client.oauth_token_url IS NULL AND due.are_due
          AND NOT EXISTS (
              SELECT 1 FROM unnest(due.in_lower_case) AS lowered (address) CROSS JOIN LATERAL (
                  SELECT 1 FROM suppressions WHERE suppressions.tenant_id = mail.tenant_id
                                               AND suppressions.address = lowered.address OFFSET 0) suppressed OFFSET 0)
    )"""  # noqa: S608
_PARTS = {
    "mark": (_MARKED, "SELECT id::text, NULL::float8, NULL::bytea, NULL::bytea, NULL::jsonb FROM marked"),
    "accepted": (_SENT, "SELECT id::text, extract(epoch FROM sent_at)::float8, NULL::bytea, NULL::bytea, NULL::jsonb FROM sent"),
    "look": (_FOUND, "SELECT id::text, NULL::float8, source, smtp_password, facts FROM found"),
}
"""What is done for each kind of question (`given`: the mails in JSON), and how it is answered."""


def _prepare(kinds: Sequence[str]) -> str:
    """One statement for each combination: what nobody asks for costs nothing, not even a place in the plan."""
    parts = ", ".join(_PARTS[kind][0].format(given=f"${number}") for number, kind in enumerate(kinds, 1))
    answers = " UNION ALL ".join(_PARTS[kind][1] for kind in kinds)
    return f"PREPARE {_name(kinds)} ({', '.join(['jsonb'] * len(kinds))}) AS WITH {parts} {answers};"


def _name(kinds: Iterable[str]) -> str:
    return "_".join(["mailroom_first_try", *kinds])


_TURNS = "".join(_prepare(kinds) for number in range(1, len(_PARTS) + 1) for kinds in combinations(_PARTS, number))


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody's mail."""

    identity: Identity
    email_id: str
    kind: ClassVar[str]


@dataclass(frozen=True, slots=True)
class Look(Asked):
    """What there is to send. Answered by a Found; None: not here."""

    kind: ClassVar[str] = "look"


@dataclass(frozen=True, slots=True)
class Mark(Asked):
    """The mark before the final dot. Answered by True; None: the mail does not wait for its first try, and nothing may be sent."""

    kind: ClassVar[str] = "mark"


@dataclass(frozen=True, slots=True)
class Accepted(Asked):
    """The server took the mail for all of these. Answered by when that was; None: nothing is written, because somebody else waits for it
    too, or a webhook is to be told."""

    kind: ClassVar[str] = "accepted"
    addresses: Sequence[str]
    reply_code: int | None
    enhanced_code: str | None


@dataclass(frozen=True, slots=True)
class Found:
    """A mail as a row of the outbox would have it, those it is for, and its account's login with the password as it is stored."""

    id: str
    tenant_id: str
    message_id: str
    sender: str
    source: bytes
    recipients: list[str]
    client_id: str
    smtp_host: str
    smtp_port: int | None
    smtp_security: str | None
    smtp_username: str | None
    smtp_password: bytes | None
    is_sealed: ClassVar[bool] = False
    attempts: ClassVar[int] = 0
    saved_to_sent: ClassVar[str | None] = None


Mail = OutboundEmail | Found
"""What is being sent."""
Answer = Found | datetime | bool | None


class FirstTries:
    """For one thread."""

    def __init__(self, engine: Engine) -> None:
        self._prepared = Prepared(engine, _TURNS)

    def turn(self, asked: Sequence[Asked]) -> list[Answer]:
        """Does and answers all of it, in the same order, or none. Of two that ask of the same mail only the first is answered.

        Raises UnavailableError when the database cannot be reached: then nobody knows whether it was done.
        """
        first = {each.email_id: each for each in reversed(asked)}
        groups = {kind: [_row(each) for each in first.values() if each.kind == kind] for kind in _PARTS}
        given = {kind: orjson.dumps(rows).decode() for kind, rows in groups.items() if rows}
        try:
            with self._prepared.cursor() as cursor:
                cursor.execute(f"EXECUTE {_name(given)} ({', '.join(['%s'] * len(given))})", list(given.values()))
                answers = {row[0]: _answer(first[row[0]], *row[1:]) for row in cursor.fetchall()}
        except psycopg2.Error as error:
            self.close()
            raise UnavailableError("The database cannot be reached; it is not known whether this was recorded.", retry_after=5) from error
        return [answers.get(each.email_id) if first[each.email_id] is each else None for each in asked]

    def close(self) -> None:
        """Closes the connection; the next turn opens it again."""
        self._prepared.close()


def _row(asked: Asked) -> dict[str, Any]:
    row: dict[str, Any] = {"id": asked.email_id, "tenant_id": asked.identity.tenant_id, "user_id": asked.identity.user_id}
    if isinstance(asked, Accepted):
        row |= {"addresses": list(asked.addresses), "reply_code": asked.reply_code, "enhanced_code": asked.enhanced_code}
    return row


def _answer(asked: Asked, sent_at: float | None, source: Any, password: Any, facts: dict[str, Any] | None) -> Answer:
    if isinstance(asked, Accepted):
        return datetime.fromtimestamp(sent_at or 0.0, UTC)
    if isinstance(asked, Mark):
        return True
    assert facts is not None
    sealed = bytes(password) if password is not None else None
    return Found(asked.email_id, asked.identity.tenant_id, source=bytes(source), smtp_password=sealed, **facts)
