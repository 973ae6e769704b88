"""First tries of several threads share their transactions (see storage/first_tries.py)."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from sqlalchemy import Engine

from core.errors import UnavailableError
from core.logging import get_logger
from runs.gatherer import Gatherer
from storage.engine import get_engine
from storage.first_tries import Answer, Asked, FirstTries

log = get_logger(__name__)
MAX_BATCH = 64


class Together(Gatherer[Asked, Answer]):
    """For all threads of a process. `ask` raises UnavailableError when nobody knows whether it was done: then it is done by nobody else."""

    def __init__(self, engine: Engine) -> None:
        super().__init__("first-tries", most=MAX_BATCH, alone_if_refused=False)
        self.engine = engine
        self._tries = FirstTries(engine)

    def _do(self, asked: Sequence[Asked]) -> list[Answer]:
        try:
            return self._tries.turn(asked)
        except UnavailableError:
            raise
        except Exception as error:
            log.exception("first_tries_failed")
            raise UnavailableError(f"The record could not be asked ({type(error).__name__}).", retry_after=5) from None

    def _end(self) -> None:
        self._tries.close()


_open: list[Together] = []
_opening = threading.Lock()


def together() -> Together | None:
    """This process', opened on first use and never before a fork. None where every mail has its own transactions (SQLite)."""
    engine = get_engine()
    if engine.dialect.name != "postgresql":
        return None
    with _opening:
        if not _open or _open[0].engine is not engine:
            _open[:] = [Together(engine)]
        return _open[0]
