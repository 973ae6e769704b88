"""dramatiq's hooks around a message, as ours around a claimed run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from dramatiq import Broker, Middleware

if TYPE_CHECKING:
    from dramatiq.broker import MessageProxy

    from runs.broker import RunBroker
    from runs.message import RunMessage


class RunMiddleware(Middleware):
    """Every message of our worker is a RunMessage and every broker a RunBroker; this is the one place that says so."""

    def before_run(self, broker: RunBroker, message: RunMessage) -> None:
        """The run is claimed and about to start on this thread. To stop it, set its outcome and raise SkipMessage."""

    def after_run(self, broker: RunBroker, message: RunMessage, result: object, exception: BaseException | None) -> None:
        """The actor returned or raised, on the same thread."""

    def after_skip(self, broker: RunBroker, message: RunMessage) -> None:
        """A `before_run` stopped it."""

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """dramatiq's name for `before_run`."""
        self.before_run(cast("Any", broker), cast("Any", message))

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: object = None, exception: BaseException | None = None
    ) -> None:
        """dramatiq's name for `after_run`."""
        self.after_run(cast("Any", broker), cast("Any", message), result, exception)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """dramatiq's name for `after_skip`."""
        self.after_skip(cast("Any", broker), cast("Any", message))
