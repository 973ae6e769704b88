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
from core.logging import get_logger

log = get_logger(__name__)
RECONNECT_SECONDS = 0.5
HEARTBEAT_SECONDS = 10


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
        if connection is None or (self._stopping.is_set() and not connection.is_open):
            return False
        try:
            connection.ioloop.add_callback_threadsafe(function)
        except Exception:  # the loop closed between the check and the call
            return False
        return True

    def stop(self) -> None:
        """Closes the connection in good order and ends the thread."""
        self._stopping.set()
        if self.is_alive():
            self.call_soon(self._close)
            self.join(3)

    def on_open(self) -> None:
        """The connection is open (on the link's thread)."""

    def on_lost(self) -> None:
        """The connection is gone (on the link's thread); also called when it never opened."""

    def _serve_one_connection(self) -> None:
        def opened(connection: Any) -> None:
            log.debug("rabbitmq_connected", link=self.name)
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

        self.connection = pika.SelectConnection(
            self._parameters, on_open_callback=opened, on_open_error_callback=failed, on_close_callback=closed
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
