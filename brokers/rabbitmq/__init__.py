"""RabbitMQ: one connection and one I/O thread for consuming all queues, another pair for publishing."""

from brokers.rabbitmq.consumer import RabbitConsumer
from brokers.rabbitmq.publisher import RabbitPublisher

__all__ = ["RabbitConsumer", "RabbitPublisher"]
