"""Odd places in a text, counted over all its characters at once."""

from __future__ import annotations

import re

import numpy as np

MAX_TEXT = 8_000
"""Characters that are looked at."""
_VOWEL, _CONSONANT, _SIGN, _GAP = 1, 2, 4, 8
_CLASSES = np.zeros(256, np.uint8)
for _letters, _class in (
    (b"aeiouyAEIOUY", _VOWEL),
    (b"bcdfghjklmnpqrstvwxzBCDFGHJKLMNPQRSTVWXZ", _CONSONANT),
    (b"0123456789@|!$", _SIGN),
    (b" ._*-/", _GAP),
):
    _CLASSES[list(_letters)] = _class
_MONEY = re.compile(r"[$£€] ?\d|\b(?:usd|eur|gbp|USD|EUR|GBP) ?\d|\d (?:usd|USD|dollars|euros?)\b")
_CURRENCIES = ("$", "£", "€", "usd", "USD", "eur", "EUR", "gbp", "GBP", "dollars", "euro")
_PHONE = re.compile(r"\d{3}\)?[-. ]\d{3}[-. ]\d{4}\b")


def oddities(text: str) -> dict[str, int]:
    """How often there are five consonants in a row, signs inside words, letters with gaps between them, sums, telephone numbers."""
    text = text[:MAX_TEXT]
    found = {"gibberish": 0, "leet": 0, "dotted": 0, "money": 0, "phone": 0}
    kinds = _CLASSES[np.frombuffer(text.encode("ascii", "replace"), np.uint8)]
    if len(kinds) > 9:
        hard, letter, gap = kinds == _CONSONANT, (kinds & 3) > 0, kinds == _GAP
        found["gibberish"] = int(np.count_nonzero(hard[:-4] & hard[1:-3] & hard[2:-2] & hard[3:-1] & hard[4:]))
        found["leet"] = int(np.count_nonzero(letter[:-2] & (kinds[1:-1] == _SIGN) & letter[2:]))
        alone = gap[:-2] & letter[1:-1] & gap[2:]
        found["dotted"] = int(np.count_nonzero(alone[:-4] & alone[2:-2] & alone[4:]))
    if any(each in text for each in _CURRENCIES):
        found["money"] = sum(1 for _ in _MONEY.finditer(text))
    found["phone"] = sum(1 for _ in _PHONE.finditer(text))
    return found
