"""The queue in which worker threads sleep: until there is a run, or they are to stop."""

from __future__ import annotations

import queue
import threading
import time

import pytest

from runs.handover import WorkQueue
from tests.toys import wait_until


def test_a_thread_sleeps_through_dramatiq_s_time_out_and_is_woken_to_stop() -> None:
    work, woken = WorkQueue(threads=2), []

    def wait() -> None:
        with pytest.raises(queue.Empty):
            work.get(timeout=0.01)
        woken.append(time.monotonic())

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert not woken
    work.wake()
    wait_until(lambda: len(woken) == 2)


def test_when_the_worker_stops_the_time_out_is_dramatiq_s_again() -> None:
    work = WorkQueue(threads=0)
    work.wake()
    with pytest.raises(queue.Empty):
        work.get(timeout=0.01)


def test_what_is_left_is_found_behind_the_calls_that_nobody_heard() -> None:
    """dramatiq takes what is left without waiting, and gives it back until the queue says that it is empty."""
    work = WorkQueue(threads=2)
    work.wake()
    work.put("a run")
    assert work.get_nowait() == "a run"
    with pytest.raises(queue.Empty):
        work.get_nowait()
