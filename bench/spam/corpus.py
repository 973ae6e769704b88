"""Labelled messages in a directory with ham/, spam/ and phishing/ of `<source>-<id>.eml`, and the features of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.spam.learner import Rows
from mail.spam.features import GROUPS, read_features, split_groups
from mail.spam.view import read_view

KINDS = ("ham", "spam", "phishing")
_ID = re.compile(r"(.*?)-(?:(.*)-)?(\d+)$")


@dataclass(frozen=True)
class Letter:
    """One message on disk: its source (`sa`), the part of it (`easyham1`), and its number there, which is the order of time."""

    path: Path
    kind: str
    source: str
    part: str
    number: int


@dataclass(frozen=True)
class Corpus:
    """Messages and what the check makes of them: `groups[i][g]` are the hashes of group g of message i."""

    letters: Sequence[Letter]
    groups: Sequence[Sequence[NDArray[np.uint32]]]

    @property
    def is_spam(self) -> NDArray[np.bool_]:
        """Phishing counts as spam."""
        return np.array([letter.kind != "ham" for letter in self.letters], bool)

    @property
    def sources(self) -> NDArray[np.str_]:
        """Of each message."""
        return np.array([letter.source for letter in self.letters])

    def where(self, chosen: NDArray[np.bool_]) -> Corpus:
        """Some of them."""
        places = np.flatnonzero(chosen).tolist()
        return Corpus([self.letters[place] for place in places], [self.groups[place] for place in places])

    def __add__(self, other: Corpus) -> Corpus:
        return Corpus([*self.letters, *other.letters], [*self.groups, *other.groups])

    def __len__(self) -> int:
        return len(self.letters)


def find_letters(directory: Path, kinds: Iterable[str] = KINDS) -> list[Letter]:
    """All messages there, sorted."""
    found = []
    for kind in kinds:
        for path in sorted((directory / kind).glob("*.eml")):
            match = _ID.fullmatch(path.stem)
            source, part, number = (match.group(1), match.group(2) or "", int(match.group(3))) if match else (path.stem, "", 0)
            found.append(Letter(path, kind, source, part, number))
    return found


def hashes_of(source: bytes) -> bytes:
    """The features of one message as bytes, which travel well between processes."""
    return read_features(read_view(source)).to_bytes()


def _hashes_at(path: Path) -> bytes:
    return hashes_of(path.read_bytes())


def read_corpus(directory: Path, kinds: Iterable[str] = KINDS, processes: int = 2) -> Corpus:
    """Reads all messages of a directory and their features."""
    letters = find_letters(directory, kinds)
    with ProcessPoolExecutor(processes) as pool:
        hashed = pool.map(_hashes_at, [letter.path for letter in letters], chunksize=64)
        return Corpus(letters, [split_groups(each) for each in hashed])


def corpus_of(messages: Sequence[tuple[bytes, bool]], source: str) -> Corpus:
    """Messages in memory, each with whether it is spam."""
    letters = [
        Letter(Path(f"{source}-{number}"), "spam" if is_spam else "ham", source, "", number) for number, (_, is_spam) in enumerate(messages)
    ]
    return Corpus(letters, [split_groups(hashes_of(message)) for message, _ in messages])


def rows_of(corpus: Corpus, group: int, bits: int, value: float = 1.0) -> Rows:
    """The features of one group as rows: of n features each has value / sqrt(n)."""
    mask = np.uint32((1 << bits) - 1)
    lists = [groups[group] & mask for groups in corpus.groups]
    sizes = np.array([len(each) for each in lists])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    columns = np.concatenate(lists).astype(np.int64) if lists else np.empty(0, np.int64)
    values = np.repeat(value / np.sqrt(np.maximum(sizes, 1)), sizes).astype(np.float32)
    return Rows(columns, values, starts, 1 << bits)


__all__ = ["GROUPS", "KINDS", "Corpus", "Letter", "corpus_of", "find_letters", "hashes_of", "read_corpus", "rows_of"]
