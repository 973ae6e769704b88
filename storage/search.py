"""Full-text search over subject, people and text of stored messages; the newest first, not the best: people look for mail by time.

PostgreSQL: `email_search` (storage/postgres_mail.py), written with the message. SQLite: an FTS5 table, made and filled when it is
first needed, because its shadow tables belong to no schema of ours; what is deleted is swept out of it from time to time, and finds
nothing meanwhile. Words are only ever a way to ids: who may see a message is asked of `email_messages`, as everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, column, false, literal_column, select, table, text
from sqlalchemy.orm import Session

from core.tenancy import Identity
from mail.charsets import storable
from storage import postgres_mail
from storage.message_rows import Words
from storage.models import EmailMessage, EmailSearch

LONGEST_QUERY = 1000
MOST_WORDS = 50

_WORD = re.compile(r"\w+")
_FTS = "email_words"
_MAKE = f"CREATE VIRTUAL TABLE IF NOT EXISTS {_FTS} USING fts5 (email_id UNINDEXED, subject, people, words, tokenize = 'unicode61')"
_FILL = f"""
    INSERT INTO {_FTS} (email_id, subject, people, words)
    SELECT id, subject, coalesce(sender, '') || ' ' || to_addresses || ' ' || cc_addresses, coalesce(body_text, snippet)
    FROM email_messages"""  # noqa: S608  (our own text)
_ADD = text(f"INSERT INTO {_FTS} (email_id, subject, people, words) VALUES (:email_id, :subject, :people, :words)")  # noqa: S608
_SWEEP = text(f"DELETE FROM {_FTS} WHERE email_id NOT IN (SELECT id FROM email_messages)")  # noqa: S608


def matching(session: Session, query: str, identity: Identity) -> ColumnElement[bool]:
    """The condition that a message contains what somebody typed, whatever it is. Without a single word nothing does.

    Words are all to be found, the last one may be the beginning of one; PostgreSQL also knows "phrases", or, and -without.
    """
    cleaned = storable(query[:LONGEST_QUERY])
    words = _WORD.findall(cleaned)[:MOST_WORDS]
    if not words:
        return false()
    if session.get_bind().dialect.name == "postgresql":
        tenant_id = None if identity.is_system else identity.tenant_id
        postgres_mail.search_for(session.connection(), cleaned, tenant_id)
        found = select(EmailSearch.email_id)
        return EmailMessage.id.in_(found if tenant_id is None else found.where(EmailSearch.tenant_id == tenant_id))
    _prepare(session)
    fts = " ".join(f'"{word}"' for word in words) + "*"  # quoted: AND, OR and NEAR are words like others
    hits: Select[Any] = select(column("email_id")).select_from(table(_FTS)).where(literal_column(_FTS).op("MATCH")(fts))
    return EmailMessage.id.in_(hits)


def add(session: Session, messages: Sequence[tuple[dict[str, Any], Words]]) -> None:
    """The words of rows that were just stored. SQLite only: PostgreSQL reads them out of the batch itself."""
    _prepare(session)
    limit = postgres_mail.WORDS_OF_TEXT
    rows = [
        {"email_id": row["id"], "subject": row["subject"], "people": words.people, "words": (words.text or row["body_text"] or "")[:limit]}
        for row, words in messages
    ]
    if rows:
        session.execute(_ADD, rows)


def sweep(session: Session) -> None:
    """Forgets the words of messages that are gone. PostgreSQL does so by itself."""
    if session.get_bind().dialect.name != "postgresql" and _exists(session):
        session.execute(_SWEEP)


def _prepare(session: Session) -> None:
    if not _exists(session):
        session.execute(text(_MAKE))
        session.execute(text(_FILL))


def _exists(session: Session) -> bool:
    return session.scalar(text("SELECT 1 FROM sqlite_master WHERE name = :name"), {"name": _FTS}) is not None
