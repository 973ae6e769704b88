"""Whose turn it is among the held runs."""

from __future__ import annotations

from collections import Counter

import pytest

from runs.held import GUEST_SECONDS, HeldRuns, kept_free
from storage.outcomes import Claim, HeldLane
from storage.postgres import BEFORE_ANY_ID


class Backlog:
    """What is held, as a record would tell it and give it out."""

    def __init__(self, **runs: int) -> None:
        self.left = Counter(runs)
        self.given: list[str] = []
        self.queue_of = dict.fromkeys(runs, "default")

    def lanes(self) -> list[HeldLane]:
        return [HeldLane(self.queue_of[tenant], tenant, 1, BEFORE_ANY_ID) for tenant, number in self.left.items() if number]

    def claim(self, lane: HeldLane) -> list[Claim]:
        number = min(lane.wanted, self.left[lane.tenant_id])
        self.left[lane.tenant_id] -= number
        self.given += [lane.tenant_id] * number
        start = len(self.given)
        return [
            Claim(f"{start + place:09d}", lane.tenant_id, None, "noop", lane.queue, {}, 1, 1, 1, None, None, None)
            for place in range(number)
        ]


def turn(held: HeldRuns, backlog: Backlog, free: int) -> int:
    """One claim of as many as are free; how many came."""
    lanes = held.choose(free)
    claims = [claim for lane in lanes for claim in backlog.claim(lane)]
    held.took(lanes, claims)
    return len(claims)


def looking_at(backlog: Backlog) -> HeldRuns:
    held = HeldRuns(backlog.lanes)
    held.look()
    return held


def test_a_short_backlog_is_not_behind_a_long_one() -> None:
    backlog = Backlog(noisy=1000, quiet=8)
    held = looking_at(backlog)
    for _ in range(4):
        turn(held, backlog, 4)
    assert Counter(backlog.given) == {"noisy": 8, "quiet": 8}


def test_one_free_thread_goes_round() -> None:
    backlog = Backlog(a=10, b=10, c=10)
    held = looking_at(backlog)
    for _ in range(6):
        assert turn(held, backlog, 1) == 1
    assert Counter(backlog.given) == {"a": 2, "b": 2, "c": 2}


def test_a_share_that_does_not_come_out_even_evens_out() -> None:
    backlog = Backlog(a=100, b=100, c=100)
    held = looking_at(backlog)
    for _ in range(3):
        assert turn(held, backlog, 8) == 8
    assert Counter(backlog.given) == {"a": 8, "b": 8, "c": 8}


def test_a_lone_tenant_gets_every_thread() -> None:
    backlog = Backlog(lone=20)
    held = looking_at(backlog)
    assert [turn(held, backlog, 8) for _ in range(3)] == [8, 8, 4]
    assert not held  # it gave less than was wanted
    assert turn(held, backlog, 8) == 0


def message_claim(tenant: str, queue: str = "default") -> Claim:
    return Claim("m", tenant, None, "noop", queue, {}, 1, 1, 1, None, None, None)


def test_a_thread_is_kept_free_while_guests_come(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("runs.held.time.monotonic", lambda: now[0])
    backlog = Backlog(noisy=1000)
    held = HeldRuns(backlog.lanes, kept_free=1)
    held.look()
    assert turn(held, backlog, 8) == 8
    held.met([message_claim("guest")])
    assert [held.room(1), turn(held, backlog, 8), turn(held, backlog, 1)] == [0, 7, 0]
    now[0] += GUEST_SECONDS + 0.1
    assert [held.room(1), turn(held, backlog, 8)] == [1, 8]


def test_who_has_a_backlog_is_no_guest() -> None:
    backlog = Backlog(noisy=1000)
    held = HeldRuns(backlog.lanes, kept_free=1)
    held.met([message_claim("noisy")])  # before anybody knew
    held.look()
    held.met([message_claim("noisy")])
    assert turn(held, backlog, 8) == 8
    backlog.left.clear()
    held.look()  # nothing of it is held now, its last messages are still coming
    held.met([message_claim("noisy")])
    backlog.left["noisy"] = 10
    held.look()
    assert turn(held, backlog, 8) == 8


def test_no_thread_is_kept_from_what_is_more_urgent() -> None:
    backlog = Backlog(noisy=1000)
    backlog.queue_of["noisy"] = "sync"
    held = HeldRuns(backlog.lanes, kept_free=1)
    held.look()
    held.met([message_claim("guest", "low_priority")])
    assert turn(held, backlog, 8) == 8
    held.met([message_claim("guest", "sync")])
    assert turn(held, backlog, 8) == 7


def test_of_a_few_threads_none_is_kept_free() -> None:
    assert [kept_free(threads, 0) for threads in (1, 3, 4, 16)] == [0, 0, 1, 1]
    assert kept_free(8, claim_ahead=8) == 9  # nothing is claimed ahead for a backlog while guests come


def test_the_more_urgent_queue_goes_first() -> None:
    backlog = Backlog(later=10, sooner=10)
    backlog.queue_of = {"later": "low_priority", "sooner": "sync"}
    held = looking_at(backlog)
    assert held.most_urgent() == (-10, -1)
    turn(held, backlog, 10)
    turn(held, backlog, 4)
    turn(held, backlog, 4)
    assert backlog.given == ["sooner"] * 10 + ["later"] * 4


def test_a_lane_goes_on_behind_the_last_run_that_was_claimed() -> None:
    backlog = Backlog(a=10)
    held = looking_at(backlog)
    turn(held, backlog, 3)
    (lane,) = held.choose(1)
    assert lane.after == "000000005"  # the last of 3, 4 and 5
    held.look()
    assert held.choose(1)[0].after == lane.after
    held.start_over()
    held.look()
    assert held.choose(1)[0].after == BEFORE_ANY_ID
