"""Messages made here, from a number: what people want today, and what they do not.

The old corpora hold no receipts, notifications or invitations, and little phishing; a model that never saw them takes every modern mail
for spam. These are filled with names that belong to nobody, so that weights learned from them may ship.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.spam.made_unwanted import UNWANTED
from bench.spam.made_wanted import WANTED
from bench.spam.pen import Pen, sealed


def make(count: int, seed: int, without: Sequence[str] = ()) -> list[tuple[bytes, bool]]:
    """(message, is spam), half of each; families named in `without` are left out. The same numbers give the same bytes."""
    made = []
    for number in range(count):
        is_spam = number % 2 == 1
        families = [each for each in (UNWANTED if is_spam else WANTED) if each.__name__ not in without]
        pen = Pen(seed * 1_000_003 + number)
        made.append((sealed(pen, families[number // 2 % len(families)](pen)), is_spam))
    return made


def family(number: int) -> str:
    """The name of the template of a message of `make` without exceptions."""
    families = UNWANTED if number % 2 else WANTED
    return families[number // 2 % len(families)].__name__


def main() -> None:
    """Write them as a corpus directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    for number, (message, is_spam) in enumerate(make(chosen.count, chosen.seed)):
        folder = chosen.directory / ("spam" if is_spam else "ham")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"made-{family(number)}-{number:05d}.eml").write_bytes(message)


if __name__ == "__main__":
    main()
