"""The usual way of a mail through the record (read, marked before the final dot, settled) for many threads in one statement.

Each of the three costs a transaction of its own otherwise, and two of them a flush to disk. Here is only what happens to nearly every
mail: the first try of an account without OAuth, nobody suppressed, nothing scheduled, sealed or to be filed. Whatever else there is to
it is not found here, and goes the long way of `repositories/outbound.py`. PostgreSQL only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import psycopg2
from sqlalchemy import Engine

from core.errors import UnavailableError
from core.tenancy import Identity
from storage.postgres import Prepared

# $1 the marks, $2 what became of marked mails, $3 the mails to look up. Every mail is in one of them only. A mail and its account are
# the caller's: its tenant's, and its user's if it acts for one.
_TURN = """
    PREPARE mailroom_first_tries (jsonb, jsonb, jsonb) AS
    WITH marked AS (
        UPDATE outbound_emails mail SET status = 'sending', attempts = 1
        FROM jsonb_to_recordset($1) AS asked (id uuid, tenant_id uuid, user_id uuid)
        WHERE mail.id = asked.id AND mail.tenant_id = asked.tenant_id AND (asked.user_id IS NULL OR mail.user_id = asked.user_id)
          AND mail.status = 'pending' AND mail.attempts = 0
          AND (mail.expires_at IS NULL OR mail.expires_at > statement_timestamp())
        RETURNING mail.id
    ), accepted AS (
        SELECT * FROM jsonb_to_recordset($2) AS accepted (
            id uuid, tenant_id uuid, user_id uuid, addresses jsonb, reply_code int, enhanced_code text)
    ), sent AS (
        UPDATE outbound_emails mail SET status = 'sent', sent_at = statement_timestamp(), last_error = NULL, next_retry_at = NULL
        FROM accepted
        WHERE mail.id = accepted.id AND mail.tenant_id = accepted.tenant_id
          AND (accepted.user_id IS NULL OR mail.user_id = accepted.user_id) AND mail.status = 'sending' AND mail.attempts = 1
          AND NOT EXISTS (SELECT 1 FROM outbound_recipients other
                          WHERE other.tenant_id = mail.tenant_id AND other.email_id = mail.id AND other.status = 'pending'
                            AND NOT accepted.addresses ? other.address)
          AND NOT EXISTS (SELECT 1 FROM webhooks WHERE webhooks.tenant_id = mail.tenant_id AND webhooks.is_active)
        RETURNING mail.id, mail.tenant_id, mail.sent_at
    ), taken AS (
        UPDATE outbound_recipients recipient
        SET status = 'sent', reply_code = accepted.reply_code, enhanced_code = accepted.enhanced_code, error = NULL, next_retry_at = NULL
        FROM sent JOIN accepted ON accepted.id = sent.id
        WHERE recipient.tenant_id = sent.tenant_id AND recipient.email_id = sent.id AND recipient.status = 'pending'
    ), found AS (
        SELECT mail.id, mail.source, client.smtp_password, jsonb_build_object(
                   'message_id', mail.message_id, 'sender', mail.sender, 'client_id', client.id, 'smtp_host', client.smtp_host,
                   'smtp_port', client.smtp_port, 'smtp_security', client.smtp_security, 'smtp_username', client.smtp_username,
                   'recipients', due.addresses) AS facts
        FROM jsonb_to_recordset($3) AS asked (id uuid, tenant_id uuid, user_id uuid)
        JOIN outbound_emails mail ON mail.id = asked.id AND mail.tenant_id = asked.tenant_id
         AND (asked.user_id IS NULL OR mail.user_id = asked.user_id)
        JOIN email_clients client ON client.tenant_id = mail.tenant_id AND client.id = mail.client_id
         AND (asked.user_id IS NULL OR client.user_id = asked.user_id)
        CROSS JOIN LATERAL (
            SELECT jsonb_agg(recipient.address ORDER BY recipient.id) AS addresses,
                   bool_and(recipient.status = 'pending' AND recipient.next_retry_at IS NULL AND NOT EXISTS (
                       SELECT 1 FROM suppressions WHERE suppressions.tenant_id = recipient.tenant_id
                                                    AND suppressions.address = lower(recipient.address))) AS are_due
            FROM outbound_recipients recipient WHERE recipient.tenant_id = mail.tenant_id AND recipient.email_id = mail.id) due
        WHERE mail.status = 'pending' AND mail.attempts = 0 AND mail.saved_to_sent IS NULL AND NOT mail.is_sealed
          AND mail.erased_at IS NULL AND mail.next_retry_at IS NULL AND (mail.expires_at IS NULL OR mail.expires_at > statement_timestamp())
          AND (mail.scheduled_at IS NULL OR mail.scheduled_at <= statement_timestamp())
          AND client.smtp_host IS NOT NULL AND client.oauth_token_url IS NULL AND due.are_due
    )
    SELECT id::text, extract(epoch FROM sent_at)::float8, NULL::bytea, NULL::bytea, NULL::jsonb FROM sent
    UNION ALL SELECT id::text, NULL, NULL, NULL, NULL FROM marked
    UNION ALL SELECT id::text, NULL, source, smtp_password, facts FROM found
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody's mail."""

    identity: Identity
    email_id: str


@dataclass(frozen=True, slots=True)
class Look(Asked):
    """What there is to send. Answered by a Found; None: not here."""


@dataclass(frozen=True, slots=True)
class Mark(Asked):
    """The mark before the final dot. Answered by True; None: the mail does not wait for its first try, and nothing may be sent."""


@dataclass(frozen=True, slots=True)
class Accepted(Asked):
    """The server took the mail for all of these. Answered by when that was; None: nothing is written, because somebody else waits for it
    too, or a webhook is to be told."""

    addresses: Sequence[str]
    reply_code: int | None
    enhanced_code: str | None


@dataclass(frozen=True, slots=True)
class Found:
    """A mail, those it is for, and its account's login with the password as it is stored."""

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


Answer = Found | datetime | bool | None


class FirstTries:
    """For one thread."""

    def __init__(self, engine: Engine) -> None:
        self._prepared = Prepared(engine, _TURN)

    def turn(self, asked: Sequence[Asked]) -> list[Answer]:
        """Does and answers all of it, in the same order, or none. Of two that ask of the same mail only the first is answered.

        Raises UnavailableError when the database cannot be reached: then nobody knows whether it was done.
        """
        first = {each.email_id: each for each in reversed(asked)}
        groups = ([_row(each) for each in first.values() if isinstance(each, kind)] for kind in (Mark, Accepted, Look))
        try:
            with self._prepared.cursor() as cursor:
                cursor.execute("EXECUTE mailroom_first_tries (%s, %s, %s)", [orjson.dumps(rows).decode() for rows in groups])
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
    return Found(source=bytes(source), smtp_password=bytes(password) if password is not None else None, **facts)
