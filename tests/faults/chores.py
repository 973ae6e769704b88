"""Toy tasks for real worker processes. Each writes down what it really does, and returns the token of its execution:
so the record can be asked which of several executions it believed."""

from __future__ import annotations

import os
import secrets
import signal
import time
from typing import Any

import actors  # declares the broker that the settings describe
from brokers.queues import Queue
from core.errors import TransientError
from core.settings import get_settings
from runs.current import current_run
from runs.task import task
from tests.faults.effects import POISON_ATTEMPTS, Execution

LIFE_SECONDS = 0.1


@task(queue=Queue.DEFAULT)
def quick(number: int) -> dict[str, Any]:
    """Do next to nothing."""
    return ended(began(), number)


@task(queue=Queue.SYNC)
def slow(number: int) -> dict[str, Any]:
    """Take as long as a small sync."""
    execution = began()
    time.sleep(0.05)
    return ended(execution, number)


@task(queue=Queue.SEND)
def fails_once(number: int) -> dict[str, Any]:
    """Fail at the first attempt, as a server that is away would make it."""
    execution = began()
    if execution.attempt == 1:
        execution.write("F", get_settings().data_dir)
        raise TransientError("The first attempt always fails.", retry_after=0.2)
    return ended(execution, number)


@task(queue=Queue.HIGH_PRIORITY)
def lingers(number: int, seconds: float) -> dict[str, Any]:
    """Take long, and be seen at it."""
    execution = began()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(LIFE_SECONDS)
        execution.write("L", get_settings().data_dir)
    return ended(execution, number)


@task(queue=Queue.DEFAULT, retries=POISON_ATTEMPTS - 1, base_backoff=0.5)
def poison(number: int) -> dict[str, Any]:
    """Take the whole process down: by a crash in C code, or by a library that exits."""
    execution = began()
    time.sleep(0.2)  # so that neighbours are at work, too
    if number % 2:
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(5)
    else:
        os._exit(1)
    return ended(execution, number)


CHORES = (quick, slow, quick, slow, fails_once)
"""What the producers enqueue, in turn."""


def began() -> Execution:
    """An execution of the current run, on paper from its first moment."""
    run = current_run()
    assert run is not None
    execution = Execution(run.run_id, run.attempt, run.fence, os.getpid(), secrets.token_hex(8))
    execution.write("B", get_settings().data_dir)
    return execution


def ended(execution: Execution, number: int) -> dict[str, Any]:
    """The end of the execution, and its result."""
    execution.write("E", get_settings().data_dir)
    return {"number": number, "token": execution.token}


__all__ = ["CHORES", "actors"]
