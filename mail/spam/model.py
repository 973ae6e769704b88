"""The shared model: one small weight for each hashed feature, in a file that is checked before it is believed."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHIPPED = Path(__file__).with_name("model.bin")
_MAGIC = b"MAILROOM-SPAM-1\n"
_DIGEST = 32


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """`table` holds 2**bits weights of 8 bits for each group of features; `scales` turns them into logits.

    `slope` and `offset` calibrate the raw score, `threshold` is the default one for the calibrated score.
    """

    table: NDArray[np.int8]
    bits: int
    scales: tuple[float, ...]
    bias: float
    slope: float
    offset: float
    threshold: float
    name: str

    def logit(self, groups: list[NDArray[np.uint32]]) -> float:
        """The raw score: for each group the sum of its weights over the root of how many features it has."""
        return self.weigh(groups)[0]

    def weigh(self, groups: list[NDArray[np.uint32]]) -> tuple[float, NDArray[np.float64]]:
        """The raw score, and what each feature of the weighed groups adds to it, one group after the other."""
        used = groups[: len(self.scales)]
        sizes = [len(each) for each in used]
        if not any(sizes):
            return self.bias, np.empty(0)
        hashes = np.concatenate(used)
        places = hashes & np.uint32((1 << self.bits) - 1)
        places |= hashes >> np.uint32(29) << np.uint32(self.bits)
        weights = self.table.ravel().take(places)
        starts = [end - size for end, size in zip(accumulate(sizes), sizes, strict=True) if size]
        sums = iter(np.add.reduceat(weights, starts, dtype=np.int64).tolist())
        total, shares = self.bias, []
        for size, scale in zip(sizes, self.scales, strict=False):
            root = math.sqrt(size or 1)
            shares.append(scale / root)
            total += scale * next(sums) / root if size else 0.0
        return total, weights * np.repeat(shares, sizes)

    def probability(self, logit: float) -> float:
        """The calibrated probability of a raw score (Platt)."""
        return sigmoid(self.slope * logit + self.offset)

    def to_bytes(self) -> bytes:
        """The file: a line that names it, one of JSON, the packed weights, and SHA-256 over all of them."""
        facts = {key: getattr(self, key) for key in ("bits", "scales", "bias", "slope", "offset", "threshold", "name")}
        data = _MAGIC + json.dumps(facts, sort_keys=True).encode() + b"\n" + zlib.compress(self.table.tobytes(), 9)
        return data + hashlib.sha256(data).digest()


def sigmoid(value: float) -> float:
    """1 / (1 + e**-value) without overflow."""
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def load_model(path: Path = SHIPPED) -> Model | None:
    """The model in a file, or None when there is none or not a bit of it is as it was written. Read once."""
    return _load(path)


@lru_cache(maxsize=4)
def _load(path: Path) -> Model | None:
    try:
        return _read(path.read_bytes())
    except (OSError, ValueError, KeyError, TypeError, zlib.error):
        return None


def _read(data: bytes) -> Model | None:
    body, digest = data[:-_DIGEST], data[-_DIGEST:]
    if not body.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        return None
    line, _, packed = body[len(_MAGIC) :].partition(b"\n")
    facts: dict[str, Any] = json.loads(line)
    table = np.frombuffer(zlib.decompress(packed), np.int8).reshape(len(facts["scales"]), 1 << facts["bits"])
    return Model(table=table, **{**facts, "scales": tuple(facts["scales"])})
