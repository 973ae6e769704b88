"""The database connection and `session_scope`, the one way to a session.

A session always belongs to an identity: the bound one, or the system's. On PostgreSQL the identity is also told to the server
for the length of the transaction, where row-level security enforces it (storage/postgres.py). A session without an identity
cannot begin.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from core.errors import UnavailableError
from core.settings import get_settings
from core.tenancy import SYSTEM, Identity, current_identity
from storage import deferred, postgres
from storage.patience import STATEMENT_SECONDS, WatchedConnection

SQLITE_BUSY_MS = 30_000
CONNECT_SECONDS = 3
TRUSTED_SECONDS = 1.0
"""A pooled connection that was idle for longer is asked whether it still is one."""
LIBPQ: dict[str, Any] = {
    "connect_timeout": CONNECT_SECONDS,
    "application_name": "mailroom",
    # A connection whose other end is gone without a word (a firewall forgot it) is noticed in seconds and not in hours.
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 12_000,
    # And its transaction ends on the server too, with the locks it holds: whoever does the same again waits for them.
    "options": f"-c statement_timeout={STATEMENT_SECONDS}s -c idle_in_transaction_session_timeout=15s"
    " -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=3 -c tcp_keepalives_count=3",
    "connection_factory": WatchedConnection,
}
AfterCommit = Callable[[], None]


def make_engine(url: str, *, pool_size: int = 10, max_overflow: int = 20) -> Engine:
    """An engine for PostgreSQL or SQLite with the settings each needs."""
    if url.startswith("sqlite"):
        return _make_sqlite_engine(url)
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=max_overflow,
        hide_parameters=True,  # an error's text reaches logs and the record; values do not
        pool_timeout=10,
        connect_args=LIBPQ,
    )
    _ping_what_was_idle(engine)
    return engine


def _ping_what_was_idle(engine: Engine) -> None:
    """SQLAlchemy's `pool_pre_ping`, but not for a connection that answered a moment ago: the round trip is a good part of a short
    transaction."""

    @event.listens_for(engine, "checkin")
    def on_checkin(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["used_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def on_checkout(connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        if time.monotonic() - record.info.get("used_at", math.inf) > TRUSTED_SECONDS:
            try:
                engine.dialect.do_ping(connection)
            except psycopg2.Error as error:
                raise InvalidatePoolError from error


def _make_sqlite_engine(url: str) -> Engine:
    path = url.removeprefix("sqlite:///")
    if path and path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": SQLITE_BUSY_MS / 1000}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN is DEFERRED: two readers that want to write would deadlock
        cursor = connection.cursor()
        for pragma in (f"busy_timeout = {SQLITE_BUSY_MS}", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


@lru_cache(maxsize=1)
def get_engine() -> Engine:
    """The engine of this process, made on first use and never before a fork."""
    settings = get_settings()
    return make_engine(settings.database, pool_size=settings.db_pool_size, max_overflow=settings.db_max_overflow)


def new_session(identity: Identity, engine: Engine | None = None) -> Session:
    """A session that acts for the identity, whatever is bound in the context."""
    return _factory(engine or get_engine())(info={"identity": identity})


@contextmanager
def session_scope(*, system: bool = False, engine: Engine | None = None) -> Iterator[Session]:
    """A transaction for the bound identity (or the system), committed at the end of the block, rolled back on an error.

    Raises TenantError when nothing is bound, UnavailableError when the database cannot be reached.
    """
    identity = SYSTEM if system else current_identity()
    session = new_session(identity, engine)
    try:
        yield session
        session.commit()
    except (OperationalError, InterfaceError, PoolTimeoutError) as error:
        session.rollback()
        raise _classified(error) from error
    except BaseException:  # a limit that strikes the thread, too: no transaction is left open with its locks
        session.rollback()
        raise
    finally:
        session.close()


@contextmanager
def system_connection(engine: Engine) -> Iterator[Connection]:
    """A transaction of the system on a bare connection, for the recorder and the relay: no session, no mapping."""
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            postgres.bind_identity(connection, SYSTEM)
        yield connection


@contextmanager
def untenanted_connection(engine: Engine) -> Iterator[Connection]:
    """A bare connection for a statement about what is no tenant's. On PostgreSQL each is its own transaction: a round trip, not four."""
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.execution_options(isolation_level="AUTOCOMMIT")
        yield connection
        connection.commit()


@contextmanager
def relay_connection(engine: Engine) -> Iterator[Connection]:
    """A `system_connection` for the statements of storage/dispatch.py and storage/lives.py."""
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            postgres.bind_relay(connection)
        yield connection


def after_commit(session: Session, action: AfterCommit) -> None:
    """Runs the action once this session's transaction has committed; not at all if it is rolled back."""
    session.info.setdefault("after_commit", []).append(action)


def identity_of(session: Session) -> Identity:
    """Who a session acts for. Every repository asks here first."""
    identity: Identity = session.info["identity"]
    return identity


@lru_cache(maxsize=8)
def _factory(engine: Engine) -> sessionmaker[Session]:
    factory = sessionmaker(engine, expire_on_commit=False)
    event.listen(factory, "after_begin", _begin)
    event.listen(factory, "before_commit", deferred.on_commit)
    event.listen(factory, "after_transaction_end", deferred.on_end)
    event.listen(factory, "after_commit", _run_after_commit)
    event.listen(factory, "after_soft_rollback", _forget_after_commit)
    return factory


def _begin(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        postgres.bind_identity(connection, identity_of(session))
    deferred.on_begin(session, connection)


def _run_after_commit(session: Session) -> None:
    if session.in_nested_transaction():  # the end of a savepoint: nothing is committed yet
        return
    for action in session.info.pop("after_commit", ()):
        action()


def _forget_after_commit(session: Session, previous: SessionTransaction) -> None:
    if previous.parent is None:
        session.info.pop("after_commit", None)


def _classified(error: Exception) -> Exception:
    if (
        isinstance(error, DBAPIError)
        and not error.connection_invalidated
        and "database is locked" not in str(error.orig)
        and _reached(error)
    ):
        return error
    return UnavailableError("The database cannot be reached; nothing was changed.", retry_after=5)


def _reached(error: DBAPIError) -> bool:
    """Whether the server answered with an SQLSTATE that says something about our statement: not that it is going (57P), that it is full
    (53) or that it took too long (57014)."""
    code = getattr(error.orig, "pgcode", None)
    return bool(code) and not str(code).startswith(("08", "53", "57P", "57014"))
