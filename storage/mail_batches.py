"""Writing many rows of mail at once: by COPY and set-based statements on PostgreSQL, by `executemany` on SQLite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Table, bindparam, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.orm import Session

from storage import postgres_mail, search
from storage.message_rows import Words
from storage.models import EmailMessage, ThreadLink
from storage.models.base import Base
from storage.types import Json

Item = TypeVar("Item")
CHUNK = 500
"""Values named in one statement; SQLite takes 32,766 parameters, and a plan for thousands is no better than several for hundreds."""


def chunks(items: Sequence[Item], size: int = CHUNK) -> Iterator[list[Item]]:
    """In order, each as long as one statement takes."""
    return (list(items[start : start + size]) for start in range(0, len(items), size))


def is_postgres(session: Session) -> bool:
    """Which of the two ways a session goes."""
    return session.get_bind().dialect.name == "postgresql"


def add_messages(session: Session, rows: Sequence[dict[str, Any]], words: Sequence[Words]) -> set[str]:
    """Inserts the rows that are not there yet, and what they are found by. Returns the ids of those."""
    if not rows:
        return set()
    if is_postgres(session):
        return postgres_mail.add_messages(session.connection(), rows, words)
    insert = sqlite.insert(_messages()).on_conflict_do_nothing().returning(_messages().c.id)
    added = {row[0] for some in chunks(rows, 100) for row in session.execute(insert, some)}
    search.add(session, [(row, each) for row, each in zip(rows, words, strict=True) if row["id"] in added])
    return added


def keep_statistics(session: Session) -> None:
    """After many rows were added: what the server plans by is to be true of them. SQLite plans without."""
    if is_postgres(session):
        postgres_mail.keep_statistics(session.connection())


def add_rows(session: Session, model: type[Base], rows: Sequence[dict[str, Any]]) -> None:
    """Inserts rows that are not there yet."""
    if rows and is_postgres(session):
        postgres_mail.add_rows(session.connection(), model.__tablename__, rows)
    elif rows:
        session.execute(sqlite.insert(model).on_conflict_do_nothing(), rows)


def add_links(session: Session, tenant_id: str, client_id: str, links: Mapping[str, str]) -> None:
    """Message-IDs (hashed) and the threads they belong to; one that is known stays where it is."""
    if links and is_postgres(session):
        postgres_mail.add_links(session.connection(), tenant_id, client_id, links)
    elif links:
        owner = {"tenant_id": tenant_id, "client_id": client_id}
        rows = [{**owner, "message_id": key, "thread_id": thread_id} for key, thread_id in links.items()]
        session.execute(sqlite.insert(ThreadLink).on_conflict_do_nothing(), rows)


def set_flags(session: Session, where: Mapping[str, Any], wanted: Mapping[int, Sequence[str]]) -> int:
    """The flags of many messages of a folder (tenant_id, folder_id, uid_validity). Returns how many really changed."""
    if not wanted:
        return 0
    if is_postgres(session):
        return postgres_mail.set_flags(session.connection(), where, wanted)
    table, flags = _messages(), bindparam("wanted_flags", type_=Json)
    statement = update(table).where(table.c.uid == bindparam("of_uid"), table.c.vanished_at.is_(None), table.c.flags != flags)
    statement = statement.where(*(table.c[name] == value for name, value in where.items())).values(flags=flags)
    rows = [{"of_uid": uid, "wanted_flags": each} for uid, each in wanted.items()]
    return session.connection().execute(statement, rows).rowcount


def set_places(session: Session, tenant_id: str, places: Sequence[dict[str, Any]]) -> None:
    """Puts messages (by id) into folders (folder_id, uid_validity, uid, flags, internal_date, remote_id): they are to be seen there."""
    if places and is_postgres(session):
        postgres_mail.set_places(session.connection(), tenant_id, places)
    elif places:
        _set_by_id(session, tenant_id, [{**place, "vanished_at": None} for place in places])


def set_uids(session: Session, tenant_id: str, uid_validity: int, uids: Mapping[str, int]) -> None:
    """Gives messages (by id) new UIDs in their folder."""
    if uids and is_postgres(session):
        numbers = [{"id": row_id, "uid": uid} for row_id, uid in uids.items()]
        postgres_mail.set_uids(session.connection(), tenant_id, uid_validity, numbers)
    elif uids:
        rows = [{"id": row_id, "uid_validity": uid_validity, "uid": uid, "vanished_at": None} for row_id, uid in uids.items()]
        _set_by_id(session, tenant_id, rows)


def _set_by_id(session: Session, tenant_id: str, rows: Sequence[dict[str, Any]]) -> None:
    table = _messages()
    values = {name: bindparam(f"new_{name}", type_=table.c[name].type) for name in rows[0] if name != "id"}
    statement = update(table).where(table.c.tenant_id == tenant_id, table.c.id == bindparam("new_id")).values(values)
    session.connection().execute(statement, [{f"new_{name}": value for name, value in row.items()} for row in rows])


def _messages() -> Table:
    table = EmailMessage.__table__
    assert isinstance(table, Table)
    return table
