# ruff: noqa: ARG001  (the arguments travel; nothing is done with them)
"""taskiq with native async tasks over RabbitMQ (aio-pika, classic queues). BENCH_RESULTS: results in Redis."""

import asyncio
import os
from collections.abc import Sequence

from taskiq_aio_pika import AioPikaBroker
from taskiq_aio_pika.exchange import Exchange
from taskiq_aio_pika.queue import Queue, QueueType

from bench.marks import mark

AT_ONCE = 100
QUEUE = "bench-taskiq"
broker = AioPikaBroker(
    os.environ["BENCH_RABBITMQ"],
    qos=100,
    exchange=Exchange(name=QUEUE),
    task_queues=[Queue(name=QUEUE, type=QueueType.CLASSIC)],
    dead_letter_queue=Queue(name=f"{QUEUE}.dead", type=QueueType.CLASSIC),
)
if "BENCH_RESULTS" in os.environ:
    from taskiq_redis import RedisAsyncResultBackend

    broker = broker.with_result_backend(RedisAsyncResultBackend(os.environ["BENCH_REDIS"]))


@broker.task(task_name="noop", queue_name=QUEUE)
async def noop(tenant: str, text: str, asked: str) -> None:
    mark(asked)


@broker.task(task_name="nap", queue_name=QUEUE)
async def nap(tenant: str, text: str, asked: str) -> None:
    mark(asked)
    await asyncio.sleep(float(text))


TASKS = {"noop": noop, "nap": nap}
_runners: list[asyncio.Runner] = []


def runner() -> asyncio.Runner:
    """The producer's event loop; a worker makes its own."""
    if not _runners:
        _runners.append(asyncio.Runner())
        _runners[0].run(broker.startup())
    return _runners[0]


async def gather(task: str, calls: Sequence[tuple[str, str, str]]) -> None:
    await asyncio.gather(*(TASKS[task].kiq(tenant=tenant, text=text, asked=asked) for tenant, text, asked in calls))


def send(task: str, tenant: str, text: str, asked: str) -> None:
    runner().run(gather(task, [(tenant, text, asked)]))


def send_many(task: str, calls: Sequence[tuple[str, str, str]]) -> None:
    for place in range(0, len(calls), AT_ONCE):
        runner().run(gather(task, calls[place : place + AT_ONCE]))


def close() -> None:
    runner().run(broker.shutdown())
