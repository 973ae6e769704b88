"""The schema's history (alembic, without an ini file)."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from storage.patience import WatchedConnection


def upgrade(engine: Engine) -> None:
    """Brings the database to the newest schema; safe to call at every start and by several processes at once."""
    with engine.begin() as connection:
        driver = None
        if connection.dialect.name == "postgresql":
            driver = connection.connection.driver_connection
            assert isinstance(driver, WatchedConnection)
            driver.is_patient = True  # an index over a large table takes its time, and so do others' upgrades
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(710001)")
        configuration = _configuration()
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "head")
        if driver is not None:
            driver.is_patient = False


def current_and_newest(engine: Engine) -> tuple[str | None, str | None]:
    """The database's revision and the code's."""
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    return current, ScriptDirectory.from_config(_configuration()).get_current_head()


def _configuration() -> Config:
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent))
    configuration.set_main_option("path_separator", "os")
    return configuration
