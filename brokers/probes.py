"""Whether a broker answers, asked over a connection of its own that is closed again."""

from __future__ import annotations

import pika
import redis


def probe_rabbitmq(url: str, seconds: float) -> None:
    """Logs in. Raises whatever pika raises."""
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = parameters.stack_timeout = parameters.blocked_connection_timeout = seconds
    parameters.connection_attempts = 1
    pika.BlockingConnection(parameters).close()


def probe_redis(url: str, seconds: float) -> None:
    """Raises whatever redis-py raises."""
    client = redis.Redis.from_url(url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=None)
    try:
        client.ping()
    finally:
        client.close()
