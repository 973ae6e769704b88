"""The result is part of the outcome. dramatiq only stops warning about returned values when its stock Results is present, and
it checks for exactly that class (worker.py: `type(m) is Results`), so it gets one whose backend does nothing."""

from __future__ import annotations

from typing import Any

from dramatiq.results import ResultBackend, Results


class _NoBackend(ResultBackend):
    def store_result(self, message: Any, result: Any, ttl: int) -> None: ...

    def store_exception(self, message: Any, exception: BaseException, ttl: int) -> None: ...


def results() -> Results:
    """dramatiq's Results, storing nothing."""
    return Results(backend=_NoBackend(), store_results=True)  # type: ignore[no-untyped-call]
