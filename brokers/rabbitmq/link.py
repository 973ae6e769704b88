"""A connection to RabbitMQ that is kept open for ever, and the queues' declaration.

pika is not thread-safe: everything that touches it runs on the link's own thread, handed over by `call_soon`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pika
import pika.exceptions

from brokers.queues import DEAD_LETTER_TTL_MS, MAX_PRIORITY, dead_letter_queue
from brokers.rabbitmq.frames import Arrival, Confirm, FastConnection
from core.logging import get_logger

log = get_logger(__name__)
RECONNECT_SECONDS = 0.5
HEARTBEAT_SECONDS = 10
STOP_SECONDS = 3


def declare(channel: Any, queue: str, queue_type: str = "classic", callback: Callable[[Any], None] | None = None) -> None:
    """Declares a queue and its dead letters. dramatiq's arguments, so that both can share a queue; no `.DQ`: delays are rows.

    Quorum queues refuse `x-max-priority` before RabbitMQ 4 (research: 406 on 3.10), so they go without it.
    """
    channel.queue_declare(
        dead_letter_queue(queue), durable=True, arguments={"x-message-ttl": DEAD_LETTER_TTL_MS}, callback=lambda _frame: None
    )
    arguments: dict[str, Any] = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead_letter_queue(queue)}
    arguments |= {"x-queue-type": "quorum"} if queue_type == "quorum" else {"x-max-priority": int(MAX_PRIORITY)}
    channel.queue_declare(queue, durable=True, arguments=arguments, callback=callback or (lambda _frame: None))


class RabbitLink(threading.Thread):
    """Keeps one connection open. Subclasses open their channels in `on_open` and forget them in `on_lost`."""

    def __init__(self, name: str, url: str, queue_type: str = "classic") -> None:
        super().__init__(name=name, daemon=True)
        self.queue_type = queue_type
        self.connection: Any = None
        self.ready = threading.Event()
        self._stopping = threading.Event()
        self._parameters = pika.URLParameters(url)
        self._parameters.heartbeat = HEARTBEAT_SECONDS
        self._parameters.socket_timeout = 2
        self._parameters.stack_timeout = 4
        self._parameters.blocked_connection_timeout = 5
        self._parameters.client_properties = {"connection_name": f"mailroom {name}"}

    def run(self) -> None:
        """Connects, serves the connection until it is lost, and again, until stopped."""
        while not self._stopping.is_set():
            try:
                self._serve_one_connection()
            except Exception as error:  # the thread must outlive whatever a broken connection raises
                log.warning("rabbitmq_connection_failed", link=self.name, error=type(error).__name__)
            self.ready.clear()
            self.on_lost()
            self._stopping.wait(RECONNECT_SECONDS)

    def call_soon(self, function: Callable[[], None]) -> bool:
        """Runs the function on the link's thread. False when there is no connection; whatever it carried is void then."""
        connection = self.connection
        if connection is None or (self._stopping.is_set() and connection.is_closed):
            return False
        try:
            connection.ioloop.add_callback_threadsafe(self._guarded(function))
        except Exception:  # the loop closed between the check and the call
            return False
        return True

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """On the link's thread, from the link's thread."""
        self.connection.ioloop.call_later(seconds, self._guarded(function))

    def stop(self) -> None:
        """Closes the connection in good order and ends the thread; a server that does not answer is not waited for."""
        self._stopping.set()
        if self.is_alive():
            self.call_soon(self._close)
            self.join(STOP_SECONDS)
        if self.is_alive():
            self.call_soon(lambda: self.connection.abort("stopped"))
            self.join(1)

    def on_open(self) -> None:
        """The connection is open (on the link's thread)."""

    def on_lost(self) -> None:
        """The connection is gone (on the link's thread); also called when it never opened."""

    def on_blocked(self) -> None:
        """The server has an alarm (memory, disk) and reads nothing more from this connection."""

    def on_unblocked(self) -> None:
        """The alarm is over."""

    def on_arrivals(self, arrivals: list[Arrival]) -> None:
        """Deliveries of the channels registered in `connection.consumers`."""

    def on_confirms(self, confirms: list[Confirm]) -> None:
        """Confirms of the channels registered in `connection.confirming`."""

    def _guarded(self, function: Callable[[], None]) -> Callable[[], None]:
        """What escapes from a callback would end the loop and leave the socket open: the server would hold our messages for ever."""

        def call() -> None:
            try:
                function()
            except Exception as error:
                log.warning("rabbitmq_link_failed", link=self.name, error=f"{type(error).__name__}: {error}")
                self.connection.abort("a callback failed")

        return call

    def _serve_one_connection(self) -> None:
        def opened(connection: Any) -> None:
            log.debug("rabbitmq_connected", link=self.name)
            connection.add_on_connection_blocked_callback(lambda _connection, _frame: self.on_blocked())
            connection.add_on_connection_unblocked_callback(lambda _connection, _frame: self.on_unblocked())
            self.on_open()
            if self._stopping.is_set():
                connection.close()

        def failed(connection: Any, error: object) -> None:
            log.debug("rabbitmq_unreachable", link=self.name, error=type(error).__name__)
            connection.ioloop.stop()

        def closed(connection: Any, reason: object) -> None:
            if not self._stopping.is_set():
                log.warning("rabbitmq_connection_lost", link=self.name, reason=str(reason))
            connection.ioloop.stop()

        self.connection = FastConnection(
            self._parameters,
            on_open_callback=opened,
            on_open_error_callback=failed,
            on_close_callback=closed,
            on_arrivals=self.on_arrivals,
            on_confirms=self.on_confirms,
        )
        try:
            self.connection.ioloop.start()
        finally:
            with contextlib.suppress(Exception):
                self.connection.ioloop.close()

    def _close(self) -> None:
        connection = self.connection
        if connection.is_open:
            connection.close()
        elif not connection.is_closing:
            connection.ioloop.stop()
