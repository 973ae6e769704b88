"""What an HTML body shows and what it hides, read in one pass over its tags: words, links, pictures, forms."""

from __future__ import annotations

import html as entities
import re
from dataclasses import dataclass, field

from mail.spam.wordlists import listed

MAX_LINKS = 10_000
MAX_TAGS = 20_000
MAX_HIDDEN = 2_000
"""Characters of hidden text that are kept."""

FEW = 5
"""Comments or unknown tags below which nobody looks whether they split words."""
_KNOWN = listed(
    """a abbr area b base big blockquote body br button center cite code col colgroup dd del dir div dl dt em fieldset font form frame
    frameset h1 h2 h3 h4 h5 h6 head hr html i iframe img input ins label li link map meta nobr noscript ol option p pre q s samp
    script section select small span strike strong style sub sup table tbody td textarea tfoot th thead title tr tt u ul var wbr"""
)
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)([^<>]*)>")
_NO_TEXT = re.compile(r"<!--|<(?:style|script|title)\b|<![^>-]", re.IGNORECASE)
_INLINE = re.compile(r"</?(?:a|abbr|b|bdo|big|em|font|i|s|small|span|strike|strong|sub|sup|tt|u|o:p|wbr)\b[^<>]*>", re.IGNORECASE)
_ANY_TAG = re.compile(r"<[^<>]*>")
_ATTRIBUTE = re.compile(r"([a-zA-Z][a-zA-Z-]*)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))")
_HREF = re.compile(r"[hH][rR][eE][fF]\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))")
_HIDING = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*[01](?:\.\d+)?(?:px|pt|em|%)?\s*(?:[;\"'!]|$)|opacity\s*:\s*0(?:\.0+)?\s*(?:[;\"'!]|$)"
    r"|text-indent\s*:\s*-\d{3,}|max-height\s*:\s*0(?:px)?\s*(?:[;\"'!]|$)|mso-hide\s*:\s*all|(?:left|top)\s*:\s*-\d{3,}",
)
"""Of attributes in lower case, as the next two."""
_WAYS_OF_HIDING = ("none", "hidden", "font-size", "opacity", "text-indent", "max-height", "mso-hide", "left", "top")
_COLOUR = re.compile(r"color(?<![-\w]color)\s*[:=]\s*[\"']?\s*(#?[a-z0-9]+)")
_BACKGROUND = re.compile(r"b(?:gcolor\s*=|ackground(?:-color)?\s*:)\s*[\"']?\s*(#?[a-z0-9]+)")
_NAMED = {"white": "ffffff", "black": "000000", "red": "ff0000", "yellow": "ffff00", "blue": "0000ff", "gray": "808080"}
_VOID = frozenset({"br", "img", "hr", "input", "meta", "link", "area", "base", "col", "wbr", "param", "embed"})
_NOTED = frozenset({"img", "form", "input", "textarea", "select", "area", "meta"})
_BACKED = frozenset({"body", "table", "tr", "td", "div"})
_CLOSED_EARLY = frozenset({"p", "li", "td", "th", "tr", "dt", "dd", "option", "tbody", "thead"})


@dataclass(slots=True)
class Link:
    """A target and the words that are shown for it."""

    href: str
    text: str


@dataclass(slots=True)
class Page:
    """An HTML body. `text` is what a reader sees; `tags` are (name, attributes) of the opening tags in order."""

    text: str = ""
    hidden: str = ""
    links: list[Link] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    """Attributes of the pictures."""
    tags: list[tuple[str, str]] = field(default_factory=list)
    forms: list[str] = field(default_factory=list)
    """Actions of the forms; empty strings for those without."""
    inputs: int = 0
    has_password: bool = False
    has_script: bool = False
    refreshes: bool = False
    comments: int = 0
    split_words: int = 0
    """Comments and empty tags inside words."""
    is_cut: bool = False


_SPLIT = re.compile(
    r"[a-zA-Z](?:<!--[^>]{0,80}-->|<(?!/?(?:b|br|i|u|p|a|em|strong|font|span|td|tr|th|li|div|h\d|sub|sup|small|big)\b)[^<>]{1,40}>)+[a-z]"
)


def attributes(text: str) -> dict[str, str]:
    """The attributes of a tag, names in lower case; of a name given twice the first counts, as in browsers."""
    found: dict[str, str] = {}
    for name, double, single, bare in _ATTRIBUTE.findall(text):
        found.setdefault(name.lower(), entities.unescape(double or single or bare))
    return found


def read_page(html: str) -> Page:
    """Reads at most MAX_TAGS tags and MAX_LINKS links. Never raises."""
    page = Page(comments=html.count("<!--"))
    source = html
    page.has_script = "<script" in html.lower()
    html = _without_invisible(html)
    page.text = shown_text(_Scanner(html, page).scan())
    if page.comments >= FEW or len([name for name, _ in page.tags if name not in _KNOWN]) >= FEW:
        page.split_words = sum(1 for _ in _SPLIT.finditer(source))
    if not page.text.strip():  # what hides everything hides nothing: no reader would be sent such a page
        page.text = page.hidden
    return page


def shown_text(html: str) -> str:
    """The words of a piece of HTML: tags inside words vanish, all others separate."""
    return entities.unescape(_ANY_TAG.sub(" ", _INLINE.sub("", html)) if "<" in html else html)


def _without_invisible(html: str) -> str:
    """Without comments, styles, scripts, titles and declarations; one without its end hides the rest."""
    lower, pieces, position = html.lower(), [], 0
    while (match := _NO_TEXT.search(html, position)) is not None:
        pieces.append(html[position : match.start()])
        start = match.group().lower()
        close = "-->" if start == "<!--" else ">" if start.startswith("<!") else f"</{start[1:]}"
        end = lower.find(close, match.end())
        if end < 0:
            return "".join(pieces)
        position = end + (len(close) if close[-1] == ">" else 0)
    return "".join([*pieces, html[position:]]) if pieces else html


class _Scanner:
    """One pass over the tags of a page, which it fills."""

    def __init__(self, html: str, page: Page) -> None:
        self.html, self.page = html, page
        self.pieces: list[str] = []
        self.position = 0
        self.hidden_by, self.depth = "", 0
        self.link: tuple[str, int] | None = None
        self.background = "ffffff"
        self.known: dict[tuple[str, str], bool] = {}
        """What was found of attributes before this background: most pages repeat a few over and over."""

    def scan(self) -> str:
        """The HTML without what is hidden."""
        for count, match in enumerate(_TAG.finditer(self.html)):
            if count >= MAX_TAGS:
                self.page.is_cut = True
                break
            closing, name, rest = match.groups()
            name = name.lower()
            if self.hidden_by:
                if name == self.hidden_by:
                    self._unhide(match, 1 if not closing else -1)
                continue
            if name == "a" and self.link is not None:
                self._end_link(match.start())
            if not closing:
                self._open(match, name, rest)
        if self.link is not None:
            self._end_link(len(self.html))
        if self.hidden_by:  # never closed: browsers hide the rest
            self._hide(self.position + MAX_HIDDEN)
            self.position = len(self.html)
        return "".join([*self.pieces, self.html[self.position :]])

    def _open(self, match: re.Match[str], name: str, rest: str) -> None:
        self.page.tags.append((name, rest))
        if name == "a":
            target = _HREF.search(rest)
            href = entities.unescape(target.group(1) or target.group(2) or target.group(3) or "").strip() if target is not None else ""
            self.link = (href, match.end()) if href else None
        elif name in _NOTED:
            _note(name, rest, self.page)
        if rest and name not in _VOID:
            lower = rest.lower()
            if "style" in lower or "color" in lower:
                self._style(match, name, lower)

    def _style(self, match: re.Match[str], name: str, lower: str) -> None:
        key = (lower, self.background)
        hides = self.known.get(key)
        if hides is None:
            hides = self.known[key] = _hides(*key)
        if hides:
            self.pieces.append(self.html[self.position : match.start()])
            self.position = match.end()
            if name not in _CLOSED_EARLY:
                self.hidden_by, self.depth = name, 1
        if name in _BACKED and (found := _BACKGROUND.search(lower)) is not None:
            self.background = _colour(found.group(1))

    def _unhide(self, match: re.Match[str], step: int) -> None:
        self.depth += step
        if self.depth == 0:
            self._hide(match.start())
            self.position, self.hidden_by = match.end(), ""

    def _hide(self, end: int) -> None:
        room = MAX_HIDDEN - len(self.page.hidden)
        if room > 0:
            self.page.hidden += _ANY_TAG.sub(" ", self.html[self.position : min(end, self.position + 4 * MAX_HIDDEN)])[:room]

    def _end_link(self, end: int) -> None:
        if self.link is not None and len(self.page.links) < MAX_LINKS:
            href, start = self.link
            text = shown_text(self.html[start : min(end, start + 1000)]) if end > start else ""
            self.page.links.append(Link(href[:2000], " ".join(text.split())[:300]))
        elif self.link is not None:
            self.page.is_cut = True
        self.link = None


def _note(name: str, rest: str, page: Page) -> None:
    if name == "img":
        page.images.append(rest[:2000])
    elif name == "form":
        page.forms.append(attributes(rest).get("action", ""))
    elif name in {"input", "textarea", "select"}:
        page.inputs += 1
        page.has_password |= "password" in rest.lower()
    elif name == "area":
        if href := attributes(rest).get("href", ""):
            page.links.append(Link(href[:2000], ""))
    elif name == "meta" and "refresh" in rest.lower():
        page.refreshes = True


def _hides(lower: str, background: str) -> bool:
    if ":" in lower and any(way in lower for way in _WAYS_OF_HIDING) and _HIDING.search(lower) is not None:
        return True
    colour = _COLOUR.search(lower) if "color" in lower else None
    if colour is None:
        return False
    own = _BACKGROUND.search(lower)
    behind = _colour(own.group(1)) if own is not None else background
    return _colour(colour.group(1)) == behind != ""


def _colour(text: str) -> str:
    """Six hexadecimal digits, or nothing for what is no plain colour."""
    value = _NAMED.get(text, text.removeprefix("#"))
    if len(value) == 3:
        value = "".join(digit * 2 for digit in value)
    return value if len(value) == 6 and not value.strip("0123456789abcdef") else ""
