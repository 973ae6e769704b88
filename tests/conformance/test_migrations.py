"""The schema: built from nothing, built twice, built by several at once, and the same as the models."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from core.tenancy import SYSTEM_TENANT
from storage.engine import make_engine, system_connection
from storage.migrations import current_and_newest, upgrade
from storage.models import Base
from tests.toys import settle_in, together


def test_an_empty_database_gets_the_newest_schema_and_the_system_tenant(empty_database: str) -> None:
    engine = make_engine(empty_database)
    current, newest = current_and_newest(engine)
    assert (current, newest is not None) == (None, True)
    upgrade(engine)
    assert current_and_newest(engine) == (newest, newest)
    with system_connection(engine) as connection:
        assert [str(row[0]) for row in connection.execute(text("SELECT id FROM tenants"))] == [SYSTEM_TENANT]
    engine.dispose()


def test_upgrading_twice_changes_nothing(empty_database: str) -> None:
    engine = make_engine(empty_database)
    upgrade(engine)
    people = settle_in(engine)
    upgrade(engine)
    with system_connection(engine) as connection:
        kept = connection.execute(text("SELECT id FROM tenants WHERE name = 'acme'")).scalar()
    assert str(kept) == people.acme.tenant_id
    engine.dispose()


def test_several_processes_may_upgrade_at_once(empty_database: str) -> None:
    engines = [make_engine(empty_database) for _ in range(2)]
    together(*[lambda engine=engine: upgrade(engine) for engine in engines])
    current, newest = current_and_newest(engines[0])
    assert current == newest
    for engine in engines:
        engine.dispose()


def test_the_models_are_what_the_migrations_build(empty_database: str) -> None:
    engine = make_engine(empty_database)
    upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "render_as_batch": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()
