"""One thread that does what many ask."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from core.errors import UnavailableError
from runs.gatherer import Gatherer
from tests.toys import wait_until


class Doubler(Gatherer[int, int]):
    """Doubles; waits at its gate, and refuses thirteen."""

    def __init__(self, *, most: int = 100, alone_if_refused: bool = True) -> None:
        super().__init__("doubler", most=most, alone_if_refused=alone_if_refused)
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []
        self.ended = 0

    def _do(self, asked: Sequence[int]) -> list[int]:
        self.batches.append(list(asked))
        self.gate.wait(30)
        if 13 in asked:
            raise ValueError("thirteen")
        if 404 in asked:
            raise UnavailableError("nobody there", retry_after=1)
        return [2 * each for each in asked]

    def _end(self) -> None:
        self.ended += 1


@pytest.fixture
def doubler() -> Iterator[Doubler]:
    made = Doubler()
    yield made
    made.gate.set()
    made.close()


def asked_together(doubler: Doubler, numbers: Sequence[int], taken: int = 0) -> dict[int, int | str]:
    """All of them while another one is being done; the thread may have `taken` the first of them."""
    answers: dict[int, int | str] = {}

    def ask(number: int) -> None:
        try:
            answers[number] = doubler.ask(number)
        except (ValueError, UnavailableError) as error:
            answers[number] = str(error)

    doubler.gate.clear()
    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in (0, *numbers)]
    threads[0].start()
    wait_until(lambda: doubler.batches)
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: doubler._inbox.qsize() >= len(numbers) - taken)
    doubler.gate.set()
    for thread in threads:
        thread.join(30)
    return answers


def test_what_gathers_meanwhile_is_one_batch_and_each_gets_its_own_answer(doubler: Doubler) -> None:
    assert asked_together(doubler, [1, 2, 3]) == {0: 0, 1: 2, 2: 4, 3: 6}
    assert [sorted(batch) for batch in doubler.batches] == [[0], [1, 2, 3]]


def test_none_fails_for_another_s_sake(doubler: Doubler) -> None:
    assert asked_together(doubler, [1, 13]) == {0: 0, 1: 2, 13: "thirteen"}


def test_or_all_are_told_where_nobody_knows_what_happened() -> None:
    doubler = Doubler(alone_if_refused=False)
    assert asked_together(doubler, [1, 13]) == {0: 0, 1: "thirteen", 13: "thirteen"}
    assert len(doubler.batches) == 2
    doubler.close()


def test_whoever_cannot_be_reached_is_not_asked_once_more_for_each(doubler: Doubler) -> None:
    assert asked_together(doubler, [1, 404]) == {0: 0, 1: "nobody there", 404: "nobody there"}
    assert len(doubler.batches) == 2


def test_a_batch_has_a_limit() -> None:
    doubler = Doubler(most=2)
    asked_together(doubler, [1, 2, 3])
    assert max(map(len, doubler.batches)) == 2
    doubler.close()


def test_it_ends_and_begins_again_when_it_is_asked(doubler: Doubler) -> None:
    assert doubler.ask(1) == 2
    doubler.close()
    assert doubler.ended == 1
    doubler.close()
    assert doubler.ask(4) == 8


class Generous(Doubler):
    """Lets the asking thread do it."""

    def _may_do_it_here(self) -> bool:
        return True


def test_a_lonely_request_is_done_by_its_own_thread_where_that_may_be() -> None:
    generous = Generous()
    assert generous.ask(4) == 8
    assert generous._thread is None
    with pytest.raises(ValueError, match="thirteen"):
        generous.ask(13)
    assert generous.ask(5) == 10  # what was raised leaves nothing locked
    generous.close()
    assert generous.ended == 1


def test_whoever_comes_while_somebody_does_it_shares_the_next_batch() -> None:
    generous = Generous()
    assert asked_together(generous, [1, 2, 13], taken=1) == {0: 0, 1: 2, 2: 4, 13: "thirteen"}
    assert [sorted(batch) for batch in generous.batches][:2] == [[0], [1, 2, 13]]
    generous.close()
