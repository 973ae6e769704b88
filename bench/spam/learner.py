"""Logistic regression over sparse rows with numpy alone: L-BFGS, deterministic, for tens of thousands of messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Sparse rows: the columns of row i are `columns[starts[i]:starts[i + 1]]`, each with the value of `values` at its place."""

    columns: NDArray[np.int64]
    values: NDArray[np.float32]
    starts: NDArray[np.int64]
    width: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def dot(self, weights: Floats) -> Floats:
        """One number for each row."""
        products = np.append(weights[self.columns] * self.values, 0.0)  # the last is for empty rows at the end
        sums = np.add.reduceat(products, self.starts[:-1])
        sums[np.diff(self.starts) == 0] = 0.0
        return sums

    def transposed_dot(self, numbers: Floats) -> Floats:
        """One number for each column."""
        return np.bincount(self.columns, np.repeat(numbers, np.diff(self.starts)) * self.values, self.width).astype(np.float64, copy=False)


def minimise(function: Callable[[Floats], tuple[float, Floats]], start: Floats, rounds: int, memory: int = 8) -> Floats:
    """L-BFGS with backtracking (Nocedal and Wright, 7.4)."""
    point, (value, gradient) = start, function(start)
    steps: list[Floats] = []
    changes: list[Floats] = []
    for _ in range(rounds):
        direction = -_two_loops(gradient, steps, changes)
        slope = float(direction @ gradient)
        if slope > -1e-12:
            break
        length = 1.0 if steps else min(1.0, 1.0 / float(np.abs(gradient).sum()))
        for _ in range(25):
            candidate = point + length * direction
            new_value, new_gradient = function(candidate)
            if new_value <= value + 1e-4 * length * slope:
                break
            length /= 2
        else:
            break
        step, change = candidate - point, new_gradient - gradient
        if float(step @ change) > 1e-14:
            steps, changes = [*steps, step][-memory:], [*changes, change][-memory:]
        done = value - new_value < 1e-7 * max(abs(value), 1e-3)
        point, value, gradient = candidate, new_value, new_gradient
        if done:
            break
    return point


def _two_loops(gradient: Floats, steps: Sequence[Floats], changes: Sequence[Floats]) -> Floats:
    direction = gradient.copy()
    kept = []
    for step, change in zip(reversed(steps), reversed(changes), strict=True):
        share = float(step @ direction) / float(step @ change)
        direction -= share * change
        kept.append(share)
    if steps:
        direction *= float(steps[-1] @ changes[-1]) / float(changes[-1] @ changes[-1])
    for step, change, share in zip(steps, changes, reversed(kept), strict=True):
        direction += step * (share - float(change @ direction) / float(step @ change))
    return direction


def fit_logistic(rows: Rows, is_spam: NDArray[np.bool_], penalty: float, importance: Floats, rounds: int = 60) -> tuple[Floats, float]:
    """(weights, bias) of the least mean loss plus penalty / 2 times the weights' square; `importance` weighs the rows."""
    sign = np.where(is_spam, 1.0, -1.0)
    importance = importance / importance.sum()

    def loss(point: Floats) -> tuple[float, Floats]:
        weights = point[:-1]
        margins = sign * (rows.dot(weights) + point[-1])
        pull = -sign * importance / (1 + np.exp(np.clip(margins, -500, 500)))
        gradient = np.append(rows.transposed_dot(pull) + penalty * weights, pull.sum())
        return float(importance @ np.logaddexp(0, -margins) + penalty / 2 * (weights @ weights)), gradient

    best = minimise(loss, np.zeros(rows.width + 1), rounds)
    return best[:-1], float(best[-1])


def calibrate(scores: Floats, is_spam: NDArray[np.bool_]) -> tuple[float, float]:
    """(slope, offset) so that sigmoid(slope * score + offset) is a probability (Platt, with his smoothed targets)."""
    spam, ham = int(is_spam.sum()), int((~is_spam).sum())
    target = np.where(is_spam, (spam + 1) / (spam + 2), 1 / (ham + 2))

    def loss(point: Floats) -> tuple[float, Floats]:
        logits = point[0] * scores + point[1]
        pull = (1 / (1 + np.exp(-np.clip(logits, -500, 500))) - target) / len(scores)
        value = float((np.logaddexp(0, logits) - target * logits).mean())
        return value, np.array([pull @ scores, pull.sum()])

    slope, offset = minimise(loss, np.array([1.0, 0.0]), 100)
    return float(slope), float(offset)
