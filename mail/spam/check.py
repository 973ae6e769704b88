"""Is this spam? One message in, one verdict out: read it, find what is suspicious, weigh it, explain it. Nothing is fetched."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mail.spam.features import Features, read_features
from mail.spam.findings import find_indicators
from mail.spam.learning import LEARNED_FROM
from mail.spam.model import Model, load_model, sigmoid
from mail.spam.verdict import Context, Contribution, Indicator, Severity, Verdict
from mail.spam.view import View, read_view

SOFT_LIMIT = 0.05
"""Seconds after which no further indicators are looked for. The features are always weighed: they are bounded by their size."""
RULES_THRESHOLD = 0.5
"""The threshold without a model."""
EXPLAINED = 10
NOTHING_KNOWN = Context()
_POINTS = {Severity.HIGH: 2.5, Severity.MEDIUM: 0.8, Severity.LOW: 0.25, Severity.INFO: 0.0}
"""What a finding adds to the calibrated score's logarithm of odds."""
_MOST_POINTS = 4.0
_RULES_BIAS = -2.4
"""Where a message without findings stands when there is no model."""


def check(source: bytes, context: Context = NOTHING_KNOWN, model: Model | None = None) -> Verdict:
    """The verdict on a message (RFC 5322). Never raises. Without a model the shipped one is used; without that, the rules alone."""
    return judge(source, context, model or load_model())


def judge(source: bytes, context: Context, model: Model | None, clock: Callable[[], float] = time.perf_counter) -> Verdict:
    """As `check`, with this model or, for None, with the rules alone: then only a finding of high severity makes spam of a message."""
    deadline = clock() + SOFT_LIMIT
    view = read_view(source)
    features = _features(view)
    indicators = find_indicators(view, features.words, context, lambda: clock() < deadline)
    logit, weights = model.weigh(features.groups) if model else (0.0, np.empty(0))
    hashes = features.to_bytes(LEARNED_FROM)
    score = _score(logit, indicators, hashes, context, model)
    default = model.threshold if model else RULES_THRESHOLD
    threshold = default if context.threshold is None else context.threshold
    if model is None:
        view.notes.append("model_missing")
        if not any(each.severity is Severity.HIGH for each in indicators):
            score = min(score, threshold * 0.99)
    return Verdict(
        score=score,
        is_spam=score >= threshold,
        threshold=threshold,
        indicators=tuple(indicators),
        contributions=_explained(features, weights),
        hashes=hashes,
        logit=logit,
        notes=tuple(view.notes),
    )


def _features(view: View) -> Features:
    try:
        return read_features(view)
    except Exception:  # a feature that breaks at a stranger's bytes must not cost the verdict
        view.notes.append("features_failed")
        return Features()


def _score(logit: float, indicators: list[Indicator], hashes: bytes, context: Context, model: Model | None) -> float:
    odds = model.slope * logit + model.offset if model else _RULES_BIAS
    odds += min(sum(_POINTS[each.severity] for each in indicators), _MOST_POINTS)
    if context.delta is not None:
        odds += context.delta.score(hashes)
    return sigmoid(odds)


def _explained(features: Features, weights: NDArray[np.float64]) -> tuple[Contribution, ...]:
    """The features that moved the raw score most, either way."""
    places = _top(weights)
    names = features.names_at(places)
    return tuple(Contribution(name, round(weight, 4)) for name, weight in zip(names, weights[places].tolist(), strict=True) if weight)


def _top(weights: NDArray[np.float64]) -> list[int]:
    """The places of the EXPLAINED largest, of equal ones the first: as a stable sort of all has them, in a fraction of its time."""
    sizes = np.abs(weights)
    places = np.arange(len(sizes))
    if len(sizes) > EXPLAINED:
        ordered = sizes.copy()
        ordered.partition(len(sizes) - EXPLAINED)
        places = (sizes >= ordered[-EXPLAINED]).nonzero()[0]
    top: list[int] = places[(-sizes[places]).argsort(kind="stable")][:EXPLAINED].tolist()
    return top
