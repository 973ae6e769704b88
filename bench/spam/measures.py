"""How good scores are: AUC with its interval, recall at a false-positive rate, thresholds for a budget."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bench.spam.learner import Floats

Labels = NDArray[np.bool_]


def auc(scores: Floats, is_spam: Labels) -> float:
    """The share of pairs of spam and ham in which the spam scores higher; ties count half."""
    order = np.sort(scores[~is_spam])
    spam = scores[is_spam]
    below, upto = np.searchsorted(order, spam, "left"), np.searchsorted(order, spam, "right")
    return float((below + upto).mean() / 2 / len(order)) if len(order) and len(spam) else math.nan


def auc_error(area: float, spam: int, ham: int) -> float:
    """Half the width of its 95 % interval (Hanley and McNeil 1982)."""
    one, two = area / (2 - area), 2 * area * area / (1 + area)
    variance = (area * (1 - area) + (spam - 1) * (one - area**2) + (ham - 1) * (two - area**2)) / (spam * ham)
    return 1.96 * math.sqrt(max(variance, 0.0))


def threshold_at(scores_of_ham: Floats, rate: float) -> float:
    """The lowest threshold that at most this share of ham reaches."""
    ordered = np.sort(scores_of_ham)[::-1]
    return float(np.nextafter(ordered[min(int(rate * len(ordered)), len(ordered) - 1)], np.inf))


def recall_at(scores: Floats, is_spam: Labels, rate: float) -> float:
    """The share of spam above the threshold for this false-positive rate."""
    return float((scores[is_spam] >= threshold_at(scores[~is_spam], rate)).mean())


def f1(flagged: Labels, is_spam: Labels) -> float:
    """The harmonic mean of precision and recall."""
    hits = int((flagged & is_spam).sum())
    return 2 * hits / max(int(flagged.sum()) + int(is_spam.sum()), 1)


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    if not total:
        return 0.0, 1.0
    share, z = hits / total, 1.96
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(middle - half, 0.0), min(middle + half, 1.0)
