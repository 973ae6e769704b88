"""Claims that may have been committed although nobody answered: the database is asked about them until it can no longer be late."""

from __future__ import annotations

import time
from collections.abc import Iterable

DOUBT_SECONDS = 120.0
"""So long a commit that got no answer may still come to be."""
LOOK_SECONDS = 3.0


class Doubts:
    """Used by the recorder's thread."""

    def __init__(self) -> None:
        self.run_ids: set[str] = set()
        self._until = self._looked_at = 0.0

    def __bool__(self) -> bool:
        return bool(self._until or self.run_ids)

    def begin(self) -> None:
        """A turn got no answer: it may have claimed runs that nobody here knows of."""
        self._until = time.monotonic() + DOUBT_SECONDS

    def claimed(self, run_ids: Iterable[str]) -> None:
        """These may be ours."""
        self.run_ids.update(run_ids)

    def settled(self, run_ids: Iterable[str]) -> None:
        """The database has answered about these."""
        self.run_ids.difference_update(run_ids)

    def are_due(self) -> bool:
        """Whether it is time to ask again what is ours; it is taken as asked."""
        now = time.monotonic()
        if not self._until or now - self._looked_at <= LOOK_SECONDS:
            return False
        self._looked_at = now
        if now > self._until:
            self._until = 0.0
        return True
