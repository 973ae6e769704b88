# ruff: noqa: ARG001  (the arguments travel; nothing is done with them)
"""Procrastinate with native async tasks; PostgreSQL is its queue and its record."""

import asyncio
import os
from collections.abc import Sequence

import procrastinate

from bench.marks import mark

QUEUE = "bench-procrastinate"
CONNECTION = os.environ["BENCH_POSTGRES"]
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=CONNECTION))
producer = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=CONNECTION))


async def noop(tenant: str, text: str, asked: str) -> None:
    mark(asked)


async def nap(tenant: str, text: str, asked: str) -> None:
    mark(asked)
    await asyncio.sleep(float(text))


def declared(where: procrastinate.App) -> dict[str, procrastinate.tasks.Task]:
    return {function.__name__: where.task(name=function.__name__, queue=QUEUE)(function) for function in (noop, nap)}


declared(app)
TASKS = declared(producer)
_opened: list[procrastinate.App] = []


def tasks() -> dict[str, procrastinate.tasks.Task]:
    """The producer's, its connections opened on first use and not in a worker."""
    if not _opened:
        producer.open()
        _opened.append(producer)
    return TASKS


def send(task: str, tenant: str, text: str, asked: str) -> None:
    tasks()[task].defer(tenant=tenant, text=text, asked=asked)


def send_many(task: str, calls: Sequence[tuple[str, str, str]]) -> None:
    tasks()[task].batch_defer(*({"tenant": tenant, "text": text, "asked": asked} for tenant, text, asked in calls))


def close() -> None:
    producer.close()
