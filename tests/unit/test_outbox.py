"""When settlements are sent: the first at once, the next together, nothing twice, and never not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from brokers.rabbitmq.consumer import FLUSH_SECONDS, _Outbox


class Link:
    """Runs what it is asked to when it is told to; `is_faster` runs it before `call_soon` returns, as a quick thread may."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.timers: list[Callable[[], None]] = []
        self.is_faster = False
        self.is_lost = False

    def call_soon(self, function: Callable[[], None]) -> bool:
        if self.is_lost:
            return False
        if self.is_faster:
            function()
        else:
            self.calls.append(function)
        return True

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        assert seconds == FLUSH_SECONDS
        self.timers.append(function)


class Settling:
    def __init__(self) -> None:
        self.link = Link()
        self.waiting = 0
        self.flushed: list[int] = []
        self.outbox = _Outbox(cast("Any", self.link), self._flush, 4)

    def _flush(self) -> bool:
        found, self.waiting = self.waiting, 0
        if found:
            self.flushed.append(found)
        return bool(found)

    def settle(self) -> None:
        self.waiting += 1
        self.outbox.wake(self.waiting)

    def run(self, due: list[Callable[[], None]]) -> None:
        now, due[:] = list(due), []
        for function in now:
            function()


@pytest.fixture
def settling() -> Settling:
    return Settling()


def test_a_lonely_one_goes_at_once_and_then_there_is_rest(settling: Settling) -> None:
    settling.settle()
    settling.run(settling.link.calls)
    assert settling.flushed == [1]
    settling.run(settling.link.timers)
    assert (settling.link.calls, settling.link.timers) == ([], [])


def test_those_that_follow_go_together_without_a_wake_up(settling: Settling) -> None:
    settling.settle()
    settling.run(settling.link.calls)
    for _ in range(3):
        settling.settle()
    assert settling.link.calls == []
    settling.run(settling.link.timers)
    assert settling.flushed == [1, 3]
    assert len(settling.link.timers) == 1  # looks again, once


def test_many_do_not_wait_for_the_timer_and_wake_the_thread_once(settling: Settling) -> None:
    settling.settle()
    settling.run(settling.link.calls)
    for _ in range(9):
        settling.settle()
    assert len(settling.link.calls) == 1
    settling.run(settling.link.calls)
    assert settling.flushed == [1, 9]
    assert len(settling.link.timers) == 1


def test_a_thread_that_is_faster_than_its_caller_is_called_again(settling: Settling) -> None:
    settling.link.is_faster = True
    for _ in range(3):
        settling.settle()
        settling.run(settling.link.timers)
    assert settling.flushed == [1, 1, 1]


def test_a_lost_connection_is_asked_again(settling: Settling) -> None:
    settling.link.is_lost = True
    settling.settle()
    settling.link.is_lost = False
    settling.settle()
    settling.run(settling.link.calls)
    assert settling.flushed == [2]
