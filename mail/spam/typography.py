"""Odd places in a text, counted over all its characters at once."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

MAX_TEXT = 8_000
"""Characters that are looked at."""
_VOWELS, _CONSONANTS = b"aeiouyAEIOUY", b"bcdfghjklmnpqrstvwxzBCDFGHJKLMNPQRSTVWXZ"


def _classes(**classes: bytes) -> bytes:
    """A table that turns each byte of a class into the class's name, and every other into a blank."""
    table = bytearray(b" " * 256)
    for name, members in classes.items():
        for byte in members:
            table[byte] = ord(name)
    return bytes(table)


_HARD = _classes(c=_CONSONANTS)
_SET = _classes(a=_VOWELS + _CONSONANTS, s=b"0123456789@|!$", g=b" ._*-/")
_DIALLED = _classes(d=b"0123456789?", g=b"-. ")
"""A question mark may stand for a digit of another script, here and in the next."""
_AMOUNTS = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ123456789?", b"abcdefghijklmnopqrstuvwxyz0000000000")
_SIGN, _LETTER, _GAP = b"sag"
_MONEY = re.compile(r"[$£€] ?\d|\b(?:usd|eur|gbp|USD|EUR|GBP) ?\d|\d (?:usd|USD|dollars|euros?)\b")
_SIGNS = ("$", "£", "€")
_CODES = (b"usd", b"eur", b"gbp", b"0 dollars")
_WORDS_FOR_MONEY = (b"usd0", b"usd 0", b"eur0", b"eur 0", b"gbp0", b"gbp 0", b"0 usd", b"0 eur", b"0 dollars")
_PHONE = re.compile(r"\d{3}\)?[-. ]\d{3}[-. ]\d{4}\b")


def oddities(text: str) -> dict[str, int]:
    """How often there are five consonants in a row, signs inside words, letters with gaps between them, sums, telephone numbers."""
    text = text[:MAX_TEXT]
    data = text.encode("ascii", "replace")
    return {**_pattern_counts(data), "money": _sums(text, data), "phone": _telephones(text, data)}


def _pattern_counts(data: bytes) -> dict[str, int]:
    """A pattern is looked for as bytes first, and counted only where it is."""
    found = {"gibberish": 0, "leet": 0, "dotted": 0}
    hard, kinds = data.translate(_HARD), data.translate(_SET)
    if b"ccccc" in hard:
        pairs = (consonants := _is(hard, ord("c")))[:-1] & consonants[1:]
        found["gibberish"] = int(np.count_nonzero(pairs[:-3] & pairs[2:-1] & consonants[4:]))
    if b"asa" in kinds:
        letter = _is(kinds, _LETTER)
        found["leet"] = int(np.count_nonzero(letter[:-2] & _is(kinds, _SIGN)[1:-1] & letter[2:]))
    if b"gagagag" in kinds:
        letter, gap = _is(kinds, _LETTER), _is(kinds, _GAP)
        alone = gap[:-2] & letter[1:-1] & gap[2:]
        found["dotted"] = int(np.count_nonzero(alone[:-4] & alone[2:-2] & alone[4:]))
    return found


def _is(kinds: bytes, kind: int) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.frombuffer(kinds, np.uint8) == kind
    return found


def _sums(text: str, data: bytes) -> int:
    """The pattern that finds words for money takes long: it is only tried where one is beside a digit."""
    amounts = data.translate(_AMOUNTS)
    if any(code in amounts for code in _CODES) and any(each in amounts for each in _WORDS_FOR_MONEY):
        return len(_MONEY.findall(text))
    return sum(_begins_with_digit(each) for sign in _SIGNS if sign in text for each in text.split(sign)[1:])


def _begins_with_digit(text: str) -> bool:
    return text[text[:1] == " " :][:1].isdecimal()


def _telephones(text: str, data: bytes) -> int:
    return len(_PHONE.findall(text)) if b"dddgdddd" in data.translate(_DIALLED) else 0
