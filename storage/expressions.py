"""What both databases say in their own words: their clock (times in the record are compared with it only, never with a process' own),
and whether a value is one of many."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Boolean, ColumnElement, Dialect, Text, TypeDecorator, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement

from storage.types import UtcDateTime

SQLITE_FORMAT = "%Y-%m-%d %H:%M:%f000"  # six decimals, as bound values have: they are compared as text


class db_now(FunctionElement[datetime]):  # noqa: N801  (reads as the SQL function it is)
    """The database's current time; on PostgreSQL that of the statement, not of the transaction's start."""

    type = UtcDateTime()
    inherit_cache = True


class db_now_plus(FunctionElement[datetime]):  # noqa: N801
    """The database's current time plus seconds (a number or an expression; NULL gives NULL)."""

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, seconds: float | ColumnElement[Any]) -> None:
        super().__init__(seconds if isinstance(seconds, ColumnElement) else literal(float(seconds)))


@compiles(db_now, "postgresql")
def _now_postgresql(_element: db_now, _compiler: SQLCompiler, **_options: Any) -> str:
    return "statement_timestamp()"


@compiles(db_now, "sqlite")
def _now_sqlite(_element: db_now, _compiler: SQLCompiler, **_options: Any) -> str:
    return f"strftime('{SQLITE_FORMAT}', 'now')"


@compiles(db_now_plus, "postgresql")
def _plus_postgresql(element: db_now_plus, compiler: SQLCompiler, **options: Any) -> str:
    return f"(statement_timestamp() + make_interval(secs => {compiler.process(element.clauses, **options)}))"


@compiles(db_now_plus, "sqlite")
def _plus_sqlite(element: db_now_plus, compiler: SQLCompiler, **options: Any) -> str:
    return f"strftime('{SQLITE_FORMAT}', 'now', ({compiler.process(element.clauses, **options)}) || ' seconds')"


class seconds_after(FunctionElement[datetime]):  # noqa: N801
    """A time of the record plus seconds of the record."""

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, moment: Any, seconds: ColumnElement[Any]) -> None:
        super().__init__(moment, seconds)


@compiles(seconds_after, "postgresql")
def _after_postgresql(element: seconds_after, compiler: SQLCompiler, **options: Any) -> str:
    moment, seconds = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({moment} + make_interval(secs => {seconds}))"


@compiles(seconds_after, "sqlite")
def _after_sqlite(element: seconds_after, compiler: SQLCompiler, **options: Any) -> str:
    moment, seconds = (compiler.process(clause, **options) for clause in element.clauses)
    return f"strftime('{SQLITE_FORMAT}', {moment}, ({seconds}) || ' seconds')"


class among(FunctionElement[bool]):  # noqa: N801
    """Whether a column of text, ids or whole numbers has one of these values, which travel as one.

    A list of 500 parameters (`in_`) takes both sides ten times as long to write, to read and to plan as the search itself.
    """

    type = Boolean()
    inherit_cache = True

    def __init__(self, column: Any, values: Collection[str] | Collection[int]) -> None:
        super().__init__(column, literal(values, _Listed()))


class _Listed(TypeDecorator[Collection[Any]]):
    """Many values as one text: an array as PostgreSQL writes it, JSON for SQLite."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Collection[Any] | None, dialect: Dialect) -> str:
        """Numbers as they are, everything else in quotes."""
        items = list(value or ())
        if dialect.name == "sqlite":
            encoded: bytes = orjson.dumps(items)
            return encoded.decode()
        return "{" + ",".join(str(item) if isinstance(item, int) else _quoted(item) for item in items) + "}"


def _quoted(item: str) -> str:
    return '"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"'


@compiles(among, "postgresql")
def _among_postgresql(element: among, compiler: SQLCompiler, **options: Any) -> str:
    column, values = element.clauses
    kind = compiler.dialect.type_compiler_instance.process(column.type)
    return f"{compiler.process(column, **options)} = ANY (CAST({compiler.process(values, **options)} AS {kind}[]))"


@compiles(among, "sqlite")
def _among_sqlite(element: among, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({values}))"  # noqa: S608  (our own text)
