"""What an attempt came to, in the shape in which it is written. Not frozen: a worker makes two of these for every run, and a frozen
dataclass takes three times as long to make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.errors import PermanentError
from storage.states import State, WaitingFor


class RecordRefusedError(PermanentError):
    """The database refuses what one of the outcomes would write; trying the same again cannot help."""

    code = "record_refused"

    def __init__(self) -> None:
        super().__init__("The database refused an outcome.")


@dataclass(slots=True)
class Outcome:
    """The end of one attempt of one run.

    `fence` is the claim's; an outcome with an older one changes nothing. `run_again_in` (seconds) is set for RETRY and for a
    PENDING that waits. `spends_attempt` is False for a snooze and a hand-back. `duration_ms` is None when nobody measured it.
    """

    run_id: str
    fence: int
    state: State
    result: Any = None
    error_type: str | None = None
    error: str | None = None
    reason: str | None = None
    traceback: list[str] | None = None
    run_again_in: float | None = None
    waiting_for: WaitingFor | None = None
    spends_attempt: bool = True
    pardons: bool = False  # the run was a suspect and its process survived it: the attempt that was lost in company is given back
    is_suspect: bool = False  # it was lost in company: it runs alone next
    duration_ms: int | None = None

    @property
    def gives_back(self) -> int:
        """Attempts that count no longer."""
        return (not self.spends_attempt) + self.pardons


@dataclass(slots=True)
class Claim:
    """What a successful claim returns: all a worker needs to start, and the fence that its outcome must carry."""

    run_id: str
    tenant_id: str
    user_id: str | None
    task: str
    queue: str
    args: dict[str, Any]
    attempt: int
    max_attempts: int
    fence: int
    request_id: str | None
    soft_limit: float | None
    hard_limit: float | None
    priority: int = 1
    is_suspect: bool = False
    was_lost_in_company: bool = False
    group_id: str | None = None
    is_followed: bool = False  # when it was claimed; somebody may have come to wait for it since

    @property
    def attempt_that_counts(self) -> int:
        """The attempt, less the one that was lost in company: the process has survived it, if anybody asks."""
        return self.attempt - self.was_lost_in_company


LOST_IN_COMPANY = "lost_in_company"
OwnRun = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class NewRow:
    """What many runs that are accepted together do not have in common."""

    run_id: str
    args: dict[str, Any]
    request_id: str | None
    after_run_id: str | None = None  # where not all of them follow the same run


@dataclass(slots=True)
class HeldLane:
    """Held runs of one tenant, queue and priority: claim up to `wanted` of those whose id is greater than `after`."""

    queue: str
    tenant_id: str
    priority: int
    after: str
    wanted: int = 0
