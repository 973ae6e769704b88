"""The run that the current thread is executing, for what an actor may ask of it: its limits, its progress, whether to go on."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

from core.errors import PermanentError
from storage.outcomes import Claim

MASK = "•••"
"""Stands in the record, and in every list, in the place of a secret argument."""

_current: ContextVar[Claim | None] = ContextVar("current_run", default=None)
_secrets: ContextVar[tuple[str, ...]] = ContextVar("secrets", default=())
_revoked: set[tuple[str, int]] = set()  # (run id, fence) of runs of this process that somebody revoked


class RunRevoked(PermanentError):  # noqa: N818  (nothing went wrong)
    """Somebody revoked the run while it ran; raised at its next checkpoint, so that the actor can tidy up."""

    code = "revoked"

    def __init__(self) -> None:
        super().__init__("The run was revoked.")


def current_run() -> Claim | None:
    """The claimed run, or None outside a worker (an actor called as a plain function)."""
    return _current.get()


def set_current_run(claim: Claim | None) -> None:
    """Called by the middleware around each run."""
    _current.set(claim)
    _secrets.set(())


def hold_secrets(values: Iterable[str]) -> None:
    """This thread's run was given these; nothing that it says may repeat them."""
    _secrets.set(tuple(values))


def without_secrets(text: str) -> str:
    """The text with this run's secrets blotted out, for the words of an error."""
    for value in _secrets.get():
        text = text.replace(value, MASK)
    return text


def blot_out(error: BaseException) -> None:
    """The same for an error on its way out, and for those behind it: whoever logs it repeats nothing."""
    met: set[int] = set()
    behind: BaseException | None = error
    while behind is not None and id(behind) not in met:
        met.add(id(behind))
        behind.args = tuple(without_secrets(part) if isinstance(part, str) else part for part in behind.args)
        behind = behind.__cause__ or behind.__context__


def checkpoint() -> None:
    """Where a long actor can be stopped. Raises RunRevoked when somebody has revoked the run; costs next to nothing otherwise."""
    run = _current.get()
    if _revoked and run is not None and (run.run_id, run.fence) in _revoked:
        raise RunRevoked


def revoke_here(claim: Claim) -> None:
    """The run's next checkpoint ends it."""
    _revoked.add((claim.run_id, claim.fence))


def forget_revoked(claim: Claim) -> None:
    """The run has ended."""
    _revoked.discard((claim.run_id, claim.fence))
