"""What one tenant's feedback adds to the shared model: counts of hashed features in its spam and its ham, and weights made of them.

Counts only ever add up, so feedback counts the same in any order, and taking it back leaves exactly what was there before. Nothing is
kept but counts in a table of fixed size: no text, no address, and no way back to either.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from core.errors import InvalidInputError

SLOTS = 1 << 16
"""Places for features; of two that fall into one the counts are summed."""
RAMP = 50
"""Messages after which the weights count half."""
MIN_EACH = 5
"""Spam and ham that must both be there before anything counts."""
SMOOTHING = 0.2
STRENGTH = 1.1
"""How much the tenant's evidence weighs against the shared model's once the ramp is over."""
MAX_MESSAGES = 1_000_000
LEARNED_FROM = 4
"""The first group of features that tenants learn from; see mail.spam.features.GROUPS. What travels has been learned already."""
_GOLDEN = np.uint32(0x9E3779B1)
_HEAD = struct.Struct("<4sIII")
_MAGIC = b"MRD1"


class Delta:
    """The sparse weights of one tenant. Not for several threads at a time."""

    def __init__(self) -> None:
        self._counts: NDArray[np.int32] = np.zeros((2, SLOTS), np.int32)
        self._messages = [0, 0]

    @property
    def spam(self) -> int:
        """Messages learned as spam."""
        return self._messages[1]

    @property
    def ham(self) -> int:
        """Messages learned as good."""
        return self._messages[0]

    @property
    def ramp(self) -> float:
        """How much of the weights counts: 0 without MIN_EACH of both, then n / (n + RAMP)."""
        if min(self._messages) < MIN_EACH:
            return 0.0
        total = sum(self._messages)
        return total / (total + RAMP)

    def learn(self, hashes: bytes, is_spam: bool) -> None:
        """Counts one message; `hashes` is `Verdict.hashes`. Raises InvalidInputError for what is none."""
        self._add(hashes, is_spam, 1)

    def unlearn(self, hashes: bytes, is_spam: bool) -> None:
        """Takes back what `learn` did with the same arguments. Raises InvalidInputError when that was never done."""
        self._add(hashes, is_spam, -1)

    def _add(self, hashes: bytes, is_spam: bool, sign: int) -> None:
        places = np.unique(_places(hashes))
        row, total = self._counts[int(is_spam)], self._messages[int(is_spam)] + sign
        if total < 0 or (sign < 0 and len(places) and int(row[places].min()) <= 0):
            raise InvalidInputError("This message was not learned before, so it cannot be unlearned.")
        if total > MAX_MESSAGES:
            raise InvalidInputError(f"A tenant learns from at most {MAX_MESSAGES} messages.")
        row[places] += sign
        self._messages[int(is_spam)] = total
        self.__dict__.pop("weights", None)

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """For each slot the logarithm of how much more often it is met in spam than in ham, smoothed; 0 for what was never met."""
        ham, spam = self._messages
        counts = self._counts.astype(np.float32) + SMOOTHING
        odds = np.log(counts[1] / (spam + 2 * SMOOTHING)) - np.log(counts[0] / (ham + 2 * SMOOTHING))
        return np.where(self._counts.any(axis=0), odds, 0).astype(np.float32)

    def score(self, hashes: bytes | NDArray[np.uint32]) -> float:
        """What the tenant's experience adds to the raw score of a message; 0 before there is enough of it."""
        ramp = self.ramp
        places = np.unique(_places(hashes)) if ramp else ()
        if not len(places):
            return 0.0
        return float(ramp * STRENGTH * self.weights[places].sum() / math.sqrt(len(places)))

    def to_bytes(self) -> bytes:
        """For storing: compressed, with a checksum."""
        body = zlib.compress(self._counts.astype("<i4").tobytes(), 6)
        head = _HEAD.pack(_MAGIC, SLOTS, *self._messages)
        return head + hashlib.sha256(head + body).digest()[:8] + body

    @classmethod
    def from_bytes(cls, data: bytes) -> Delta:
        """What `to_bytes` gave; an empty string is a new tenant. Raises InvalidInputError for anything else."""
        delta = cls()
        if not data:
            return delta
        head, check, body = data[: _HEAD.size], data[_HEAD.size : _HEAD.size + 8], data[_HEAD.size + 8 :]
        if len(head) < _HEAD.size or hashlib.sha256(head + body).digest()[:8] != check:
            raise InvalidInputError("The tenant's spam weights are damaged; learn them again from the kept feedback.")
        magic, slots, ham, spam = _HEAD.unpack(head)
        if magic != _MAGIC or slots != SLOTS:
            raise InvalidInputError("The tenant's spam weights are of another version; learn them again from the kept feedback.")
        delta._counts = np.frombuffer(zlib.decompress(body), "<i4").reshape(2, SLOTS).astype(np.int32)
        delta._messages = [ham, spam]
        return delta


def _places(hashes: bytes | NDArray[np.uint32]) -> NDArray[np.int64]:
    """The slots of the features that a tenant learns: words, and the names of its site."""
    if isinstance(hashes, bytes):
        if len(hashes) % 4:
            raise InvalidInputError("hashes is a sequence of 32-bit numbers.")
        hashes = np.frombuffer(hashes, "<u4")
    learned = hashes[(hashes >> np.uint32(29)) >= LEARNED_FROM]
    return ((learned * _GOLDEN) >> np.uint32(16)).astype(np.int64)


def threshold_for(budget: float, scores_of_ham: Sequence[float], *, default: float, fewest: int = 50) -> float:
    """The lowest threshold that flags at most `budget` (a share, such as 0.001) of confirmed ham.

    With fewer than `fewest` scores it is never below the default, and where the budget is less than one message of those known, every
    one of them stays unflagged.
    """
    ordered = sorted(scores_of_ham, reverse=True)
    allowed = int(budget * len(ordered))
    if not ordered:
        return default
    wanted = min(max(math.nextafter(ordered[min(allowed, len(ordered) - 1)], 2.0), 0.5), 1.0)
    return max(default, wanted) if len(ordered) < fewest or allowed == 0 else wanted
