"""Loose index scans: the different beginnings of a partial index's entries, at one probe each, however many rows share one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, TextClause, text

from storage.models.runs import HELD, PUBLISHED

PAGE = 500
LEAST: dict[str, Any] = {"tenant_id": "00000000-0000-0000-0000-000000000000", "priority": -1}
"""What comes before every value of a column; before every text comes the empty one."""


def beginnings(
    connection: Connection, columns: Sequence[str], where: str, after: Sequence[Any] | None = None, limit: int = PAGE
) -> list[tuple[Any, ...]]:
    """The different values of the first columns of the index over `where`, in its order, from behind `after`; none of them is NULL."""
    least = [LEAST.get(name, "") for name in columns]
    values = {f"after_{name}": value for name, value in zip(columns, least if after is None else after, strict=True)}
    statement = (_walk if connection.dialect.name == "postgresql" else _distinct)(tuple(columns), where)
    rows = connection.execute(statement, {**values, "limit": limit})
    return [tuple(str(value) if name == "tenant_id" else value for name, value in zip(columns, row, strict=True)) for row in rows]


def pages(connection: Connection, columns: Sequence[str], where: str) -> Iterator[list[tuple[Any, ...]]]:
    """All beginnings, a page at a time."""
    page = beginnings(connection, columns, where)
    while page:
        yield page
        page = beginnings(connection, columns, where, page[-1]) if len(page) == PAGE else []


def queues_in_use(connection: Connection) -> list[str]:
    """The queues with runs that are published or held. The indexes over those begin with the queue, so a tenant's are found by it."""
    return sorted({row[0] for where in (PUBLISHED, HELD) for page in pages(connection, ["queue"], where) for row in page})


@cache
def _distinct(columns: tuple[str, ...], where: str) -> TextClause:
    """For SQLite, which enters an index by the first column of a row only: one pass over the index costs it less."""
    names = ", ".join(columns)
    after = ", ".join(f":after_{name}" for name in columns)
    return text(f"SELECT DISTINCT {names} FROM task_runs WHERE {where} AND ({names}) > ({after}) ORDER BY {names} LIMIT :limit")  # noqa: S608


@cache
def _walk(columns: tuple[str, ...], where: str) -> TextClause:
    def named(table: str) -> str:
        return ", ".join(f"{table}.{name}" for name in columns)

    def first_behind(row: str) -> str:
        behind = f"{where} AND ({named('run')}) > ({row})"
        return f"(SELECT run.id FROM task_runs run WHERE {behind} ORDER BY {named('run')} LIMIT 1)"  # noqa: S608  (our own text)

    after = ", ".join(f":after_{name}" for name in columns)
    return text(f"""
        WITH RECURSIVE lane (id) AS (
            SELECT {first_behind(after)}
            UNION ALL
            SELECT {first_behind(named("last"))} FROM lane JOIN task_runs last ON last.id = lane.id
        ) SELECT {named("last")} FROM lane JOIN task_runs last ON last.id = lane.id LIMIT :limit""")  # noqa: S608  (our own text)
