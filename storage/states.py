"""The states of a run and of an outbound mail, and the legal moves between them. Every UPDATE takes its sources from here."""

from __future__ import annotations

from enum import StrEnum

from core.errors import ConflictError


class State(StrEnum):
    """The state of a task run. The names are Celery's, which the callers know."""

    PENDING = "PENDING"  # recorded; `waiting_for` says what for
    STARTED = "STARTED"  # claimed by a live worker
    RETRY = "RETRY"  # failed, will run again at `eta`
    SUCCESS = "SUCCESS"  # final; "run again" makes a new run
    FAILURE = "FAILURE"  # final; a dead letter until purged
    REVOKED = "REVOKED"  # final


class WaitingFor(StrEnum):
    """What a PENDING (or RETRY) run waits for."""

    QUEUE = "queue"  # on a broker, or on its way there
    ETA = "eta"  # its time has not come
    LIMIT = "limit"  # a concurrency or rate limit
    PAUSE = "pause"  # its queue, task or tenant is paused
    BROKER = "broker"  # no broker took it; the relay tries again
    RUN = "run"  # the run or the group that it follows


class Ending(StrEnum):
    """How a STARTED run is to end whatever its actor does, once that returned or its process is gone."""

    REVOKE = "revoke"  # REVOKED; its actor may notice at a checkpoint
    TERMINATE = "terminate"  # REVOKED; its actor is interrupted, and its process ended if that does not help
    HARD_LIMIT = "hard_limit"  # as its task's policy says; its process is ended


class OutboundStatus(StrEnum):
    """The status of a row of `outbound_emails`."""

    PENDING = "pending"
    SENDING = "sending"  # the mark before the final dot: from here on a crash means `uncertain`
    SENT = "sent"
    FAILED = "failed"
    UNCERTAIN = "uncertain"  # the server may or may not have taken it; never resent blindly
    CANCELLED = "cancelled"


class HealthStatus(StrEnum):
    """How a component is."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"  # it works, and somebody should look
    UNHEALTHY = "unhealthy"  # it does not work


MOVES: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.STARTED, State.REVOKED, State.FAILURE}),
    State.STARTED: frozenset({State.SUCCESS, State.FAILURE, State.RETRY, State.PENDING, State.REVOKED}),
    State.RETRY: frozenset({State.STARTED, State.REVOKED, State.FAILURE}),
    State.SUCCESS: frozenset(),
    State.FAILURE: frozenset({State.PENDING}),
    State.REVOKED: frozenset({State.PENDING}),
}
"""From a state to those it may become. PENDING or RETRY to FAILURE: a run nobody can start (no such task, no such tenant)."""

WAITING = frozenset({State.PENDING, State.RETRY})
LIVE = WAITING | {State.STARTED}
FINAL = frozenset(State) - LIVE


def sources_of(target: State) -> list[State]:
    """The states from which `target` may be reached, in a fixed order, for the WHERE clause of the UPDATE that does it."""
    return [state for state in State if target in MOVES[state]]


def check_move(current: State, target: State) -> None:
    """Raises ConflictError when the move is not legal."""
    if target not in MOVES[current]:
        raise ConflictError(f"A run that is {current} cannot become {target}.")
