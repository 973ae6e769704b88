"""dramatiq's signals, told only to the middleware that does something about them.

dramatiq asks every middleware about every signal, four signals for a run and most of them of no concern to most: a sixth of what a
short run costs. Here the answer is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import dramatiq
from dramatiq import Middleware
from dramatiq.middleware import MiddlewareError

Hearing = tuple[Callable[..., None], ...]
FAILURE = "Unexpected failure in %s of %r."


class EmittingBroker(dramatiq.Broker):
    """As dramatiq's own, in the same order and with the same care for what a middleware raises."""

    def __init__(self, middleware: list[Middleware]) -> None:
        self._hearing: dict[str, Hearing] = {}  # who is told, in the order of telling
        super().__init__(middleware=middleware)

    def add_middleware(
        self, middleware: Middleware, *, before: type[Middleware] | None = None, after: type[Middleware] | None = None
    ) -> None:
        """One more, which may hear any signal."""
        super().add_middleware(middleware, before=before, after=after)
        self._hearing.clear()

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """From the outermost to the innermost. Raises MiddlewareError, SkipMessage included; anything else is logged."""
        name = "before_" + signal
        for hear in self._hearing[name] if name in self._hearing else self.who_hears(name):
            try:
                hear(self, *args, **kwargs)
            except MiddlewareError:
                raise
            except Exception:  # one middleware's fault is neither the run's nor the others'
                self.logger.critical(FAILURE, name, getattr(hear, "__self__", hear), exc_info=True)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """From the innermost to the outermost. What one raises is logged, and the others hear the signal nevertheless."""
        name = "after_" + signal
        for hear in self._hearing[name] if name in self._hearing else self.who_hears(name, reversed(self.middleware)):
            try:
                hear(self, *args, **kwargs)
            except Exception:  # one middleware's fault is neither the run's nor the others'
                self.logger.critical(FAILURE, name, getattr(hear, "__self__", hear), exc_info=True)

    def who_hears(self, name: str, middleware: Iterable[Middleware] | None = None) -> Hearing:
        """Those whose method is not dramatiq's empty one; remembered."""
        does_nothing = getattr(Middleware, name, None)
        methods = [getattr(each, name) for each in middleware or self.middleware]
        return self._hearing.setdefault(name, tuple(hear for hear in methods if getattr(hear, "__func__", None) is not does_nothing))
