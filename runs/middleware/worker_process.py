"""Joins dramatiq's Worker to the recorder and the brokers when it boots, and takes them apart in order when it stops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dramatiq import Broker, Middleware, Worker
from dramatiq.middleware import MiddlewareError

from core.logging import configure_logging
from core.settings import get_settings

if TYPE_CHECKING:
    from runs.broker import RunBroker


class BootError(MiddlewareError):
    """A worker process that cannot work ends, so that its supervisor tries again."""


class WorkerProcess(Middleware):
    """The life of a worker process; runs/worker.py has the parts."""

    def after_process_boot(self, broker: Broker) -> None:
        """dramatiq's own command has set up logging its way; ours is structured."""
        settings = get_settings()
        configure_logging(settings.log_level, settings.log_format)

    def before_worker_boot(self, broker: RunBroker, worker: Worker) -> None:  # type: ignore[override]
        """Before the Worker makes its threads. Raises BootError: dramatiq would log anything else and go on without a recorder."""
        try:
            broker.boot(worker)
        except Exception as error:
            raise BootError(f"The worker could not start ({type(error).__name__}); is the database there?") from error

    def before_worker_shutdown(self, broker: RunBroker, worker: Worker) -> None:  # type: ignore[override]
        """Nothing new starts; threads go on with what they have."""
        broker.quiet()

    def after_worker_shutdown(self, broker: RunBroker, worker: Worker) -> None:  # type: ignore[override]
        """The threads have ended, or their time is up."""
        broker.shut_down()
