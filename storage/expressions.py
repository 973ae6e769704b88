"""The database's clock as SQL expressions. Times in the record are compared with this clock only, never with a process' own."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, literal
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
