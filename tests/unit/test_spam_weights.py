"""What a tenant's feedback does: it adds up in any order, can be taken back, comes in slowly, and stays with the tenant."""

from __future__ import annotations

import random

import numpy as np
import pytest

from core.errors import InvalidInputError
from mail.spam.learning import MAX_MESSAGES, MIN_EACH, SLOTS, Delta, threshold_for

WORDS, SITE = 4 << 29, 5 << 29


def hashes(*numbers: int, group: int = WORDS) -> bytes:
    return np.array(sorted(numbers), np.uint32).__or__(np.uint32(group)).astype("<u4").tobytes()


def learned(feedback: list[tuple[bytes, bool]]) -> Delta:
    delta = Delta()
    for each, is_spam in feedback:
        delta.learn(each, is_spam)
    return delta


def some_feedback(count: int = 40, seed: int = 1) -> list[tuple[bytes, bool]]:
    rng = random.Random(seed)
    return [(hashes(*rng.sample(range(number % 2 * 500, 900), 30)), number % 2 == 1) for number in range(count)]


def test_the_order_of_feedback_does_not_matter() -> None:
    feedback = some_feedback()
    shuffled = random.Random(2).sample(feedback, len(feedback))
    assert learned(feedback).to_bytes() == learned(shuffled).to_bytes()


def test_what_is_unlearned_leaves_nothing_behind() -> None:
    delta = learned(some_feedback())
    before = delta.to_bytes()
    more = some_feedback(20, seed=9)
    for each, is_spam in more:
        delta.learn(each, is_spam)
    assert delta.to_bytes() != before
    for each, is_spam in reversed(more):
        delta.unlearn(each, is_spam)
    assert delta.to_bytes() == before


def test_feedback_may_change_its_mind() -> None:
    one = hashes(1, 2, 3)
    delta = learned([*some_feedback(), (one, True)])
    delta.unlearn(one, is_spam=True)
    delta.learn(one, is_spam=False)
    assert delta.to_bytes() == learned([*some_feedback(), (one, False)]).to_bytes()


@pytest.mark.parametrize("wrong", [(hashes(1, 2), True), (hashes(1, 3), False)])
def test_what_was_never_learned_cannot_be_unlearned(wrong: tuple[bytes, bool]) -> None:
    delta = learned([(hashes(1, 2), False)])
    before = delta.to_bytes()
    with pytest.raises(InvalidInputError, match="not learned before"):
        delta.unlearn(*wrong)
    assert delta.to_bytes() == before


def test_tenants_share_nothing() -> None:
    one, other = learned(some_feedback()), Delta()
    assert other.score(hashes(1, 2, 3)) == 0.0
    assert (other.spam, other.ham, one.spam, one.ham) == (0, 0, 20, 20)


def test_weights_come_in_slowly_and_only_with_both_classes() -> None:
    delta = Delta()
    for number in range(30):
        delta.learn(hashes(1, 2, 10 + number), is_spam=True)
    assert (delta.ramp, delta.score(hashes(1, 2))) == (0.0, 0.0)
    for number in range(MIN_EACH):
        delta.learn(hashes(3, 4, 50 + number), is_spam=False)
    assert delta.ramp == pytest.approx(35 / 85)
    assert delta.score(hashes(1, 2)) > 0.5
    assert delta.score(hashes(3, 4)) < -0.5
    for number in range(400):
        delta.learn(hashes(1000 + number), is_spam=number % 2 == 0)
    assert delta.ramp > 0.85


def test_unknown_features_say_nothing_and_site_features_count() -> None:
    feedback = [(hashes(7, group=SITE), True), (hashes(8, group=SITE), False)] * MIN_EACH
    delta = learned(feedback)
    assert delta.score(hashes(7, group=SITE)) > 0 > delta.score(hashes(8, group=SITE))
    assert delta.score(hashes(9, group=SITE)) == 0.0
    assert delta.score(hashes(7, group=WORDS)) == 0.0
    assert delta.score(b"") == 0.0


def test_runs_of_characters_are_not_learned() -> None:
    delta = learned([(hashes(1, group=0), True), (hashes(2, group=0), False)] * 10)
    assert delta.score(hashes(1, group=0)) == 0.0


def test_it_survives_being_stored_and_stays_small() -> None:
    delta = learned(some_feedback(200))
    data = delta.to_bytes()
    again = Delta.from_bytes(data)
    assert again.to_bytes() == data
    assert again.score(hashes(1, 2, 600)) == delta.score(hashes(1, 2, 600))
    rng = np.random.default_rng(1)
    for _ in range(300):
        again.learn(hashes(*rng.integers(0, 1 << 29, 1500).tolist()), is_spam=True)
    assert len(again.to_bytes()) < 8 * SLOTS
    assert Delta.from_bytes(b"").to_bytes() == Delta().to_bytes()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"X" + data[1:], lambda data: data[:5], lambda data: data[:40] + b"!" + data[41:]]
)
def test_damaged_weights_are_refused(damage: object) -> None:
    assert callable(damage)
    with pytest.raises(InvalidInputError, match="damaged"):
        Delta.from_bytes(damage(learned(some_feedback()).to_bytes()))


def test_weights_of_another_version_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Delta().to_bytes()
    monkeypatch.setattr("mail.spam.learning._MAGIC", b"MRD9")
    with pytest.raises(InvalidInputError, match="another version"):
        Delta.from_bytes(data)


def test_hashes_that_are_none_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="32-bit"):
        Delta().learn(b"abc", is_spam=True)


def test_there_is_an_end_to_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_MESSAGES >= 100_000
    monkeypatch.setattr("mail.spam.learning.MAX_MESSAGES", 2)
    delta = learned([(hashes(1), True), (hashes(2), True)])
    with pytest.raises(InvalidInputError, match="at most 2"):
        delta.learn(hashes(3), is_spam=True)


def test_a_threshold_keeps_to_its_budget() -> None:
    scores = [number / 1000 for number in range(1000)]
    for budget in (0.001, 0.01, 0.1):
        threshold = threshold_for(budget, scores, default=0.5)
        assert sum(score >= threshold for score in scores) <= budget * 1000
        assert sum(score >= threshold for score in scores) >= budget * 1000 - 1


def test_with_little_evidence_a_threshold_is_not_lowered() -> None:
    assert threshold_for(0.1, [], default=0.9) == 0.9
    assert threshold_for(0.1, [0.1] * 20, default=0.9) == 0.9
    assert threshold_for(0.001, [0.1] * 200, default=0.9) == 0.9
    assert threshold_for(0.001, [0.95] * 20, default=0.9) > 0.95
    assert threshold_for(0.05, [0.1] * 200, default=0.9) == 0.5
    assert threshold_for(0.001, [1.0] * 20, default=0.9) == 1.0
