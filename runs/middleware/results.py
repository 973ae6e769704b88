"""The result is part of the outcome. dramatiq only stops warning about returned values when its stock Results is present, and
it checks for exactly that class (worker.py: `type(m) is Results`), so it gets one whose backend does nothing."""

from __future__ import annotations

from types import MethodType
from typing import Any

from dramatiq import Middleware
from dramatiq.results import ResultBackend, Results


class _NoBackend(ResultBackend):
    def store_result(self, message: Any, result: Any, ttl: int) -> None: ...

    def store_exception(self, message: Any, exception: BaseException, ttl: int) -> None: ...


def results() -> Results:
    """dramatiq's Results, storing nothing and hearing of no message."""
    silent = Results(backend=_NoBackend(), store_results=True)  # type: ignore[no-untyped-call]
    for signal in ("after_process_message", "after_skip_message", "after_nack"):
        setattr(silent, signal, MethodType(getattr(Middleware, signal), silent))
    return silent
