"""The body of a message as tokens that mean the same at any site: parts, HTML, links and typography, never names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from mail.addresses import domain_of
from mail.spam.hops import organisation
from mail.spam.page import attributes
from mail.spam.shapes import bucket
from mail.spam.view import View

_GIBBERISH = re.compile(r"[bcdfghjklmnpqrstvwxz]{5,}", re.IGNORECASE)
_LEET = re.compile(r"\b[a-zA-Z]+[0-9@|!$][a-zA-Z0-9@|!$]*[a-zA-Z]\b")
_DOTTED = re.compile(r"\b(?:[a-zA-Z][ ._*\-/]){4,}[a-zA-Z]\b")
_INNER = re.compile(r"[a-z](?:[*_^`~|\\]|[.,;:!?](?=[a-z]{2}))[a-z]")
_CAPS = re.compile(r"\b[A-Z]{4,}\b")
_MONEY = re.compile(r"[$£€]\s?\d|\b(?:usd|eur|gbp|us\$)\s?\d|\d+\s?(?:usd|dollars|euros?)\b", re.IGNORECASE)
_PHONE = re.compile(r"\b(?:1[-. ])?\(?\d{3}\)?[-. ]\d{3}[-. ]\d{4}\b")
_WROTE = re.compile(r"^.{5,120}\b(?:wrote|writes|schrieb|écrit|escribió|said):?\s*$", re.MULTILINE)
_CODE = re.compile(r"^\s*(?:[+-]{3} |@@ |#include|def |import |diff |\$ |\w+\(.*\)\s*[;{]|[{}]\s*$)", re.MULTILINE)
_STYLE = re.compile(r"([a-z-]{3,24})\s*:", re.IGNORECASE)


def body_tokens(view: View) -> Iterator[str]:
    """Of parts, text, HTML and links."""
    yield from _parts(view)
    yield from _typography(view)
    if view.html:
        yield from _markup(view)
    yield from _links(view)


def _parts(view: View) -> Iterator[str]:
    kinds = [leaf.content_type for leaf in view.leaves[:12]]
    top = view.first("content-type").partition(";")[0].strip().lower()[:30] or "none"
    yield f"top:{top}"
    yield f"parts:{','.join(kinds[:6])}"
    for kind in set(kinds):
        yield f"part:{kind}"
    for leaf in view.leaves[:6]:
        yield f"charset:{leaf.content_type[:10]}:{(leaf.charset or 'none').lower()[:16]}"
    for leaf in view.attachments[:8]:
        extension = leaf.filename.rpartition(".")[2].lower()[:6] if "." in leaf.filename else "none"
        yield f"file:{extension}"
        yield f"disposition:{leaf.disposition}"
    boundary = re.search(r"boundary=\"?([^\";]+)", view.first("content-type"), re.IGNORECASE)
    if boundary:
        mark = boundary.group(1)
        yield f"boundary:{re.sub(r'[a-zA-Z]+', 'a', re.sub(r'[0-9]+', '0', mark))[:16]}"
        for word in re.findall(r"[A-Za-z]{3,}", mark)[:2]:
            yield f"boundaryword:{word[:10]}"
    if "content-type" in view.names and "mime-version" not in view.names:
        yield "mime:unversioned"
    for defect in view.defects:
        yield f"defect:{defect}"
    if not view.text and not view.html:
        yield "body:empty"


def _typography(view: View) -> Iterator[str]:
    text = view.shown[:16_000]
    size = len(text)
    yield f"len:{bucket(size)}"
    if not size:
        return
    words = text.split()
    yield f"words:{bucket(len(words))}"
    lines = view.text[:16_000].splitlines()
    quoted = sum(line.startswith((">", "|", ": ")) for line in lines)
    yield f"quoted:{bucket(quoted)}"
    if lines:
        yield f"longest:{bucket(max(map(len, lines)))}"
        yield f"blank:{sum(not line.strip() for line in lines) * 8 // len(lines)}"
        yield f"trailing:{sum(line.endswith(' ') for line in lines) * 4 // len(lines)}"
        if "-- " in lines or "--" in lines:
            yield "signature"
    for pattern, name in ((_WROTE, "wrote"), (_CODE, "code")):
        if pattern.search(view.text[:16_000]):
            yield name
    for pattern, name in (
        (_GIBBERISH, "gibberish"),
        (_LEET, "leet"),
        (_DOTTED, "dotted"),
        (_INNER, "inner"),
        (_CAPS, "caps"),
        (_MONEY, "money"),
        (_PHONE, "phone"),
    ):
        count = len(pattern.findall(text))
        if count:
            yield f"{name}:{bucket(count)}"
    letters = sum(map(str.isalpha, text))
    upper = sum(map(str.isupper, text))
    if letters:
        yield f"upper:{min(upper * 20 // letters, 10)}"
    yield f"letters:{letters * 10 // size}"
    if not text.isascii():
        yield f"foreign:{bucket(sum(char > chr(127) for char in text) * 100 // size)}"
    for mark in "!$%*_?;":
        count = text.count(mark)
        if count:
            yield f"mark:{mark}:{bucket(count * 1000 // size)}"
    if "PGP SIGN" in text:
        yield "pgp"


def _markup(view: View) -> Iterator[str]:
    page, html = view.page, view.html
    yield f"ratio:{len(page.text) * 10 // (len(html) + 1)}"
    yield f"tags:{bucket(len(page.tags))}"
    names = {name for name, _ in page.tags}
    for name in names:
        yield f"tag:{name[:12]}"
    yield f"first:{'>'.join(name for name, _ in page.tags[:3])[:30]}"
    for known in {f"{name}.{each.lower()}" for name, rest in page.tags[:150] if rest for each in re.findall(r"([a-zA-Z-]+)\s*=", rest)[:6]}:
        yield f"attr:{known[:24]}"
    styles = {each.lower() for name, rest in page.tags[:150] if "tyle" in rest for each in _STYLE.findall(rest)[:8]}
    for style in styles:
        yield f"style:{style}"
    if page.hidden.strip():
        yield f"hidden:{bucket(len(page.hidden))}"
    yield f"images:{bucket(len(page.images))}"
    if page.images and len(page.text.split()) < 20:
        yield "image-only"
    for image in page.images[:20]:
        src = attributes(image).get("src", "").lower()
        yield f"src:{'cid' if src.startswith('cid:') else 'remote' if src.startswith('http') else 'data' if src.startswith('data:') else 'other'}"
        if re.search(r"(?:width|height)\s*=\s*[\"']?[01]\b", image):
            yield "pixel"
    if page.comments:
        yield f"comments:{bucket(page.comments)}"
    if page.split_words:
        yield f"split:{bucket(page.split_words)}"
    for flag, name in (
        (page.forms, "form"),
        (page.inputs, "inputs"),
        (page.has_script, "script"),
        (page.refreshes, "refresh"),
        ("<html" in html[:2000].lower(), "html"),
        ("<!doctype" in html[:300].lower(), "doctype"),
        ("&#" in html, "entity"),
        ("&nbsp;" in html, "nbsp"),
        ("<meta" in html.lower(), "meta"),
        ("mso-" in html, "mso"),
    ):
        if flag:
            yield f"page:{name}"
    if html.isupper() or "<HTML" in html or "<BODY" in html:
        yield "page:upper"
    if view.text:
        yield "page:alternative"


def _links(view: View) -> Iterator[str]:
    urls = view.urls[:60]
    yield f"urls:{bucket(len(view.urls))}"
    own = organisation(view.sender_domain) if view.sender else ""
    orgs: set[str] = set()
    for url in urls:
        if url.lower().startswith("mailto:"):
            yield "url:mailto"
            orgs.add(organisation(domain_of(url)))
            continue
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host = parts.hostname or ""
        except ValueError:
            yield "url:broken"
            continue
        org = organisation(host) if host and not host[-1].isdigit() else host
        orgs.add(org)
        yield f"url:{parts.scheme[:6]}:{'ip' if host[-1:].isdigit() else 'www' if host.startswith('www.') else host.count('.')}"
        yield f"tld:{host.rpartition('.')[2][:6] if not host[-1:].isdigit() else 'ip'}"
        yield f"path:{bucket(parts.path.count('/'))}:{bucket(len(parts.path))}"
        yield f"hostlen:{bucket(len(org))}:{'digits' if any(c.isdigit() for c in org) else ''}"
        if parts.query:
            yield f"query:{bucket(len(parts.query))}"
        extension = re.search(r"\.([a-z]{2,5})$", parts.path.lower())
        if extension:
            yield f"ext:{extension.group(1)}"
        if own:
            yield "url:own" if org == own else "url:foreign"
        if ":" in parts.netloc or "@" in parts.netloc:
            yield "url:port"
        for word in re.findall(r"[a-z]{3,12}", parts.path.lower())[:4]:
            yield f"pathword:{word}"
    yield f"orgs:{bucket(len(orgs))}"
    if len(orgs) == 1 and len(urls) > 1:
        yield "orgs:one"
