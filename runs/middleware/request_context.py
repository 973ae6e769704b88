"""Binds the run to the log: ids, queue, attempt and worker stand in every line written while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.logging import begin_run, end_run
from runs.current import set_current_run
from runs.middleware.base import RunMiddleware

if TYPE_CHECKING:
    from runs.broker import RunBroker
    from runs.message import RunMessage


class RequestContext(RunMiddleware):
    """Also makes the run known to `current_run`."""

    def before_run(self, broker: RunBroker, message: RunMessage) -> None:
        """Binds the claimed run."""
        run = message.claim
        if run is None:
            return
        set_current_run(run)
        facts = {
            "task_id": run.run_id,
            "task_name": run.task,
            "tenant_id": run.tenant_id,
            "queue": run.queue,
            "attempt": run.attempt,
            "worker": broker.recorder.worker_id,
        }
        begin_run(run.request_id, facts)

    def after_run(self, broker: RunBroker, message: RunMessage, result: object, exception: BaseException | None) -> None:
        """Clears what was bound."""
        set_current_run(None)
        end_run()

    def after_skip(self, broker: RunBroker, message: RunMessage) -> None:
        """Clears what was bound."""
        self.after_run(broker, message, None, None)
