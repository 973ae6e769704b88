"""What an attempt's end means for the run: the policy that turns a result or an exception into an outcome. Pure."""

from __future__ import annotations

import random
from typing import Any

import orjson

from core.errors import MailroomError, PermanentError, Snooze, TransientError
from core.logging import safe_text, where_it_was_raised
from runs.current import RunRevoked, without_secrets
from storage.lives import LostRun
from storage.outcomes import LOST_IN_COMPANY, Claim, Outcome
from storage.states import Ending, State, WaitingFor

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
    return _ended(claim, State.SUCCESS, result=orjson.loads(packed), duration_ms=duration_ms)


def failed(claim: Claim, error: BaseException, base_backoff: float, duration_ms: int | None = None) -> Outcome:
    """RETRY with backoff, FAILURE when it is final or was the last attempt, PENDING for a snooze, REVOKED when it gave way."""
    facts: dict[str, Any] = {"error_type": _name(error), "error": _text(error), "duration_ms": duration_ms}
    if isinstance(error, RunRevoked):
        return _ended(claim, State.REVOKED, reason="revoked", duration_ms=duration_ms)
    if isinstance(error, Snooze):
        return _ended(claim, State.PENDING, run_again_in=error.delay, waiting_for=WaitingFor.ETA, spends_attempt=False, **facts)
    if not isinstance(error, MailroomError):
        facts["traceback"] = where_it_was_raised(error)
    if isinstance(error, PermanentError):
        return _ended(claim, State.FAILURE, reason=error.code, **facts)
    if claim.attempt_that_counts >= claim.max_attempts:
        return _ended(claim, State.FAILURE, reason="attempts_exhausted", **facts)
    hint = error.retry_after if isinstance(error, TransientError) else None
    delay = backoff(claim.attempt_that_counts, base_backoff) if hint is None else max(0.0, hint)
    return _ended(claim, State.RETRY, run_again_in=delay, waiting_for=WaitingFor.ETA, **facts)


def handed_back(claim: Claim, delay: float = 0.0) -> Outcome:
    """Claimed and not run to its end, because the process stops or does not have the task: the attempt did not happen."""
    return Outcome(
        claim.run_id,
        claim.fence,
        State.PENDING,
        run_again_in=delay,
        waiting_for=WaitingFor.ETA if delay else WaitingFor.BROKER,
        spends_attempt=False,
        is_suspect=claim.is_suspect,
        reason=LOST_IN_COMPANY if claim.was_lost_in_company else None,
    )


def lost(run: LostRun, base_backoff: float) -> Outcome:
    """What becomes of a run whose worker is gone.

    Past its hard limit: as its task's policy says. Beside a run that would not end: the attempt did not happen. In company: nobody
    knows who killed the process, so each runs again, alone. Alone: it did, and has spent an attempt.
    """
    message = run.message
    again: dict[str, Any] = {"run_again_in": 0.0, "waiting_for": WaitingFor.BROKER}
    if run.ending is not None or run.company == 1:
        is_overrun = run.ending is Ending.HARD_LIMIT
        facts: dict[str, Any] = {"error_type": "WorkerLost", "error": "The worker process was lost while it ran this."}
        if is_overrun:
            facts = {"error_type": "HardTimeLimitExceeded", "error": "The run took longer than its hard time limit; its process was ended."}
        if message.attempt >= run.max_attempts:
            return Outcome(message.run_id, run.fence, State.FAILURE, reason="hard_time_limit" if is_overrun else "crashed", **facts)
        if is_overrun:
            again = {"run_again_in": backoff(message.attempt, base_backoff), "waiting_for": WaitingFor.ETA}
        facts |= {"reason": "hard_time_limit" if is_overrun else "crashed", "is_suspect": not is_overrun}
        return Outcome(message.run_id, run.fence, State.RETRY, **again, **facts)
    facts = {"error_type": "WorkerLost", "error": "The worker process was lost while it ran this and other runs."}
    if run.is_explained:
        return Outcome(message.run_id, run.fence, State.PENDING, spends_attempt=False, **again, **facts)
    return Outcome(message.run_id, run.fence, State.RETRY, reason=LOST_IN_COMPANY, is_suspect=True, **again, **facts)


def _ended(claim: Claim, state: State, **facts: Any) -> Outcome:
    """The process has survived the run."""
    return Outcome(claim.run_id, claim.fence, state, pardons=claim.was_lost_in_company, **facts)


def backoff(attempt: int, base: float) -> float:
    """Seconds until the next attempt after `attempt` of them: base x 2^n, capped, give or take a tenth."""
    delay = min(MAX_BACKOFF, base * 2.0 ** (attempt - 1))
    return min(MAX_BACKOFF, delay * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311  (no secret)


def _name(error: BaseException) -> str:
    return type(error).__name__


def _text(error: BaseException) -> str:
    """The error's own words if it is ours, written for people; any other's with addresses and the run's secrets removed."""
    return safe_text(without_secrets(str(error)) or _name(error))
