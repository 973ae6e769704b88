"""Accepts runs that need nothing of their caller's transaction, many to a commit.

While the database commits a batch, the next gathers. `accept` returns after the commit, like `enqueue` and its session. A caller whom
nobody is before does not wait for another thread.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from core.settings import get_settings
from runs.current import current_run
from runs.gatherer import Gatherer
from runs.publication import Publication, publish_after_commit
from storage import dispatch
from storage.accept import PLAIN
from storage.engine import session_scope
from storage.intake import PostgresIntake
from storage.outcomes import NewRow
from storage.repositories.runs import NewRun, Recorded, TaskRuns, insert_run

MAX_BATCH = 1000
MOST_ALONE = 1000
"""A session's runs beyond this stay in its own transaction: nobody else's are to wait for them."""
_IN_COMMON = [name for name in PLAIN if name not in {"id", "args", "request_id"}]

Runs = Sequence[NewRun]


class Intake(Gatherer[Runs, None]):
    """For all threads of a process. Takes plain runs with ids of their own, each tenant's for an identity that may enqueue for it."""

    def __init__(self, broker: Any, engine: Engine) -> None:
        super().__init__("intake", most=MAX_BATCH, alone_if_refused=True)
        self.engine = engine
        self._broker = broker
        self._prepared = PostgresIntake(engine) if engine.dialect.name == "postgresql" else None

    def accept(self, runs: Runs) -> None:
        """Records the runs, all of them or none, and commits. Raises what `enqueue` and its session raise for a database that refuses."""
        self.ask(runs)

    def _may_do_it_here(self) -> bool:
        return current_run() is None  # else the thread may be interrupted by its limit

    def _end(self) -> None:
        if self._prepared is not None:
            self._prepared.close()

    def _do(self, asked: Sequence[Runs]) -> list[None]:
        """All in one transaction."""
        runs = [run for each in asked for run in each]
        publication = Publication(self._broker)
        for run, recorded in zip(runs, self._recorded(runs), strict=True):
            publication.add(run, [recorded])
        publication()
        return [None] * len(asked)

    def _recorded(self, runs: Runs) -> list[Recorded]:
        window = get_settings().tenant_window
        if self._prepared is not None:
            return self._prepared.accept(runs, dispatch.PUBLISH_GRACE_SECONDS, window)
        with session_scope(system=True, engine=self.engine) as session:
            return recorded_portably(session, runs, window)


def recorded_portably(session: Session, runs: Runs, window: int) -> list[Recorded]:
    """Those that differ in little together."""
    places: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, run in enumerate(runs):
        places[tuple(getattr(run, name) for name in _IN_COMMON)].append(place)
    recorded: dict[int, Recorded] = {}
    for theirs in places.values():
        rows = [NewRow(runs[place].run_id, runs[place].args, runs[place].request_id or runs[place].run_id) for place in theirs]
        found = TaskRuns(session).insert_many(runs[theirs[0]], rows, dispatch.PUBLISH_GRACE_SECONDS, window)
        recorded |= zip(theirs, found, strict=True)
    return [recorded[place] for place in range(len(runs))]


class Gathering:
    """The plain runs of a session that has begun no transaction; see storage/deferred.py."""

    def __init__(self, intake: Intake, broker: Any) -> None:
        self._intake = intake
        self._broker = broker
        self._runs: list[NewRun] = []

    def add(self, run: NewRun) -> None:
        """One more."""
        self._runs.append(run)

    @property
    def is_joined(self) -> bool:
        """When there are too many for others to wait for."""
        return len(self._runs) > MOST_ALONE

    def join(self, session: Session, connection: Connection) -> None:
        """In the session's transaction, as if they had been enqueued in it from the first."""
        for run in self._runs:
            recorded = insert_run(connection, run, dispatch.PUBLISH_GRACE_SECONDS, get_settings().tenant_window)
            assert recorded is not None, "a new id is nobody's"
            publish_after_commit(session, self._broker, run, [recorded])

    def do_alone(self) -> None:
        """Together with whoever commits at this moment."""
        self._intake.accept(self._runs)
