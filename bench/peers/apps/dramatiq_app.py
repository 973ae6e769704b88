# ruff: noqa: ARG001  (the arguments travel; nothing is done with them)
"""Stock dramatiq over RabbitMQ. BENCH_RESULTS: results in Redis; BENCH_CONFIRM: publisher confirms; BENCH_QUEUES: how many queues."""

import os
import time

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from bench.marks import mark

broker = RabbitmqBroker(url=os.environ["BENCH_RABBITMQ"], confirm_delivery="BENCH_CONFIRM" in os.environ)
if "BENCH_RESULTS" in os.environ:
    from dramatiq.results import Results
    from dramatiq.results.backends import RedisBackend

    broker.add_middleware(Results(backend=RedisBackend(url=os.environ["BENCH_REDIS"]), store_results=True))
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="bench-dramatiq")
def noop(tenant: str, text: str, asked: str) -> None:
    mark(asked)


@dramatiq.actor(queue_name="bench-dramatiq")
def nap(tenant: str, text: str, asked: str) -> None:
    mark(asked)
    time.sleep(float(text))


for number in range(1, int(os.environ.get("BENCH_QUEUES", "1"))):

    @dramatiq.actor(queue_name=f"bench-dramatiq-{number}", actor_name=f"idle-{number}")
    def idle() -> None: ...


TASKS = {"noop": noop, "nap": nap}


def send(task: str, tenant: str, text: str, asked: str) -> None:
    TASKS[task].send(tenant=tenant, text=text, asked=asked)


def close() -> None:
    broker.close()  # without it the tail stays in the client's buffer
