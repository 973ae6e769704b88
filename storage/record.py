"""The recorder's way to the record: the outcomes of a turn and its claims, in one transaction and on PostgreSQL in one round trip."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import DataError, IntegrityError

from storage.claims import claim, own_runs, write_outcomes
from storage.engine import system_connection
from storage.outcomes import Claim, HeldLane, Outcome, OwnRun, RecordRefusedError
from storage.postgres import PostgresRecord


class Record(Protocol):
    """Used by one thread."""

    def turn(
        self,
        worker_id: str,
        outcomes: Sequence[Outcome],
        wanted: Mapping[str, str],
        in_doubt: Collection[str],
        lanes: Sequence[HeldLane] = (),
    ) -> tuple[set[str], dict[str, Claim]]:
        """Writes the outcomes, makes the claims (see storage/claims.py), and commits both or neither.

        Returns the ids of the runs whose outcome was written (the others' fence was old) and the claims by run id. Raises
        RecordRefusedError when an outcome cannot be written as it is, and what the driver raises when the database is away.
        """

    def own(self, worker_id: str) -> list[OwnRun]:
        """The runs that a worker has claimed: id, tenant, task, queue."""

    def close(self) -> None:
        """Closes what is open; a later turn opens it again."""


class PortableRecord:
    """Any database, in as many statements as it takes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def turn(
        self,
        worker_id: str,
        outcomes: Sequence[Outcome],
        wanted: Mapping[str, str],
        in_doubt: Collection[str],
        lanes: Sequence[HeldLane] = (),
    ) -> tuple[set[str], dict[str, Claim]]:
        """See Record."""
        try:
            with system_connection(self._engine) as connection:
                return write_outcomes(connection, outcomes), claim(connection, worker_id, wanted, in_doubt, lanes)
        except (DataError, IntegrityError) as error:
            raise RecordRefusedError from error

    def own(self, worker_id: str) -> list[OwnRun]:
        """See Record."""
        with system_connection(self._engine) as connection:
            return own_runs(connection, worker_id)

    def close(self) -> None:
        """See Record: it borrows its connections from the pool."""


def open_record(engine: Engine) -> Record:
    """The best there is for the engine's database."""
    return PostgresRecord(engine) if engine.dialect.name == "postgresql" else PortableRecord(engine)
