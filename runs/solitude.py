"""A process that keeps to one run at a time: a suspect, which may take it down, and nobody else with it."""

from __future__ import annotations

import time
from collections.abc import Callable

from core.logging import get_logger
from storage.outcomes import Claim

log = get_logger(__name__)
PATIENCE_SECONDS = 30.0
"""How long a process waits for its other runs to end."""


class Solitude:
    """Used by the recorder's thread. `claim` takes the next suspect, if there is one."""

    def __init__(self, claim: Callable[[], Claim | None]) -> None:
        self._claim = claim
        self._until: float | None = None
        self._has_looked = False

    @property
    def is_kept(self) -> bool:
        """Whether the process claims nothing else."""
        return self._until is not None

    def begin(self) -> None:
        """From now on nothing but suspects starts, once the others have ended."""
        self._until = time.monotonic() + PATIENCE_SECONDS
        self._has_looked = False

    def next(self, *, held: int) -> Claim | None:
        """The next suspect, when nothing else is held."""
        if held:
            return None
        self._has_looked = True
        claim = self._claim()
        if claim is not None:
            log.info("suspect_runs_alone", task_id=claim.run_id, task_name=claim.task)
            self._until = time.monotonic() + PATIENCE_SECONDS
        return claim

    def is_over(self, *, held: int) -> bool:
        """Whether there is no suspect left, or the others take too long to end."""
        if not held:
            return self._has_looked
        return held > 1 and self._until is not None and time.monotonic() >= self._until

    def end(self) -> None:
        """The process takes runs as they come again."""
        self._until = None
