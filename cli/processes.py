"""The processes of the stack: what each runs, and the checks before any of them starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from core.errors import ConfigurationError, UnavailableError
from core.logging import configure_logging, get_logger
from core.settings import Settings, get_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

log = get_logger(__name__)
PYTHON = sys.executable


def command(process: str, *arguments: str) -> list[str]:
    """The command line of one process of the stack."""
    return [PYTHON, "-m", f"cli.{process}", *arguments]


def check_before_start(settings: Settings) -> None:
    """Raises ConfigurationError or UnavailableError with one line, before anything is half started."""
    assert settings.signing_keys
    assert settings.credential_keys
    check_database(settings)
    if settings.redis is not None and not settings.uses_embedded_broker:
        from brokers.redis import check_server

        check_server(settings.redis)


def check_database(settings: Settings) -> None:
    """The schema must be the code's; and on PostgreSQL the role must not walk through row-level security."""
    from storage.engine import make_engine
    from storage.postgres import bypasses_row_level_security

    engine = make_engine(settings.database)
    try:
        current, newest = schema_of(engine)
        if engine.dialect.name == "postgresql":
            with engine.connect() as connection:
                if bypasses_row_level_security(connection):
                    log.warning("database_role_bypasses_row_level_security", advice="use a role that is NOSUPERUSER NOBYPASSRLS")
    finally:
        engine.dispose()
    if current != newest:
        raise ConfigurationError("The database's schema is not this version's; run ./manage.py db migrate.")


def schema_of(engine: Engine) -> tuple[str | None, str | None]:
    """The database's revision and the code's. Raises UnavailableError when it cannot be reached."""
    from sqlalchemy.exc import SQLAlchemyError

    from storage.migrations import current_and_newest

    try:
        return current_and_newest(engine)
    except SQLAlchemyError:
        raise UnavailableError("DATABASE_URL: the database cannot be reached.") from None


@contextmanager
def checked_session() -> Iterator[Session]:
    """A transaction of the system for a command, once the database is known to be there and of this version."""
    from storage.engine import session_scope

    check_database(get_settings())
    with session_scope(system=True) as session:
        yield session


def start_logging(settings: Settings) -> None:
    """Structured logs for a long-running process."""
    configure_logging(settings.log_level, settings.log_format)


def split_queues(queues: Sequence[str]) -> set[str] | None:
    """Queue names as given on a command line, separated by commas or repeated. None: all of them. Raises ConfigurationError."""
    from brokers.queues import POLICIES

    names = {name.strip() for given in queues for name in given.split(",") if name.strip()}
    unknown = sorted(names - {str(queue) for queue in POLICIES})
    if unknown:
        raise ConfigurationError(f"There is no queue named {unknown[0]}; the queues are {', '.join(str(queue) for queue in POLICIES)}.")
    return names or None
