"""The relay's steps about pauses and limits: what may not start is turned to wait, and what may is let on and published."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from sqlalchemy import Connection, Engine

from runs.held import urgency_of
from storage import admission, pauses
from storage.admission import LimitedLane
from storage.dispatch import Publishable
from storage.engine import relay_connection
from storage.walks import PAGE

RELEASE_SECONDS = 60.0
"""So often somebody looks whether a run waits for a pause that ended before it was recorded."""


class Admission:
    """Any number of them may work at once, and each of their steps is safe to lose half-way.

    `publish` sends the messages of runs; False when no broker took some of them, which then wait for one.
    """

    def __init__(self, engine: Engine, publish: Callable[[Sequence[Publishable]], bool], window: int) -> None:
        self._engine = engine
        self._publish = publish
        self._window = window
        self._after: LimitedLane | None = None  # where the walk over the lanes goes on, if they are too many for one turn
        self._pauses: set[tuple[str, str]] | None = None  # as they stood when everything that could be released was
        self._release_at = 0.0

    def admit(self) -> None:
        """Publishes limited runs as far as their limits have room."""
        with self._transaction() as connection:
            lanes = admission.limited_lanes(connection, self._after)
        self._after = lanes[-1] if len(lanes) == PAGE else None
        goes_on = bool(lanes)
        while goes_on:
            with self._transaction() as connection:
                admitted, goes_on = admission.admit(connection, lanes, self._window, urgency_of)
            if not self._publish(admitted):
                return

    def sweep(self) -> None:
        """Turns what was on its way when a pause or a limit was set, and what slipped past it since."""
        for sweep in (pauses.sweep, admission.sweep):
            goes_on = True
            while goes_on:
                with self._transaction() as connection:
                    goes_on = sweep(connection)

    def release(self) -> bool:
        """Gives back what waited for a pause that is over. Returns whether there was any; looks only if a pause may have ended."""
        with self._transaction() as connection:
            standing = pauses.standing(connection)
        if self._pauses is not None and self._pauses <= standing and time.monotonic() < self._release_at:
            return False
        released, goes_on = False, True
        while goes_on:
            with self._transaction() as connection:
                goes_on = pauses.release(connection) > 0
            released |= goes_on
        self._pauses, self._release_at = standing, time.monotonic() + RELEASE_SECONDS
        return released

    def suspects_wait(self) -> bool:
        """Whether there are runs that must run alone and are not paused."""
        with self._transaction() as connection:
            return pauses.suspects_wait(connection)

    def _transaction(self) -> AbstractContextManager[Connection]:
        return relay_connection(self._engine)
