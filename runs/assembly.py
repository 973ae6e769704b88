"""Puts a RunBroker together from the settings. The only place that knows which brokers there are."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from brokers.consumer import BrokerConsumer, OnDelivery
from brokers.failover import Failover
from brokers.message import MessageEncoder
from brokers.rabbitmq import RabbitConsumer, RabbitPublisher
from brokers.redis import RedisConsumer, RedisPublisher
from core.settings import Settings
from runs.broker import Parts, RunBroker
from runs.life import Lifespan
from storage.engine import get_engine

PREFETCH = 64
"""Messages per queue and process. Generous, for a busy process gives back what it cannot start (runs/recorder.py)."""


def make_broker(settings: Settings) -> RunBroker:
    """A broker over whatever is configured: RabbitMQ with Redis behind it, or either alone."""

    @cache
    def get_encoder() -> MessageEncoder:
        return MessageEncoder(settings.signing_keys)

    def open_sink() -> Failover:
        rabbitmq = RabbitPublisher(settings.rabbitmq, queue_type=settings.rabbitmq_queue_type) if settings.rabbitmq else None
        return Failover(rabbitmq, RedisPublisher(settings.redis) if settings.redis else None)

    def make_consumers(on_delivery: OnDelivery, room: Callable[[], int]) -> list[BrokerConsumer]:
        consumers: list[BrokerConsumer] = []
        if settings.rabbitmq:
            consumers.append(RabbitConsumer(settings.rabbitmq, on_delivery, prefetch=PREFETCH, queue_type=settings.rabbitmq_queue_type))
        if settings.redis:
            consumers.append(RedisConsumer(settings.redis, on_delivery, room))
        return consumers

    lifespan = Lifespan(settings.worker_max_tasks_per_child or None, settings.worker_max_memory_mb * 1024 * 1024 or None)
    return RunBroker(Parts(get_engine, get_encoder, open_sink, make_consumers, settings.claim_ahead, settings.tenant_window, lifespan))
