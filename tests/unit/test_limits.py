"""The soft limit: raised in the block that takes too long, and nowhere else."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from runs.limits import SoftTimeLimitExceeded, Watch
from tests.toys import wait_until


def spin(seconds: float) -> None:
    wait_until(lambda: False, seconds, fail=False)


def test_a_block_that_takes_too_long_is_interrupted() -> None:
    began = time.monotonic()
    with pytest.raises(SoftTimeLimitExceeded), Watch().soft_limit(0.05):
        spin(30)
    assert 0.05 <= time.monotonic() - began < 15


def test_a_block_that_ends_in_time_is_not() -> None:
    watch = Watch()
    with watch.soft_limit(0.05):
        pass
    spin(0.15)


def test_deadlines_fire_in_their_own_order_each_in_its_thread() -> None:
    watch = Watch()
    ended: list[str] = []

    def work(name: str, limit: float) -> None:
        try:
            with watch.soft_limit(limit):
                spin(5)
        except SoftTimeLimitExceeded:
            ended.append(name)

    threads = [threading.Thread(target=work, args=args) for args in (("late", 0.3), ("early", 0.1), ("middle", 0.2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert ended == ["early", "middle", "late"]


def test_a_tidying_actor_may_swallow_the_exception() -> None:
    with Watch().soft_limit(0.02):
        try:
            spin(5)
        except SoftTimeLimitExceeded:
            spin(0.05)  # only once


def test_a_thread_survives_a_thousand_races_with_its_limit() -> None:
    watch = Watch()
    survived: list[int] = []
    outside: list[BaseException] = []

    def race() -> None:
        sys.settrace(None)  # coverage has a lock of its own, and an exception out of nowhere would leave it locked
        interrupted = 0
        for number in range(1000):
            limit = 0.0002 * (number % 5)
            try:
                try:
                    with watch.soft_limit(limit):
                        until = time.monotonic() + limit
                        while time.monotonic() < until:
                            pass
                except SoftTimeLimitExceeded:
                    interrupted += 1
                for _ in range(50):
                    pass
            except BaseException as error:
                outside.append(error)
        survived.append(interrupted)

    threads = [threading.Thread(target=race) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)  # nobody waits for a lock that was never let go
    assert outside == []
    assert len(survived) == 3
    assert sum(survived) > 0
