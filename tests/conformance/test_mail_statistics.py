"""What PostgreSQL plans by, while a first sync fills its tables."""

from __future__ import annotations

from sqlalchemy import text

from storage.repositories.messages import EmailMessages
from tests.conformance.test_mail_store import Account, letter
from tests.toys import Record


def counted(account: Account) -> float | None:
    """How many messages PostgreSQL thinks there are, after it was given the opportunity to look; None on SQLite."""
    with account.record.session(account.ann) as session:
        EmailMessages(session).keep_statistics()
    with account.record.session(account.ann) as session:
        if session.get_bind().dialect.name != "postgresql":
            return None
        return float(session.scalar(text("SELECT reltuples FROM pg_class WHERE oid = to_regclass('email_messages')")) or 0)


def test_statistics_are_made_and_kept_until_the_table_has_outgrown_them(record: Record) -> None:
    account = Account(record)
    account.store({uid: letter("word " * 200) for uid in range(1, 301)})
    first = counted(account)
    assert first in {None, 300.0}
    account.store({uid: letter() for uid in range(301, 311)})
    assert counted(account) == first
    account.store({uid: letter("word " * 200) for uid in range(401, 1801)})
    assert counted(account) in {None, 1710.0}
