"""Turns what an actor returned or raised into the outcome that the recorder writes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from core.errors import TenantError
from core.logging import get_logger
from runs.middleware.base import RunMiddleware
from runs.retry import failed, succeeded
from storage.states import State

if TYPE_CHECKING:
    from runs.broker import RunBroker
    from runs.message import RunMessage

log = get_logger(__name__)
EVENTS = {State.SUCCESS: "run_succeeded", State.RETRY: "run_will_retry", State.PENDING: "run_snoozed", State.FAILURE: "run_failed"}


class Outcomes(RunMiddleware):
    """The policy itself is runs/retry.py."""

    def before_run(self, broker: RunBroker, message: RunMessage) -> None:
        """Starts the clock."""
        message.started_at = time.monotonic()
        log.info("run_started")

    def after_run(self, broker: RunBroker, message: RunMessage, result: object, exception: BaseException | None) -> None:
        """Decides, and tells dramatiq to reject what is a dead letter."""
        run = message.claim
        if run is None:
            return
        duration = message.duration_ms() or 0
        if exception is None:
            message.outcome = succeeded(run, result, duration)
        else:
            message.outcome = failed(run, exception, broker.task(run.task).base_backoff, duration)
        self._tell(message)

    def after_skip(self, broker: RunBroker, message: RunMessage) -> None:
        """A skip without an outcome of its own is a refusal too."""
        if message.claim is not None and message.outcome is None:
            message.outcome = failed(message.claim, TenantError("The run was refused before it started."), 0.0)
        self._tell(message)

    @staticmethod
    def _tell(message: RunMessage) -> None:
        outcome = message.outcome
        if outcome is None:
            return
        if outcome.state is State.FAILURE:
            message.fail()
        level = "info" if outcome.state in {State.SUCCESS, State.PENDING} else "warning" if outcome.state is State.RETRY else "error"
        facts = {
            "error": outcome.error_type,
            "error_text": outcome.error,
            "reason": outcome.reason,
            "run_again_in": outcome.run_again_in,
            "where": outcome.traceback,
        }
        getattr(log, level)(
            EVENTS[outcome.state], duration_ms=outcome.duration_ms, **{name: value for name, value in facts.items() if value is not None}
        )
