"""A queue whose time-outs end, whoever else takes from it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from runs.inbox import Inbox
from tests.toys import wait_until


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def taken(inbox: Inbox[int], timeout: float | None = None) -> int | None:
    try:
        return inbox.get(timeout=timeout)
    except queue.Empty:
        return None


def test_first_in_first_out() -> None:
    inbox: Inbox[int] = Inbox()
    for number in range(3):
        inbox.put(number)
    assert (inbox.qsize(), inbox.empty()) == (3, False)
    assert [inbox.get(), inbox.get_nowait(), inbox.get(timeout=1)] == [0, 1, 2]
    assert (inbox.qsize(), inbox.empty()) == (0, True)
    with pytest.raises(queue.Empty):
        inbox.get_nowait()


def test_who_waits_is_woken() -> None:
    inbox: Inbox[int] = Inbox()
    found: list[int | None] = []
    threads = [in_thread(lambda: found.append(taken(inbox))) for _ in range(3)]
    for number in range(3):
        inbox.put(number)
    for thread in threads:
        thread.join(30)
    assert sorted(number for number in found if number is not None) == [0, 1, 2]


@pytest.mark.parametrize("timeout", [0.0, 1e-9, 1e-7, 1e-6, 1e-5, 1e-3])
def test_the_shortest_time_outs_end(timeout: float) -> None:
    """A SimpleQueue that was used before waits for ever here, now and then."""
    inbox: Inbox[int] = Inbox()

    def many() -> None:
        for number in range(200):
            inbox.put(number)
            assert inbox.get() == number
            assert taken(inbox, timeout) is None

    thread = in_thread(many)
    thread.join(30)
    assert not thread.is_alive()


def test_a_time_out_ends_although_others_take_what_came() -> None:
    inbox: Inbox[int] = Inbox()
    is_over = threading.Event()
    seen: list[int] = []

    def keep_taking() -> None:
        while not is_over.is_set():
            item = taken(inbox, 0.0001)
            if item is not None:
                seen.append(item)

    threads = [in_thread(keep_taking) for _ in range(8)]
    for number in range(5000):
        inbox.put(number)
        if number % 50 == 0:
            time.sleep(0.001)
    wait_until(lambda: len(seen) == 5000)
    is_over.set()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(seen) == list(range(5000))


def test_a_time_out_is_one_however_often_it_is_woken_for_nothing() -> None:
    inbox: Inbox[int] = Inbox()
    inbox.put(1)
    inbox.get()  # it still rings, for nothing
    began = time.monotonic()
    assert taken(inbox, 0.05) is None
    assert 0.05 <= time.monotonic() - began < 15
