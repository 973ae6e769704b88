"""What an attempt came to, in the shape in which it is written."""

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


@dataclass(frozen=True, slots=True)
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
    duration_ms: int | None = None


@dataclass(frozen=True, slots=True)
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
