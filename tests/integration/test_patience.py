"""A database that does not answer is given up; a migration waits."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from storage import patience
from storage.engine import make_engine
from tests.servers.postgres import Postgres


@pytest.fixture
def impatient(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.5)
    engine = make_engine(postgres.create_database("impatient"))
    yield engine
    engine.dispose()
    postgres.drop_database("impatient")


def test_a_call_that_gets_no_answer_is_given_up_and_the_next_has_a_connection(impatient: Engine) -> None:
    started = time.monotonic()
    with pytest.raises(OperationalError), impatient.begin() as connection:
        connection.execute(text("SELECT pg_sleep(60)"))
    assert time.monotonic() - started < 25
    with impatient.begin() as connection:
        assert connection.execute(text("SELECT 2")).scalar() == 2


def test_a_patient_connection_waits(impatient: Engine) -> None:
    with impatient.begin() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, patience.WatchedConnection)
        driver.is_patient = True
        connection.execute(text("SELECT pg_sleep(3)"))
