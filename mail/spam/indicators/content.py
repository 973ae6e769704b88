"""What a message says and how it hides it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from mail.spam.brands import scripts
from mail.spam.indicators.table import found
from mail.spam.indicators.wording import wording
from mail.spam.typography import MAX_TEXT
from mail.spam.verdict import Indicator
from mail.spam.view import View

MAX_LOOKED_AT = 20_000
"""Characters of the shown text that are searched."""
_INVISIBLE = re.compile(r"(?<=[^\W\d_])[\u200b\u2060\u00ad\ufeff\u180e\u2061-\u2064]+(?=[^\W\d_])")
_ANY_INVISIBLE = re.compile(r"[\u200b\u2060\u00ad\ufeff\u180e\u2061-\u2064]")
_ALIKE = re.compile(r"[\u0370-\u03ff\u0400-\u04ff]")
_FOREIGN_WORD = re.compile(r"(?=[^\W\d_]*[^\x00-\x7f])(?<![^\W\d_])[^\W\d_]{4,40}")
_SIGNED = re.compile(r"[a-zA-Z][0-9!|@$][a-zA-Z]")
_GAPPED = re.compile(r"\b(?:[a-zA-Z][ ._*\-/]){5,}[a-zA-Z]\b")
_KNOWN_DISGUISED = re.compile(  # a letter first and then whether a word begins there: so the search skips what is none of these
    r"[vcxrmpVCXRMP](?<!\w.)(?=[a-zA-Z]{0,7}[0-9!|@$])(?i:(?<=v)[i1l!|]+[a@4]+gr[a@4]|(?<=c)[i1!|l][a@4][l1!|]+[i1!|]s"
    r"|(?<=x)[a@4]n[a@4]x|(?<=v)[a@4]l[i1!|]um|(?<=r)[o0]l[e3]x|(?<=m)[o0]rtg[a@4]g[e3]|(?<=p)[e3]n[i1!|]s|(?<=p)h[a@4]rm[a@4]cy)",
    re.DOTALL,
)


def content(view: View, words_met: frozenset[bytes]) -> Iterator[Indicator]:
    """Of the page, the words and their letters."""
    text = view.shown[:MAX_LOOKED_AT]
    words = f"{view.subject}\n{text}"
    if view.html:
        yield from _page(view)
    if not words.isascii():
        yield from _letters(words)
    yield from _disguises(words, view.odd)
    yield from wording(words, words_met, bool(view.urls))
    letters = [char for char in view.subject if char.isalpha()]
    if len(letters) >= 10 and all(char.isupper() for char in letters) and letters[0].lower() != letters[0]:
        yield found("shouting_subject", view.subject)


def _page(view: View) -> Iterator[Indicator]:
    page = view.page
    hidden = " ".join(page.hidden.split())
    if len(hidden) > 150 or (len(hidden) > 20 and len(hidden) > len(page.text)):
        yield found("hidden_text", hidden)
    if page.has_password:
        yield found("password_field")
    elif page.forms and page.inputs:
        yield found("form_in_mail", page.forms[0])
    if page.has_script:
        yield found("script_in_mail")
    if page.refreshes:
        yield found("refresh_in_mail")
    if page.images and len(page.text.split()) < 12 and len(view.text.split()) < 12:
        yield found("image_only", f"{len(page.images)} pictures")
    if page.split_words >= 5:
        yield found("split_words", f"{page.split_words} times")


def _letters(words: str) -> Iterator[Indicator]:
    invisible = _INVISIBLE.findall(words) if _ANY_INVISIBLE.search(words) else []
    soft = sum("\u00ad" in each for each in invisible)
    if len(invisible) - soft >= 3 or soft >= 30:
        yield found("zero_width_characters", f"{len(invisible)} times")
    mixed = list(islice(filter(_is_mixed, map(re.Match.group, _FOREIGN_WORD.finditer(words))), 3)) if _ALIKE.search(words) else []
    if len(mixed) >= 2 or (mixed and mixed[0] in words[:200]):
        yield found("mixed_script_words", " ".join(mixed))


def _is_mixed(word: str) -> bool:
    alphabets = scripts(word)
    return "LATIN" in alphabets and bool(alphabets & {"CYRILLIC", "GREEK"})


def _disguises(words: str, odd: dict[str, int]) -> Iterator[Indicator]:
    words = words[:MAX_TEXT]
    disguised = _KNOWN_DISGUISED.search(words) if odd.get("leet") or _SIGNED.search(words[:100]) else None
    gapped = _GAPPED.search(words) if odd.get("dotted") else None
    if disguised is not None:
        yield found("obfuscated_words", disguised.group())
    elif gapped is not None:
        yield found("obfuscated_words", gapped.group())
