"""A message as the spam check sees it: read once, within bounds, whatever the bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime

from mail import mime_headers as headers_of
from mail.addresses import Address, domain_of
from mail.charsets import decode_text
from mail.mime_headers import ParseLimits, RawHeaders, decode_words, read_headers, split_message
from mail.mime_parts import Leaf, body_leaves, leaves
from mail.spam.page import Page, read_page
from mail.spam.typography import oddities

MAX_TEXT = 64 * 1024
"""Characters of text and of HTML that are looked at, each."""
MAX_BYTES = 1024 * 1024
"""Bytes of the message that are parsed. Of the rest only the names of attachments are looked for."""
START = 2_000
MAX_BOUNDARIES = 2_000
LIMITS = ParseLimits(message=MAX_BYTES, header=256 * 1024, line=64 * 1024, parts=1000, depth=50)

MAX_PLAIN = 32 * 1024
_FOLD = re.compile(r"\n[ \t]+")
_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\n"
_LATE_NAME = re.compile(rb"(?:file)?name\*?\d*\*?=\s*\"?([^\";\r\n]{1,200})", re.IGNORECASE)
_BARE_URL = re.compile(r"[hHwW](?:(?<=[hH])[tT][tT][pP][sS]?://|(?<=[wW])[wW][wW]\.)[^\s<>\"'\])}]{3,500}")
_ADDRESS = re.compile(r"[\w.+=-]+@[\w.-]+")


@dataclass(slots=True)
class View:
    """What was read. All text is decoded; `names` holds the values of each header by its name in lower case, in order."""

    raw: bytes = b""
    headers: RawHeaders = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)
    subject: str = ""
    sender: Address | None = None
    reply_to: list[Address] = field(default_factory=list)
    return_path: str = ""
    date: datetime | None = None
    leaves: list[Leaf] = field(default_factory=list)
    attachments: list[Leaf] = field(default_factory=list)
    text: str = ""
    html: str = ""
    page: Page = field(default_factory=Page)
    start: bytes = b""
    """The first bytes of the body as it was sent, but for how its lines end; of one in base64, decoded."""
    odd: dict[str, int] = field(default_factory=dict)
    """Of the shown text, see `mail.spam.typography`."""
    urls: list[str] = field(default_factory=list)
    """Those in the plain text, then the links' targets of the HTML; each once."""
    late_names: list[str] = field(default_factory=list)
    defects: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def first(self, name: str) -> str:
        """The first value of a header, or an empty string."""
        values = self.names.get(name)
        return values[0] if values else ""

    @property
    def shown(self) -> str:
        """What the reader sees of the body: the HTML's words where there is HTML, as mail programs prefer it."""
        return self.page.text or self.text

    @property
    def sender_domain(self) -> str:
        """In lower case; empty without a sender."""
        return domain_of(self.sender.addr) if self.sender else ""


def read_view(raw: bytes) -> View:
    """Reads a message (RFC 5322, MIME). Never raises: what cannot be read is empty and named in `defects`."""
    view = View(raw=raw)
    try:
        _read(raw, view)
    except Exception:  # whatever a stranger's bytes provoke, there is a verdict
        view.defects.add("unparsable")
    return view


def _read(raw: bytes, view: View) -> None:
    part = raw[:MAX_BYTES]
    if len(raw) > MAX_BYTES:
        view.notes.append("truncated")
        view.late_names = _late_names(raw)
    head, body = split_message(part)
    view.headers = _plain_headers(head) or read_headers(head, view.defects, LIMITS)
    for name, value in view.headers:
        view.names.setdefault(name.lower(), []).append(value)
    _read_headers(view)
    view.leaves = _leaves(part, head, body, view)
    bodies, view.attachments = body_leaves(view.leaves)
    view.text = _joined(bodies, "text/plain", view)
    view.html = _joined(bodies, "text/html", view)
    view.start = body[: 2 * START].replace(b"\r\n", b"\n")[:START]
    if b"base64" in head[-2000:] or b"base64" in view.start:
        view.start = (view.text or view.html)[:START].encode("utf-8", "replace")
    if view.html:
        view.page = read_page(view.html)
    view.odd = oddities(view.shown)
    urls = _BARE_URL.findall(view.text) if "://" in view.text or "www." in view.text else []
    view.urls = list(dict.fromkeys([*urls[:10_000], *(link.href for link in view.page.links)]))


def _plain_headers(head: bytes) -> RawHeaders:
    """As `read_headers` reads a header without fault, in a third of its time; nothing for any other."""
    if len(head) > MAX_PLAIN:
        return []
    head = head.replace(b"\r\n", b"\n")
    if head.translate(None, _PRINTABLE):
        return []
    headers: RawHeaders = []
    for field_ in _FOLD.sub(" ", head.decode("ascii")).split("\n"):
        name, colon, value = field_.partition(":")
        value = value.strip(" \t")
        if colon and name and name.isprintable() and " " not in name and "\t" not in value:
            headers.append((name, value if "  " not in value else " ".join(value.split())))
        elif field_ and not field_.startswith(("From ", ">From ")):
            return []
    return headers


def _read_headers(view: View) -> None:
    headers, defects = view.names, view.defects
    view.subject = decode_words(view.first("subject"))[:2000]
    senders = headers_of.addresses(headers, "from", defects)
    view.sender = senders[0] if senders else None
    if "reply-to" in view.names:
        view.reply_to = headers_of.addresses(headers, "reply-to", defects)
    found = _ADDRESS.search(view.first("return-path")[:1000])
    view.return_path = found.group() if found else ""
    view.date = headers_of.date(headers, defects)


def _leaves(part: bytes, head: bytes, body: bytes, view: View) -> list[Leaf]:
    if len(head) > LIMITS.header or part.count(b"oundary") > MAX_BOUNDARIES:
        view.defects.add("structure")
        return [Leaf("1", "text/plain", None, "", None, None, body)]
    return leaves(part, view.defects, LIMITS)


def _joined(bodies: list[Leaf], content_type: str, view: View) -> str:
    pieces: list[str] = []
    room = MAX_TEXT
    for leaf in bodies:
        if leaf.content_type != content_type or not leaf.content:
            continue
        if room <= 0 or len(leaf.content) > room * 4:
            _note_once(view, "truncated")
        if room <= 0:
            break
        text, is_certain = decode_text(leaf.content[: room * 4], leaf.charset)
        text = text.replace("\r\n", "\n")
        if not is_certain:
            view.defects.add("charset")
        if len(text) > room:
            _note_once(view, "truncated")
        pieces.append(text[:room])
        room -= len(text)
    return "\n".join(pieces)


def _note_once(view: View, note: str) -> None:
    if note not in view.notes:
        view.notes.append(note)


def _late_names(raw: bytes) -> list[str]:
    """Names of attachments behind what is parsed, so that a dangerous one cannot hide behind padding."""
    names: list[str] = []
    position = raw.find(b"ame", MAX_BYTES)
    for _ in range(2000):
        if position < 0:
            break
        if raw[position + 3 : position + 4] in {b"=", b"*"} and (match := _LATE_NAME.search(raw, position - 5, position + 300)):
            names.append(match.group(1).decode("utf-8", "replace"))
        position = raw.find(b"ame", position + 3)
    return names
