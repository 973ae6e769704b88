"""The body of a message as tokens that mean the same at any site: parts, markup, links and typography, never names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice, repeat

from mail.spam.links import read_target
from mail.spam.page import Page
from mail.spam.shapes import bucket
from mail.spam.typography import MAX_TEXT
from mail.spam.view import View

MAX_TAGS = 120
"""Tags whose attributes are looked at."""
MAX_LINKS = 40

_WROTE = re.compile(r"(?:wrote|writes|schrieb|écrit|escribió|said):?[ \t]*$", re.MULTILINE)
_WROTE_WORDS = ("wrote", "writes", "schrieb", "écrit", "escribió", "said")
_CODE = re.compile(r"^(?:[+-]{3} |@@ |#include|def |import |diff |\$ |[{}]\s*$)", re.MULTILINE)
_CODE_STARTS = ("+", "---", "-+", "--+", "@@ ", "#include", "def ", "import ", "diff ", "$ ", "{", "}")
"""Patterns tried at every place of a text take long: these say of a text where one may be."""
_BOUNDARY = re.compile(r"boundary=\"?([^\";]+)", re.IGNORECASE)
_LETTERS, _DIGITS = re.compile(r"[a-zA-Z]+"), re.compile(r"[0-9]+")
_NAME_SIGNS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-"
_LONGEST_STYLE = 24
_ONE_PIXEL = re.compile(r"(?:width|height)\s*=\s*[\"']?[01]\b", re.IGNORECASE)
_SOURCE = re.compile(r"src\s*=\s*[\"']?\s*(cid:|https?:|data:)?", re.IGNORECASE)
_PATH_WORD = re.compile(r"[a-z]{3,12}")


def body_tokens(view: View) -> Iterator[str]:
    """All tokens of a body; some come more than once."""
    yield from _parts(view)
    yield from _lines(view.text[:MAX_TEXT])
    yield from _typography(view.shown[:MAX_TEXT], view.odd)
    if view.html:
        yield from _page(view.page, view.html)
        yield from _markup(view.page)
    yield from _links(view)


def _parts(view: View) -> Iterator[str]:
    kinds = [leaf.content_type for leaf in view.leaves[:12]]
    head = view.first("content-type")
    yield f"top:{head.partition(';')[0].strip().lower()[:30] or 'none'}"
    yield f"parts:{','.join(kinds[:6])}"
    for kind in kinds:
        yield f"part:{kind}"
    for leaf in view.attachments[:8]:
        yield f"file:{leaf.filename.rpartition('.')[2].lower()[:6] if '.' in leaf.filename else 'none'}"
        yield f"disposition:{leaf.disposition}"
    boundary = _BOUNDARY.search(head)
    if boundary is not None:
        mark = boundary.group(1)[:80]
        yield f"boundary:{_LETTERS.sub('a', _DIGITS.sub('0', mark))[:16]}"
    if head and "mime-version" not in view.names:
        yield "mime:unversioned"
    for defect in sorted(view.defects):
        yield f"defect:{defect}"
    if not view.text and not view.html:
        yield "body:empty"


def _lines(text: str) -> Iterator[str]:
    """How a plain text is set: quotes, long and empty lines."""
    lines = text.splitlines()
    yield f"quoted:{bucket(sum(map(str.startswith, lines, repeat(('>', '|')))))}"
    if not lines:
        return
    yield f"longest:{bucket(max(map(len, lines)))}"
    yield f"blank:{[*map(str.strip, lines)].count('') * 8 // len(lines)}"
    yield f"trailing:{sum(map(str.endswith, lines, repeat(' '))) * 4 // len(lines)}"
    if any(word in text for word in _WROTE_WORDS) and _WROTE.search(text):
        yield "wrote"
    if any(map(str.startswith, lines, repeat(_CODE_STARTS))) and _CODE.search(text):
        yield "code"


def _typography(text: str, odd: dict[str, int]) -> Iterator[str]:
    for name, count in odd.items():
        if count:
            yield f"{name}:{bucket(count)}"
    if not text.isascii():
        yield f"foreign:{bucket((len(text.encode('utf-8', 'replace')) - len(text)) * 100 // len(text))}"
    for mark in "!$%*_?;":
        count = text.count(mark)
        if count:
            yield f"mark:{mark}:{bucket(count * 1000 // len(text))}"


def _page(page: Page, html: str) -> Iterator[str]:
    yield f"ratio:{len(page.text) * 10 // (len(html) + 1)}"
    yield f"tags:{bucket(len(page.tags))}"
    yield f"first:{'>'.join(name for name, _ in page.tags[:3])[:30]}"
    yield f"images:{bucket(len(page.images))}"
    if page.images and len(page.text.split()) < 20:
        yield "image-only"
    if page.hidden.strip():
        yield f"hidden:{bucket(len(page.hidden))}"
    if page.comments:
        yield f"comments:{bucket(page.comments)}"
    if page.split_words:
        yield f"split:{bucket(page.split_words)}"
    start = html[:2000].lower()
    flags = (
        (page.forms, "form"), (page.inputs, "inputs"), (page.has_script, "script"), (page.refreshes, "refresh"), ("<html" in start, "html"),
        ("<!doctype" in start, "doctype"), ("&#" in html, "entity"), ("&nbsp;" in html, "nbsp"), ("<meta" in start, "meta"),
        ("mso-" in html, "mso"), ("<HTML" in html or "<BODY" in html, "upper"),
    )  # fmt: skip
    yield from (f"page:{name}" for flag, name in flags if flag)


def _markup(page: Page) -> Iterator[str]:
    for name, rest in dict.fromkeys(page.tags[:MAX_TAGS]):
        if rest:
            for each in islice(_names_before("=", rest, 1), 6):
                yield f"attr:{name}.{each}"[:30]
            if "tyle" in rest or "TYLE" in rest:
                for each in islice(_names_before(":", rest, 3), 8):
                    yield f"style:{each[-_LONGEST_STYLE:]}"
    for image in dict.fromkeys(page.images[:20]):
        source = _SOURCE.search(image)
        yield f"src:{(source.group(1) or 'other').lower()[:4] if source is not None else 'none'}"
        if _ONE_PIXEL.search(image):
            yield "pixel"


def _names_before(sign: str, text: str, least: int) -> Iterator[str]:
    """The names of at least so many letters that stand before a sign, in lower case."""
    for piece in text.split(sign)[:-1]:
        said = piece.rstrip()
        length = len(said) - len(said.rstrip(_NAME_SIGNS))
        if length >= least:
            yield said[-length:].lower()


def _links(view: View) -> Iterator[str]:
    for url in view.urls[:MAX_LINKS]:
        target = read_target(url)
        if not target.host:
            continue
        yield f"path:{bucket(target.path.count('/'))}:{bucket(len(target.path))}"
        org = target.organisation
        yield f"hostlen:{bucket(len(org))}:{'digits' if any(char.isdigit() for char in org) else ''}"
        if target.query:
            yield f"query:{bucket(len(target.query))}"
        for word in _PATH_WORD.findall(target.path.lower())[:4]:
            yield f"pathword:{word}"
