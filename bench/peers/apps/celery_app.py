# ruff: noqa: ARG001  (the arguments travel; nothing is done with them)
"""Celery over RabbitMQ, acknowledging late. BENCH_RESULTS: results in Redis; BENCH_QUEUES: how many queues."""

import os
import time

from celery import Celery
from kombu import Queue

from bench.marks import mark

keeps_results = "BENCH_RESULTS" in os.environ
app = Celery("bench", broker=os.environ["BENCH_RABBITMQ"], backend=os.environ["BENCH_REDIS"] if keeps_results else None)
app.conf.update(
    task_acks_late=True,
    task_ignore_result=not keeps_results,
    task_default_queue="bench-celery",
    task_queues=[
        Queue("bench-celery"),
        *(Queue(f"bench-celery-{number}") for number in range(1, int(os.environ.get("BENCH_QUEUES", "1")))),
    ],
    broker_connection_retry_on_startup=True,
)


@app.task(name="noop")
def noop(tenant: str, text: str, asked: str) -> None:
    mark(asked)


@app.task(name="nap")
def nap(tenant: str, text: str, asked: str) -> None:
    mark(asked)
    time.sleep(float(text))


TASKS = {"noop": noop, "nap": nap}


def send(task: str, tenant: str, text: str, asked: str) -> None:
    TASKS[task].apply_async(kwargs={"tenant": tenant, "text": text, "asked": asked})


def close() -> None: ...
