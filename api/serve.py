"""The API's process."""

from __future__ import annotations

import socket
import threading
from types import FrameType

import dramatiq
import uvicorn

from core.logging import get_logger
from core.settings import Settings

log = get_logger(__name__)
GRACE_SECONDS = 10


class Server(uvicorn.Server):
    """Tells the application at the signal, so that streams and long polls end at once and not after the grace period."""

    def __init__(self, config: uvicorn.Config, stopping: threading.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT."""
        self._stopping.set()
        super().handle_exit(sig, frame)


def run(settings: Settings, listening: socket.socket | None = None) -> None:
    """Serves until SIGTERM or SIGINT, on a socket that is open already or its own.

    Then finishes what is under way and sends what is left to be published.
    """
    from actors.sources import fetch_source  # declares the tasks, too; opens no connection
    from api.app import create_app

    app = create_app(settings, fetch_source=fetch_source)
    config = uvicorn.Config(
        app,
        host=settings.api_host,
        port=settings.api_port,
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    log.info("api_starting", host=settings.api_host, port=settings.api_port)
    try:
        Server(config, app.state.stopping).run(sockets=[listening] if listening is not None else None)
    finally:
        dramatiq.get_broker().close()
