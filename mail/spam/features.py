"""A message as sets of hashed features: what the model weighs and what a tenant learns from. No text can be read from them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise, repeat
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
_ENDS = np.arange(1, len(GROUPS), dtype=np.uint32) << np.uint32(29)
"""Where in sorted hashes the next group begins."""

_LOWER = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ123456789", b"abcdefghijklmnopqrstuvwxyz000000000")
_URL = re.compile(rb"(?:https?://|www\.)[^\s<>\"')\]]+")
_LOCAL_PART, _AT_DOMAIN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+=-", re.compile(rb"@[\w.-]+")
_MAX_LOCAL_PART = 64
_WORD = re.compile(rb"[a-z0\x80-\xff$']{2,24}")
_LONGEST_WORD = 24
_ONLY_WORDS = bytes(byte if _WORD.fullmatch(bytes([byte] * 2)) else 0x20 for byte in range(256))
_ONE_LETTER = frozenset(bytes([byte]) for byte in range(256))
_NEVER_THE_SAME = listed(
    "date subject dkim-signature arc-seal arc-message-signature message-id references in-reply-to x-google-dkim-signature content-type"
)
_SITE_WORD = re.compile(rb"[A-Za-z][\w.@-]{3,40}")


@dataclass(slots=True)
class Features:
    """For each of GROUPS its hashes, sorted, each once; and what they were made of, to name the few that matter."""

    groups: list[Hashes] = field(default_factory=lambda: [np.empty(0, np.uint32)] * len(GROUPS))
    tokens: list[Sequence[bytes]] = field(default_factory=lambda: [()] * len(GROUPS))
    """Each once, in the order in which they were met; the first two groups have `runs` instead."""
    runs: list[bytes] = field(default_factory=lambda: [b""] * 2)
    unsorted: list[Hashes] = field(default_factory=list)
    """The hash of each place of `runs`, and of each of `tokens`."""
    words: frozenset[bytes] = frozenset()
    """Those of subject and text, as `normal` has them."""

    def to_bytes(self, first: int = 0) -> bytes:
        """Those of all groups from this one on, little-endian, sorted."""
        return np.concatenate(self.groups[first:]).astype("<u4").tobytes()

    def names_at(self, places: Sequence[int]) -> list[str]:
        """What hashes stand for in this message, by their places among those of all groups: `head:no:date`, `body:viag`."""
        starts = [0, *accumulate(map(len, self.groups))]
        return [self._name(group := bisect_right(starts, place) - 1, place - starts[group]) for place in places]

    def _name(self, group: int, place: int) -> str:
        place = int((self.unsorted[group] == self.groups[group][place]).argmax())
        text = self.runs[group][place : place + _RUN] if group < len(self.runs) else self.tokens[group][place]
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
    head, told = words_of(subject), _vocabulary(body)
    features.words = told.union(head)
    features.tokens = [
        (),
        (),
        _encoded(dict.fromkeys(header_tokens(view))),
        _encoded(dict.fromkeys(body_tokens(view))),
        [*dict.fromkeys([*(b"s " + word for word in head), *_pairs(head)]), *told],
        [*dict.fromkeys(_site(view))],
    ]
    features.unsorted = [*(_run_hashes(data, group) for group, data in enumerate(features.runs)), *_hashed(features.tokens[2:], 2)]
    features.groups = _sorted(features.unsorted)
    return features


def normal(text: str) -> bytes:
    """Lower case, every digit a 0, every link `~u` and every address `~a`."""
    data = text.encode("utf-8", "replace").translate(_LOWER)
    if b"http" in data or b"www." in data:
        data = _URL.sub(b" ~u ", data)
    return _without_addresses(data) if b"@" in data else data


def _without_addresses(data: bytes) -> bytes:
    """From each @ to both sides: a pattern for the whole address would be tried at every letter of the text."""
    pieces, position = [], 0
    for match in _AT_DOMAIN.finditer(data):
        before = data[position : match.start()]
        local = min(len(before) - len(before.rstrip(_LOCAL_PART)), _MAX_LOCAL_PART)
        if local:
            pieces += [before[:-local], b" ~a "]
            position = match.end()
    return b"".join([*pieces, data[position:]])


def words_of(data: bytes) -> list[bytes]:
    """The words of a text as `normal` has it, in order: 2 to 24 letters, longer ones in pieces."""
    found = data.translate(_ONLY_WORDS).split()
    if max(map(len, found), default=0) > _LONGEST_WORD:
        return _WORD.findall(data)
    return [word for word in found if len(word) > 1]


def _vocabulary(data: bytes) -> frozenset[bytes]:
    """The words of a text, each once: most come more than once, and only one of each is looked at."""
    found = frozenset(data.translate(_ONLY_WORDS).split())
    if max(map(len, found), default=0) > _LONGEST_WORD:
        return frozenset(_WORD.findall(data))
    return found - _ONE_LETTER


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


def _encoded(tokens: Iterable[str]) -> list[bytes]:
    """Each of them in UTF-8; all at once where none holds the sign that is put between."""
    texts = list(tokens)
    found = "\0".join(texts).encode("utf-8", "replace").split(b"\0")
    return found if len(found) == len(texts) else [text.encode("utf-8", "replace") for text in texts]


def _hashed(groups: Sequence[Sequence[bytes]], first: int) -> list[Hashes]:
    """The hash of each token, by group; `first` is the number of the first of these groups."""
    numbers = range(first, first + len(groups))
    codes = chain.from_iterable(map(crc32, tokens, repeat(group)) for group, tokens in zip(numbers, groups, strict=True))
    hashes = np.array(list(codes), np.uint32)
    hashes &= _MASK
    found, start = [], 0
    for group, tokens in zip(numbers, groups, strict=True):
        found.append(hashes[start : start + len(tokens)])
        found[-1] |= np.uint32(group << 29)
        start += len(tokens)
    return found


def _sorted(groups: list[Hashes]) -> list[Hashes]:
    """Each group sorted, each hash once: all in one go, as the group is the highest bits."""
    hashes: Hashes = np.concatenate(groups)
    hashes.sort()
    is_new = np.empty(len(hashes), bool)
    is_new[:1] = True
    np.not_equal(hashes[1:], hashes[:-1], out=is_new[1:])
    hashes = hashes[is_new]
    ends = [0, *hashes.searchsorted(_ENDS).tolist(), len(hashes)]
    return [hashes[start:end] for start, end in pairwise(ends)]


def _run_hashes(data: bytes, group: int) -> Hashes:
    """One for each position: FNV-like over _RUN bytes, with the high bits mixed in."""
    if len(data) < _RUN:
        return np.empty(0, np.uint32)
    places = np.ndarray((len(data) - _RUN + 1,), "<u4", data, strides=(1,))  # at every byte, the four from there as one number
    words = places.astype(np.uint32)
    words ^= words >> np.uint32(15)
    words *= np.uint32(0x2C1B3C6D)
    words ^= words >> np.uint32(12)
    words *= np.uint32(0x297A2D39)
    words ^= words >> np.uint32(15)
    words &= _MASK
    words |= np.uint32(group << 29)
    return words
