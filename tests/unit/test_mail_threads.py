"""Conversations out of Message-IDs: the same ones whatever order messages arrive in, and however they are cut into batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail.threads import MAX_REFERENCES, join, keys_of

Message = tuple[str, Sequence[str]]


class Links:
    """What the store does with an answer."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.threads: dict[int, str] = {}
        self._new = (f"t{number}" for number in itertools.count())

    def arrive(self, batch: Sequence[tuple[int, Message]]) -> None:
        joined = join([keys_of(*message) for _, message in batch], self.known, lambda: next(self._new))
        moved = {thread: group[0] for group in joined.merged for thread in group}
        assert all(thread in self.known.values() for group in joined.merged for thread in group)
        self.known = {key: moved.get(thread, thread) for key, thread in {**joined.links, **self.known}.items()}
        self.threads |= {number: thread for (number, _), thread in zip(batch, joined.threads, strict=True)}
        self.threads = {number: moved.get(thread, thread) for number, thread in self.threads.items()}

    def groups(self) -> set[frozenset[int]]:
        return {frozenset(number for number, thread in self.threads.items() if thread == each) for each in set(self.threads.values())}


def expected(messages: Sequence[Message]) -> set[frozenset[int]]:
    """By the slowest way there is: groups that share an id become one until none do."""
    groups = [({number}, set(keys_of(*message))) for number, message in enumerate(messages)]
    changed = True
    while changed:
        changed = False
        for one, other in itertools.combinations(groups, 2):
            if one[1] & other[1]:
                groups.remove(other)
                one[0].update(other[0])
                one[1].update(other[1])
                changed = True
                break
    return {frozenset(numbers) for numbers, _ in groups}


IDS = st.sampled_from(["", *(f"<{letter}>" for letter in "abcdefgh")])
MESSAGES = st.lists(st.tuples(IDS, st.lists(IDS, max_size=3)), max_size=9)


@given(MESSAGES, st.randoms(use_true_random=False), st.integers(1, 4))
def test_any_order_and_any_batches_give_the_same_conversations(messages: list[Message], rng, size: int) -> None:  # type: ignore[no-untyped-def]
    numbered = list(enumerate(messages))
    rng.shuffle(numbered)
    links = Links()
    for start in range(0, len(numbered), size):
        links.arrive(numbered[start : start + size])
    assert links.groups() == (expected(messages) if messages else set())


def test_a_message_without_any_id_is_a_conversation_of_its_own() -> None:
    joined = join([[], []], {}, iter(["one", "two"]).__next__)
    assert (joined.threads, joined.links, joined.merged) == (["one", "two"], {}, [])


def test_stored_conversations_that_are_one_are_told_together() -> None:
    joined = join([["a", "b"], ["b", "c"], ["x"]], {"a": "A", "b": "B", "c": "C"}, lambda: "new")
    assert [sorted(group) for group in joined.merged] == [["A", "B", "C"]]
    assert joined.threads[0] == joined.threads[1] in {"A", "B", "C"}
    assert (joined.threads[2], joined.links) == ("new", {"x": "new"})


@pytest.mark.parametrize("own", ["<own>", ""])
def test_of_very_many_references_the_first_and_the_last_count(own: str) -> None:
    many = [f"<{number}>" for number in range(1000)]
    keys = keys_of(own, many)
    assert len(keys) == MAX_REFERENCES
    assert keys[0] == keys_of(own or "<0>", [])[0]
    assert keys[-1] == keys_of("<999>", [])[0]
    assert keys_of("<a>", ["<a>", "", "<a>"]) == keys_of("<a>", [])
