"""What an attempt's end means for the run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.errors import ConflictError, InvalidInputError, PermanentError, Snooze, TransientError
from runs.limits import SoftTimeLimitExceeded
from runs.retry import backoff, failed, handed_back, succeeded
from storage.outcomes import Claim
from storage.states import FINAL, LIVE, MOVES, State, check_move, sources_of

CLAIM = Claim("r", "t", None, "add", "default", {}, 1, 4, 7, None, None, None)


def test_the_delay_doubles_within_a_tenth_and_has_a_cap() -> None:
    for attempt, expected in enumerate([5, 10, 20, 40, 80], 1):
        delays = [backoff(attempt, 5) for _ in range(200)]
        assert min(delays) >= expected * 0.9
        assert max(delays) <= expected * 1.1
        assert max(delays) - min(delays) > expected * 0.05  # not all at once
    assert all(540 <= backoff(20, 60) <= 600 for _ in range(200))


def test_a_result_is_kept_as_json() -> None:
    outcome = succeeded(CLAIM, {"a": (1, 2)}, 12)
    assert (outcome.state, outcome.result, outcome.fence, outcome.duration_ms) == (State.SUCCESS, {"a": [1, 2]}, 7, 12)


@pytest.mark.parametrize("result", [object(), {1, 2}, "x" * 300_000])
def test_a_result_that_cannot_be_kept_is_a_failure_at_once(result: Any) -> None:
    outcome = succeeded(CLAIM, result, 12)
    assert (outcome.state, outcome.reason, outcome.error_type) == (State.FAILURE, "result", "ResultError")


@pytest.mark.parametrize("error", [RuntimeError("boom"), TransientError("later"), SoftTimeLimitExceeded(), KeyboardInterrupt()])
def test_an_error_that_may_pass_is_retried_while_attempts_are_left(error: BaseException) -> None:
    outcome = failed(CLAIM, error, 10.0, 5)
    assert (outcome.state, outcome.spends_attempt) == (State.RETRY, True)
    assert outcome.run_again_in is not None
    assert 9 <= outcome.run_again_in <= 11
    last = failed(replace(CLAIM, attempt=4), error, 10.0)
    assert (last.state, last.reason, last.run_again_in) == (State.FAILURE, "attempts_exhausted", None)


def test_the_other_sides_hint_is_kept_to() -> None:
    assert failed(CLAIM, TransientError("x", retry_after=77), 10.0).run_again_in == 77
    assert failed(CLAIM, TransientError("x", retry_after=-1), 10.0).run_again_in == 0


@pytest.mark.parametrize(("error", "reason"), [(PermanentError("x"), "permanent"), (InvalidInputError("x"), "invalid_input")])
def test_a_permanent_error_is_final_with_its_code(error: PermanentError, reason: str) -> None:
    outcome = failed(CLAIM, error, 10.0)
    assert (outcome.state, outcome.reason, outcome.traceback) == (State.FAILURE, reason, None)


def test_a_snooze_waits_without_spending_an_attempt_even_the_last() -> None:
    outcome = failed(replace(CLAIM, attempt=4), Snooze(30, "busy"), 10.0)
    assert (outcome.state, outcome.run_again_in, outcome.spends_attempt, outcome.error) == (State.PENDING, 30, False, "busy")


def test_an_unexpected_error_tells_where_and_no_address() -> None:
    try:
        raise ValueError("ann@acme.test is wrong")
    except ValueError as error:
        outcome = failed(CLAIM, error, 10.0)
    assert outcome.error == "<address> is wrong"
    assert outcome.traceback
    assert "test_retry.py" in outcome.traceback[-1]
    assert failed(CLAIM, ValueError(), 10.0).error == "ValueError"


def test_what_is_handed_back_did_not_happen() -> None:
    outcome = handed_back(CLAIM)
    assert (outcome.state, outcome.run_again_in, outcome.waiting_for, outcome.spends_attempt) == (State.PENDING, 0, "broker", False)


def test_every_state_has_its_moves_and_final_ones_lead_back_to_pending_only() -> None:
    assert set(MOVES) == set(State)
    assert {State.SUCCESS, State.FAILURE, State.REVOKED} == FINAL
    assert set(State) == LIVE | FINAL
    assert {target for state in FINAL for target in MOVES[state]} == {State.PENDING}
    assert sources_of(State.STARTED) == [State.PENDING, State.RETRY]


@pytest.mark.parametrize("current", State)
@pytest.mark.parametrize("target", State)
def test_an_illegal_move_raises(current: State, target: State) -> None:
    if target in MOVES[current]:
        check_move(current, target)
    else:
        with pytest.raises(ConflictError, match=f"{current} cannot become {target}"):
            check_move(current, target)
