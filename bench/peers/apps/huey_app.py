# ruff: noqa: ARG001  (the arguments travel; nothing is done with them)
"""huey over Redis, without results."""

import os
import time

from huey import RedisHuey

from bench.marks import mark

huey = RedisHuey("bench-huey", url=os.environ["BENCH_REDIS"], results=False)


@huey.task(name="noop")
def noop(tenant: str, text: str, asked: str) -> None:
    mark(asked)


@huey.task(name="nap")
def nap(tenant: str, text: str, asked: str) -> None:
    mark(asked)
    time.sleep(float(text))


TASKS = {"noop": noop, "nap": nap}


def send(task: str, tenant: str, text: str, asked: str) -> None:
    TASKS[task](tenant=tenant, text=text, asked=asked)


def close() -> None: ...
