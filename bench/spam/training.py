"""From messages to a model: groups of features are learned together, and alone beside that where it helps; calibrated, and packed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.spam.corpus import Corpus, rows_of
from bench.spam.learner import Floats, Rows, calibrate, fit_logistic
from mail.spam.model import Model

BITS = 20
PENALTY = 1e-5
"""Of the square of the weights, against the mean loss."""
SITE = 5
HARD = 6.0
"""How much more a message counts that is good and looks bad: parts of a corpus named so."""
SIDE = 0.15
"""What the messages made here weigh against a real source."""


@dataclass(frozen=True)
class Recipe:
    """The groups that a model weighs, by their number, and how large their values are before they are weighed together. `alone`: how
    much what they say counts when each was learned without the others; a group that the others outdo has no say in the joint fit."""

    groups: dict[int, float]
    alone: float = 0.0


SHARED = Recipe({0: 1.0, 1: 0.6, 2: 0.8, 3: 0.8, 4: 0.4})
"""Of a model for mail from anywhere."""
LOCAL = Recipe({**SHARED.groups, SITE: 1.0}, alone=2.0)
"""Of one that stays where it was trained: the names of hosts, lists and programs there are worth knowing."""


@dataclass(frozen=True)
class Fit:
    """What was learned: weights for each group, and the bias."""

    weights: dict[int, Floats]
    bias: float

    def scores(self, corpus: Corpus) -> Floats:
        """The raw score of each message."""
        total = np.full(len(corpus), self.bias)
        for group, weights in self.weights.items():
            total += rows_of(corpus, group, BITS).dot(weights)
        return total


def importance_of(corpus: Corpus) -> Floats:
    """Each class weighs the same, and in each class each real source."""
    keys = np.array([f"{letter.kind != 'ham'}-{letter.source}" for letter in corpus.letters])
    weights = np.array([HARD if "hard" in letter.part else 1.0 for letter in corpus.letters])
    for key in np.unique(keys):
        weights[keys == key] *= (SIDE if key.endswith("-made") else 1.0) / (keys == key).sum()
    return weights


def fit(corpus: Corpus, recipe: Recipe = SHARED, penalty: float = PENALTY) -> Fit:
    """One logistic regression over all groups side by side, and the mean of one for each beside it where the recipe says so. The sum is
    linear, too."""
    joint = _together(corpus, recipe.groups, penalty)
    if not recipe.alone:
        return joint
    alone = {group: _together(corpus, {group: 1.0}, penalty) for group in recipe.groups}
    share = recipe.alone / len(alone)
    weights = {group: joint.weights[group] + share * each.weights[group] for group, each in alone.items()}
    return Fit(weights, joint.bias + share * sum(each.bias for each in alone.values()))


def _together(corpus: Corpus, groups: dict[int, float], penalty: float) -> Fit:
    parts = [rows_of(corpus, group, BITS, value) for group, value in groups.items()]
    joined, columns = _beside(parts)
    weights, bias = fit_logistic(joined, corpus.is_spam, penalty, importance_of(corpus))
    spread = np.zeros(len(parts) << BITS)
    spread[columns] = weights
    each = np.split(spread, len(parts))
    return Fit({group: part * value for (group, value), part in zip(groups.items(), each, strict=True)}, bias)


def _beside(parts: list[Rows]) -> tuple[Rows, NDArray[np.int64]]:
    """The parts of each row one after the other, only columns that are met at least twice kept; and which these are."""
    rows = len(parts[0])
    owners = np.concatenate([np.repeat(np.arange(rows), np.diff(part.starts)) for part in parts])
    columns = np.concatenate([part.columns + (number << BITS) for number, part in enumerate(parts)])
    values = np.concatenate([part.values for part in parts])
    often = np.bincount(columns, minlength=len(parts) << BITS) >= 2
    known = np.flatnonzero(often)
    place = np.full(len(often), -1)
    place[known] = np.arange(len(known))
    order = np.argsort(owners, kind="stable")
    order = order[often[columns[order]]]
    starts = np.searchsorted(owners[order], np.arange(rows + 1))
    return Rows(place[columns[order]], values[order], starts, len(known)), known


def cross_scores(corpus: Corpus, recipe: Recipe = SHARED, folds: int = 3) -> Floats:
    """The score of each message by a model that has not seen it."""
    scores = np.zeros(len(corpus))
    fold = np.random.default_rng(1).permutation(len(corpus)) % folds
    for number in range(folds):
        scores[fold == number] = fit(corpus.where(fold != number), recipe).scores(corpus.where(fold == number))
    return scores


def pack(fitted: Fit, scores: Floats, is_spam: NDArray[np.bool_], threshold: float, name: str) -> Model:
    """Weights in 8 bits, a scale for each group. `scores` are raw scores of messages that were not learned from: they calibrate."""
    slope, offset = calibrate(scores, is_spam)
    last = max(fitted.weights)
    table = np.zeros((last + 1, 1 << BITS), np.int8)
    scales = [0.0] * (last + 1)
    for group, weights in fitted.weights.items():
        scales[group] = float(np.quantile(np.abs(weights[weights != 0]), 0.9995)) / 127
        table[group] = np.clip(np.round(weights / scales[group]), -127, 127)
    return Model(table, BITS, tuple(scales), fitted.bias, slope, offset, threshold, name)
