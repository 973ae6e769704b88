"""The run that the current thread is executing, for what an actor may ask of it: its limits, its progress."""

from __future__ import annotations

from contextvars import ContextVar

from storage.outcomes import Claim

_current: ContextVar[Claim | None] = ContextVar("current_run", default=None)


def current_run() -> Claim | None:
    """The claimed run, or None outside a worker (an actor called as a plain function)."""
    return _current.get()


def set_current_run(claim: Claim | None) -> None:
    """Called by the middleware around each run."""
    _current.set(claim)
