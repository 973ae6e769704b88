"""Whether there is anything to do for a relay: one look, so that one with nothing to do costs next to nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Engine, Select, and_, exists, func, literal, or_, select, text

from storage.barriers import is_unswept
from storage.dispatch import IS_WAITING, NOT_ON_A_BROKER, ON_A_BROKER, has_overrun
from storage.engine import relay_connection
from storage.expressions import db_now
from storage.lives import has_orphans
from storage.models import Limit, Pause, TaskRun, WebhookDelivery, WorkerProcess
from storage.models.runs import HELD, LIMITED, LIMITED_BY_HOST
from storage.models.webhooks import NOT_STARTED
from storage.postgres import Prepared


@dataclass(frozen=True, slots=True)
class ToDo:
    """Which of the relay's chores would find something."""

    due: bool
    lost: bool
    held: bool
    suspects: bool
    limited: bool
    paused: bool
    followers: bool
    expired: bool
    overrun: bool
    unswept: bool
    deliveries: bool
    orphans: bool
    process_keys: str | None
    """Of the workers that have one, a line each."""


class Lookout:
    """Looks what there is to do. For one thread; on PostgreSQL over a connection of its own, one round trip and no planning: an idle
    relay costs next to nothing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._prepared: Prepared | None = None
        if engine.dialect.name == "postgresql":
            statement = _look().compile(dialect=engine.dialect, compile_kwargs={"literal_binds": True})
            self._prepared = Prepared(engine, f"PREPARE mailroom_look AS {statement}")

    def look(self) -> ToDo:
        """Raises what the driver raises when the database is away."""
        if self._prepared is None:
            with relay_connection(self._engine) as connection:
                return ToDo(*connection.execute(_look()).one())
        try:
            with self._prepared.cursor() as cursor:
                cursor.execute("EXECUTE mailroom_look")
                return ToDo(*cursor.fetchone())
        except Exception:  # whatever it was, the next look begins with a new connection; the caller hears of it
            self._prepared.close()
            raise

    def close(self) -> None:
        """Closes the connection."""
        if self._prepared is not None:
            self._prepared.close()


@cache
def _look() -> Select[Any]:
    is_due = and_(TaskRun.publish_at <= db_now(), IS_WAITING, ~TaskRun.is_suspect)
    conditions = (
        and_(is_due, NOT_ON_A_BROKER),
        and_(is_due, ON_A_BROKER),
        and_(text(HELD)),
        and_(text("is_suspect"), IS_WAITING, TaskRun.publish_at <= db_now()),
        text(LIMITED),
        text("waiting_for = 'pause'"),
        text("waiting_for = 'run'"),
        and_(TaskRun.expires_at <= db_now(), text("state IN ('PENDING', 'RETRY')")),
        has_overrun(),
    )
    wanted: list[Any] = [exists(select(literal(1)).select_from(TaskRun).where(condition)) for condition in conditions]
    wanted[4] = or_(wanted[4], exists(select(literal(1)).select_from(TaskRun).where(text(LIMITED_BY_HOST))))
    unswept = or_(*[exists(select(literal(1)).where(is_unswept(barrier))) for barrier in (Pause, Limit)])
    deliveries = exists(select(literal(1)).select_from(WebhookDelivery).where(text(NOT_STARTED)))
    process_keys = select(func.aggregate_strings(WorkerProcess.process_key, "\n")).scalar_subquery()
    return select(*wanted, unswept, deliveries, has_orphans(), process_keys)
