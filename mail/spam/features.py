"""A message as sets of hashed features: what the model weighs and what a tenant learns from. No text can be read from them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, repeat
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from mail.spam.forms import body_tokens
from mail.spam.shapes import header_tokens
from mail.spam.view import View
from mail.spam.wordlists import listed

Hashes = NDArray[np.uint32]

GROUPS = ("start", "body", "head", "form", "words", "site")
"""The number of a group is in the three highest bits of its hashes. `site` is for tenants only: names that mean nothing elsewhere."""
START = 1500
"""Bytes of the body as it was sent that are read as runs of characters."""
BODY = 6000
"""Bytes of the shown text that are read as runs of characters and as words."""
_RUN = 4
_MASK = np.uint32((1 << 29) - 1)

_LOWER = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ123456789", b"abcdefghijklmnopqrstuvwxyz000000000")
_URL = re.compile(rb"(?:https?://|www\.)[^\s<>\"')\]]+")
_ADDRESS = re.compile(rb"[\w.+=-]{1,64}@[\w.-]+")
_WORD = re.compile(rb"[a-z0\x80-\xff$']{2,24}")
_NEVER_THE_SAME = listed(
    "date subject dkim-signature arc-seal arc-message-signature message-id references in-reply-to x-google-dkim-signature content-type"
)
_SITE_WORD = re.compile(rb"[A-Za-z][\w.@-]{3,40}")


@dataclass(slots=True)
class Features:
    """For each of GROUPS its hashes, sorted, each once; and what they were made of, to name the few that matter."""

    groups: list[Hashes] = field(default_factory=lambda: [np.empty(0, np.uint32)] * len(GROUPS))
    tokens: list[Sequence[bytes]] = field(default_factory=lambda: [()] * len(GROUPS))
    runs: list[bytes] = field(default_factory=lambda: [b""] * 2)
    words: frozenset[bytes] = frozenset()
    """Those of subject and text, as `normal` has them."""

    def to_bytes(self, first: int = 0) -> bytes:
        """Those of all groups from this one on, little-endian, sorted."""
        return np.concatenate(self.groups[first:]).astype("<u4").tobytes()

    def name_of(self, group: int, wanted: int) -> str:
        """What a hash stands for in this message: `head:no:date`, `body:viag`."""
        if group < 2:
            data = self.runs[group]
            places = np.flatnonzero(_run_hashes(data, group) == wanted)
            text = data[places[0] : places[0] + _RUN] if len(places) else b"?"
        else:
            text = next((each for each in self.tokens[group] if _token_hash(each, group) == wanted), b"?")
        return f"{GROUPS[group]}:{text.decode('utf-8', 'replace')}"


def split_groups(hashes: bytes) -> list[Hashes]:
    """The groups again from `Features.to_bytes`."""
    found = np.frombuffer(hashes, "<u4").astype(np.uint32)
    ends = np.searchsorted(found, [group << 29 for group in range(1, len(GROUPS))])
    return np.split(found, ends)


def read_features(view: View) -> Features:
    """All groups of a message."""
    features = Features()
    subject, body = normal(view.subject), normal(view.shown[:BODY])
    features.runs = [_start(view), b" ".join(body.split())]
    head, told = _WORD.findall(subject), frozenset(_WORD.findall(body))
    features.words = told.union(head)
    features.tokens = [
        (),
        (),
        [token.encode("utf-8", "replace") for token in header_tokens(view)],
        [token.encode("utf-8", "replace") for token in body_tokens(view)],
        [*(b"s " + word for word in head), *_pairs(head), *told],
        _site(view),
    ]
    for group, data in enumerate(features.runs):
        features.groups[group] = _unique(_run_hashes(data, group))
    for group in range(2, len(GROUPS)):
        features.groups[group] = _hashed(features.tokens[group], group)
    return features


def normal(text: str) -> bytes:
    """Lower case, every digit a 0, every link `~u` and every address `~a`."""
    data = text.encode("utf-8", "replace").translate(_LOWER)
    if b"http" in data or b"www." in data:
        data = _URL.sub(b" ~u ", data)
    return _ADDRESS.sub(b" ~a ", data) if b"@" in data else data


def _start(view: View) -> bytes:
    return view.start[:START].translate(_LOWER)


def _pairs(words: list[bytes]) -> list[bytes]:
    return [b"s %b %b" % pair for pair in pairwise(words)]


def _site(view: View) -> list[bytes]:
    """Names and words of the header: hosts, lists, programs of this site and its correspondents."""
    kept = [(name.lower(), value) for name, value in view.headers[:60]]
    kept = [(name, value) for name, value in kept if name not in _NEVER_THE_SAME]
    said = " ".join([value[:400] for _, value in kept]).encode("utf-8", "replace")
    return [*(name[:40].encode("ascii", "replace") for name, _ in kept), *_SITE_WORD.findall(said)][:1000]


def _token_hash(token: bytes, group: int) -> int:
    return (crc32(token, group) & 0x1FFFFFFF) | group << 29


def _hashed(tokens: Sequence[bytes], group: int) -> Hashes:
    if not tokens:
        return np.empty(0, np.uint32)
    hashes = np.array(list(map(crc32, set(tokens), repeat(group))), np.uint32)
    return _unique((hashes & _MASK) | np.uint32(group << 29))


def _unique(hashes: Hashes) -> Hashes:
    """As np.unique, in a third of its time."""
    hashes.sort()
    return hashes[np.append(True, hashes[1:] != hashes[:-1])] if len(hashes) else hashes


def _run_hashes(data: bytes, group: int) -> Hashes:
    """One for each position: FNV-like over _RUN bytes, with the high bits mixed in."""
    if len(data) < _RUN:
        return np.empty(0, np.uint32)
    values = np.frombuffer(data, np.uint8).astype(np.uint32)
    words = values[:-3] | values[1:-2] << np.uint32(8) | values[2:-1] << np.uint32(16) | values[3:] << np.uint32(24)
    words = (words ^ words >> np.uint32(15)) * np.uint32(0x2C1B3C6D)
    words = (words ^ words >> np.uint32(12)) * np.uint32(0x297A2D39)
    hashes: Hashes = ((words ^ words >> np.uint32(15)) & _MASK) | np.uint32(group << 29)
    return hashes
