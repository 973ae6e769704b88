"""HTML of strangers made safe to show: no script, no form, and nothing that is fetched when the mail is opened."""

from __future__ import annotations

import html as entities
import re

import nh3

MAX_DEPTH = 3000
"""Open elements inside each other. The sanitiser's time grows with the square of it: 100,000 take 20 s."""

_TAGS = nh3.ALLOWED_TAGS | {"font", "center", "big", "tt", "s", "u", "hr", "img"}
_ATTRIBUTES = {tag: set(names) for tag, names in nh3.ALLOWED_ATTRIBUTES.items()}
for _tag, _names in {
    "*": {"dir", "lang", "title", "align", "valign", "width", "height", "style"},
    "font": {"color", "face", "size"},
    "table": {"border", "cellpadding", "cellspacing", "bgcolor"},
    "td": {"bgcolor", "colspan", "rowspan"},
    "th": {"bgcolor", "colspan", "rowspan"},
    "tr": {"bgcolor"},
}.items():
    _ATTRIBUTES.setdefault(_tag, set()).update(_names)

_STYLES = {
    "color", "background-color", "font", "font-family", "font-size", "font-style", "font-weight", "line-height", "text-align",
    "text-decoration", "text-transform", "vertical-align", "white-space", "margin", "margin-top", "margin-right", "margin-bottom",
    "margin-left", "padding", "padding-top", "padding-right", "padding-bottom", "padding-left", "border", "border-top", "border-right",
    "border-bottom", "border-left", "border-collapse", "border-radius", "width", "max-width", "height", "display",
}  # fmt: skip
"""Without positions (a mail could draw over the page) and without anything that takes a url()."""

_EMBEDDED = re.compile(r"(cid:|data:image/(png|jpe?g|gif|webp);base64,)", re.IGNORECASE)
_IGNORED_IN_URLS = re.compile(r"[\x00-\x20]+")
"""Browsers read `da<TAB>ta:` as `data:` (WHATWG URL, "basic URL parser")."""
_TAG_EDGE = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
_VOID = {
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr",
    "p", "li", "dt", "dd", "td", "th", "tr", "tbody", "thead", "option",
}  # fmt: skip
"""Elements without an end, and those whose end may be left out: they do not nest in themselves."""
_NOT_TEXT = re.compile(r"<(style|script|title)\b|<(!--)", re.IGNORECASE)
_ANY_TAG = re.compile(r"<[^<>]*>")


def _without_remote(_tag: str, attribute: str, value: str) -> str | None:
    """Drops what the reader's browser would fetch: only pictures inside the mail keep their source."""
    if attribute == "style" and ("url" in value.lower() or "\\" in value):
        return None
    if attribute == "src":
        return value if _EMBEDDED.match(value.strip()) else None
    if attribute == "cite":  # nothing shows it and nobody needs it
        return None
    if attribute != "href" or value.startswith(("http", "mailto:")):
        return value
    return None if _IGNORED_IN_URLS.sub("", value).lower().startswith(("data:", "cid:")) else value


_CLEANER = nh3.Cleaner(
    tags=_TAGS,
    attributes=_ATTRIBUTES,
    attribute_filter=_without_remote,
    url_schemes={"http", "https", "mailto", "tel", "cid", "data"},
    url_relative="deny",
    filter_style_properties=_STYLES,
    link_rel="noopener noreferrer nofollow",
)


def sanitise_html(html: str) -> str:
    """The part of the HTML that is safe to show. Too deeply nested input is reduced to its text."""
    if _depth(html) > MAX_DEPTH:
        return entities.escape(html_to_text(html))
    return _CLEANER.clean(html)


def html_to_text(html: str) -> str:
    """The words of an HTML document, for snippets and searching; not a layout."""
    return entities.unescape(_ANY_TAG.sub(" ", _without_hidden(html)))


def _without_hidden(html: str) -> str:
    """Without styles, scripts, title and comments; one without its end hides the rest. One pass: input may be made to slow us down."""
    lower, pieces, position = html.lower(), [], 0
    while (match := _NOT_TEXT.search(html, position)) is not None:
        pieces.append(html[position : match.start()])
        end = lower.find("-->" if match.group(2) else f"</{match.group(1).lower()}", match.end())
        if end < 0:
            return " ".join(pieces)
        position = end + (3 if match.group(2) else 0)
    return " ".join([*pieces, html[position:]])


def _depth(html: str) -> int:
    """At most how deep elements lie in each other. An end closes only an element of its own name: `<font></b>` leaves one open."""
    if html.count("<") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    opened: dict[str, int] = {}
    for match in _TAG_EDGE.finditer(html):
        name = match.group(2).lower()
        if name in _VOID:
            continue
        if not match.group(1):
            opened[name] = opened.get(name, 0) + 1
            depth += 1
            deepest = max(deepest, depth)
        elif opened.get(name):
            opened[name] -= 1
            depth -= 1
    return deepest
