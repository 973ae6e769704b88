"""Mail servers that do not answer: all accounts on one give it a pause together. The system's own; no tenant reads or writes it."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from storage.expressions import db_now, db_now_plus
from storage.models import MailHost

FAILURES_UNTIL_CLOSED = 3
SHORTEST_PAUSE, LONGEST_PAUSE = 10.0, 300.0


def closed_for(connection: Connection, where: str) -> tuple[float, int]:
    """Seconds for which `host:port` is to be left alone (0: not at all), and how often in a row it has failed."""
    row = connection.execute(select(MailHost.closed_until, MailHost.failures, db_now()).where(MailHost.host == where)).one_or_none()
    if row is None:
        return 0.0, 0
    until, failures, now = row
    return (max(0.0, (until - now).total_seconds()) if until is not None else 0.0), failures


def failed(connection: Connection, where: str, reason: str) -> None:
    """It did not answer. From the third time in a row on it gets a pause, twice as long each time."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    changes = {"failures": MailHost.failures + 1, "reason": reason}
    statement = insert(MailHost).values(host=where, failures=1, reason=reason).on_conflict_do_update(index_elements=["host"], set_=changes)
    failures = connection.execute(statement.returning(MailHost.failures)).scalar()
    over = (failures or 1) - FAILURES_UNTIL_CLOSED
    if over >= 0:
        pause = min(LONGEST_PAUSE, SHORTEST_PAUSE * 2.0**over)
        connection.execute(update(MailHost).where(MailHost.host == where).values(closed_until=db_now_plus(pause)))


def answered(connection: Connection, where: str) -> None:
    """It is well again."""
    connection.execute(delete(MailHost).where(MailHost.host == where))
