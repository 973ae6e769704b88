"""How lists of words are written in this package: as one text with blanks between."""

from __future__ import annotations


def listed(text: str) -> frozenset[str]:
    """The words of the text."""
    return frozenset(text.split())
