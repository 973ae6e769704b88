"""What an attempt's end means for the run: the policy that turns a result or an exception into an outcome. Pure."""

from __future__ import annotations

import random
from typing import Any

import orjson

from core.errors import MailroomError, PermanentError, Snooze, TransientError
from core.logging import safe_text, where_it_was_raised
from storage.outcomes import Claim, Outcome
from storage.states import State, WaitingFor

MAX_BACKOFF = 600.0
JITTER = 0.1
MAX_RESULT_BYTES = 256 * 1024


class ResultError(PermanentError):
    """The actor returned something that cannot be kept."""

    code = "result"


def succeeded(claim: Claim, result: Any, duration_ms: int) -> Outcome:
    """SUCCESS with the result, or FAILURE when it is no JSON."""
    try:
        packed = orjson.dumps(result)
    except TypeError:
        return failed(claim, ResultError(f"{claim.task} returned something that is not JSON."), 0.0, duration_ms)
    if len(packed) > MAX_RESULT_BYTES:
        return failed(
            claim,
            ResultError(f"{claim.task} returned more than {MAX_RESULT_BYTES // 1024} KiB; store it and return its id."),
            0.0,
            duration_ms,
        )
    if b"\\u0000" in packed:
        return failed(claim, ResultError(f"{claim.task} returned text with a NUL character, which cannot be stored."), 0.0, duration_ms)
    return Outcome(claim.run_id, claim.fence, State.SUCCESS, result=orjson.loads(packed), duration_ms=duration_ms)


def failed(claim: Claim, error: BaseException, base_backoff: float, duration_ms: int | None = None) -> Outcome:
    """RETRY with backoff, FAILURE when it is final or was the last attempt, PENDING for a snooze."""
    facts: dict[str, Any] = {"error_type": _name(error), "error": _text(error), "duration_ms": duration_ms}
    if isinstance(error, Snooze):
        return Outcome(
            claim.run_id, claim.fence, State.PENDING, run_again_in=error.delay, waiting_for=WaitingFor.ETA, spends_attempt=False, **facts
        )
    if not isinstance(error, MailroomError):
        facts["traceback"] = where_it_was_raised(error)
    if isinstance(error, PermanentError):
        return Outcome(claim.run_id, claim.fence, State.FAILURE, reason=error.code, **facts)
    if claim.attempt >= claim.max_attempts:
        return Outcome(claim.run_id, claim.fence, State.FAILURE, reason="attempts_exhausted", **facts)
    hint = error.retry_after if isinstance(error, TransientError) else None
    delay = backoff(claim.attempt, base_backoff) if hint is None else max(0.0, hint)
    return Outcome(claim.run_id, claim.fence, State.RETRY, run_again_in=delay, waiting_for=WaitingFor.ETA, **facts)


def handed_back(claim: Claim, delay: float = 0.0) -> Outcome:
    """Claimed and not run to its end, because the process stops or does not have the task: the attempt did not happen."""
    waiting_for = WaitingFor.ETA if delay else WaitingFor.BROKER
    return Outcome(claim.run_id, claim.fence, State.PENDING, run_again_in=delay, waiting_for=waiting_for, spends_attempt=False)


def backoff(attempt: int, base: float) -> float:
    """Seconds until the next attempt after `attempt` of them: base x 2^n, capped, give or take a tenth."""
    delay = min(MAX_BACKOFF, base * 2.0 ** (attempt - 1))
    return min(MAX_BACKOFF, delay * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311  (no secret)


def _name(error: BaseException) -> str:
    return type(error).__name__


def _text(error: BaseException) -> str:
    """The error's own words if it is ours, written for people; any other's with addresses removed."""
    return safe_text(str(error) or _name(error))
