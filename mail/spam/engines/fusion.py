"""One probability from the embedded check's and the engines': a logistic rule, learned for each set of engines that answered.

The engines' scores are no probabilities and mean different things, so they are never added up: each enters as its share of what the
engine itself requires, with the weight that it earned on labelled messages (`python -m bench.spam_engines` prints the table).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mail.spam.engines.symbols import indicators_of
from mail.spam.verdict import EngineScore, Indicator, Verdict

MOST = 9.0
"""The embedded check's log-odds count up to here, either way."""
SHARES = (-1.0, 8.0)
"""A score's share of what is required counts from here to there."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Log-odds = the embedded check's + bias + each engine's weight x its share."""

    bias: float
    engines: dict[str, float]


RULES: dict[frozenset[str], Rule] = {
    frozenset({"rspamd"}): Rule(-0.04, {"rspamd": 0.15}),
    frozenset({"spamassassin"}): Rule(-0.80, {"spamassassin": 1.12}),
    frozenset({"rspamd", "spamassassin"}): Rule(-0.80, {"rspamd": 0.0, "spamassassin": 1.12}),
}
"""From 500 messages of the SpamAssassin public corpus and Debian 12's engines without their network tests, which leave rspamd little."""


def fuse(verdict: Verdict, said: Sequence[EngineScore]) -> Verdict:
    """The verdict with what the engines said in it. An engine without a rule is kept in `engines` and counts nothing."""
    if not said:
        return verdict
    scores = {each.engine: each for each in said}
    rule = RULES.get(frozenset(scores))
    probability = verdict.score
    if rule is not None:
        odds = log_odds(verdict.score) + rule.bias + sum(rule.engines[name] * share(each) for name, each in scores.items())
        probability = 1 / (1 + math.exp(-odds))
    return replace(
        verdict,
        score=probability,
        is_spam=probability >= verdict.threshold,
        indicators=_with(verdict.indicators, said),
        engines=(*verdict.engines, *said),
    )


def log_odds(probability: float, most: float = MOST) -> float:
    """Within `most`, either way."""
    smallest = 1 / (1 + math.exp(most))
    inside = min(max(probability, smallest), 1 - smallest)
    return math.log(inside / (1 - inside))


def share(said: EngineScore) -> float:
    """The score in parts of what the engine requires, within SHARES."""
    required = said.required if math.isfinite(said.required) and said.required > 0 else 5.0
    return min(max(said.score / required, SHARES[0]), SHARES[1]) if math.isfinite(said.score) else 0.0


def _with(own: Sequence[Indicator], said: Sequence[EngineScore]) -> tuple[Indicator, ...]:
    """Ours first: they say where in the message."""
    codes = {indicator.code for indicator in own}
    more: list[Indicator] = []
    for each in said:
        for indicator in indicators_of(each):
            if indicator.code not in codes or indicator.code == "engine_symbol":
                codes.add(indicator.code)
                more.append(indicator)
    return (*own, *more)
