"""A tenant's weights, worked out anew from all opinions that stand, and tried on each before it is learned.

So taking an opinion back leaves no trace, and how well the weights judge is measured on messages they had not seen. They count once
they were at least as good as the shared model on recent opinions, without calling more wanted mail spam; and no longer when they were
not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mail.spam.learning import Delta, threshold_for
from mail.spam.model import sigmoid

RECENT = 100
"""Opinions that the two are compared on."""
TRIED = 400
"""Opinions that are judged before they are learned: enough wanted mail among them to make a threshold of."""
ENOUGH = 10
"""Opinions of either kind before the weights may count."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """A message as somebody judged it. `logit`: the log-odds that everybody's check gave it, without the tenant's weights."""

    hashes: bytes
    logit: float
    is_spam: bool


@dataclass(frozen=True, slots=True)
class Trial:
    """How the shared model and the tenant's weights judged the same recent opinions: wrong ones, and wanted mail called spam."""

    tried: int
    shared_errors: int
    tenant_errors: int
    shared_false_positives: int
    tenant_false_positives: int

    @property
    def is_won(self) -> bool:
        """Whether the weights may count."""
        return self.tenant_errors <= self.shared_errors and self.tenant_false_positives <= self.shared_false_positives

    def as_dict(self) -> dict[str, int]:
        """To be stored and shown."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Learned:
    """The weights of a tenant, whether they count, and its threshold where there is enough to make one of."""

    delta: Delta
    trial: Trial
    spam_count: int
    ham_count: int
    is_active: bool
    threshold: float | None


def learn_from(opinions: Sequence[Opinion], *, threshold: float, budget: float | None) -> Learned:
    """`opinions` in the order in which they were said; `threshold` is what is spam now; `budget` the share of wanted mail that may be
    called so."""
    delta = Delta()
    tried: list[tuple[bool, float, float]] = []
    for place, opinion in enumerate(opinions):
        if place >= len(opinions) - TRIED:
            shared, own = sigmoid(opinion.logit), sigmoid(opinion.logit + delta.score(opinion.hashes))
            tried.append((opinion.is_spam, shared, own))
        delta.learn(opinion.hashes, opinion.is_spam)
    trial = _compared(tried[-RECENT:], threshold)
    is_active = min(delta.spam, delta.ham) >= ENOUGH and trial.is_won
    wanted = [own if is_active else shared for is_spam, shared, own in tried if not is_spam]
    made = threshold_for(budget, wanted, default=threshold) if budget is not None and wanted else None
    return Learned(delta, trial, delta.spam, delta.ham, is_active, made)


def _compared(tried: Sequence[tuple[bool, float, float]], threshold: float) -> Trial:
    shared = [(is_spam, score >= threshold) for is_spam, score, _ in tried]
    tenant = [(is_spam, score >= threshold) for is_spam, _, score in tried]
    return Trial(
        len(tried),
        *(sum(is_spam != called for is_spam, called in each) for each in (shared, tenant)),
        *(sum(called and not is_spam for is_spam, called in each) for each in (shared, tenant)),
    )
