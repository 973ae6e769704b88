"""Toy tasks for real worker processes. What a run has done is one line of a file, appended in one write just before its end."""

from __future__ import annotations

import os
import time

import actors  # declares the broker that the settings describe
from brokers.queues import Queue
from core.errors import TransientError
from core.settings import get_settings
from runs.current import current_run
from runs.task import task

EFFECTS = "effects"


@task(queue=Queue.DEFAULT)
def quick(number: int) -> int:
    """Do next to nothing."""
    return done(number)


@task(queue=Queue.SYNC)
def slow(number: int) -> int:
    """Take as long as a small sync."""
    time.sleep(0.05)
    return done(number)


@task(queue=Queue.SEND)
def fails_once(number: int) -> int:
    """Fail at the first attempt, as a server that is away would make it."""
    run = current_run()
    if run is not None and run.attempt == 1:
        raise TransientError("The first attempt always fails.", retry_after=0.2)
    return done(number)


CHORES = (quick, slow, quick, slow, fails_once)


def done(number: int) -> int:
    """Write down that the current run was executed to its end."""
    run = current_run()
    assert run is not None
    descriptor = os.open(get_settings().data_dir / EFFECTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{run.run_id} {run.attempt} {os.getpid()}\n".encode())
    finally:
        os.close(descriptor)
    return number


__all__ = ["CHORES", "EFFECTS", "actors"]
