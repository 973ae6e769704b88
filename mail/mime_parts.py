"""The leaves of a message's MIME tree, transfer-decoded.

The fast parser (Rust) reads nearly everything. What it refuses (damaged base64) or does not decode (uuencode) goes through the
standard library, which is ten times slower and more forgiving. Hostile nesting goes to neither.
"""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message

from fast_mail_parser import MimeStructureError, ParseError, PyMimePart, parse_email_tree

from mail.charsets import decode_text, storable
from mail.mime_headers import DEFAULT_LIMITS, MAX_HEADERS, ParseLimits, decode_words, split_message

_MAX_EFFORT = 500_000_000
"""Bytes times boundaries that the standard library may be asked to read: it compares every line with every open boundary."""

_MAX_WORDS = 1_000_000_000
"""Bytes times beginnings of encoded words that the fast parser may be asked to read in one block of headers: it looks for the end of
each of them up to the end of the block."""
_MAX_LINES = 1_000_000
"""Lines that the standard library may be asked to read."""
_MAX_FIELD, _MAX_PARAMETERS = 8 * 1024, 32
"""Characters and parameters of a header that the standard library is given: its time grows with their square."""
_MAX_BOUNDARIES = 20_000
"""Lines that may be boundaries: each becomes an object before anybody can count them."""
_SMALL = 44_000
"""Bytes in which neither bound can be passed, so that most messages are not searched for it."""
_BLOCK_ENDS = re.compile(rb"\r?\n\r?\n|\r\r")

_CHARSET = re.compile(r"charset\*?\s*=\s*(?:[\w-]*'[\w-]*')?\s*\"?([^\";]+)", re.IGNORECASE)
_UNSAFE_IN_NAMES = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
"""Control characters and those that turn the reading direction round: `gpj.exe` must not look like `exe.jpg`."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One part that holds content. `part` is its IMAP number (`1.2`); an embedded message is one leaf and is not looked into."""

    part: str
    content_type: str
    charset: str | None
    filename: str
    disposition: str | None
    content_id: str | None
    content: bytes


def leaves(raw: bytes, defects: set[str], limits: ParseLimits = DEFAULT_LIMITS) -> list[Leaf]:
    """All leaves in order, as many as allowed. Never raises; adds `encoding`, `structure`, `too_deep`, `too_many_parts` to the defects."""
    found = _read(_with_few_boundaries(raw, defects), defects, limits.depth)
    if len(found) > limits.parts:
        defects.add("too_many_parts")
        found = found[: limits.parts]
    if not found:  # a multipart without its boundary: better one long text than nothing
        defects.add("structure")
        found = [Leaf("1", "text/plain", None, "", None, None, split_message(raw)[1])]
    return found


class _ShortMessage(Message):
    """One whose headers are never longer or more than honest ones."""

    def set_raw(self, name: str, value: str) -> None:
        if len(self) >= MAX_HEADERS:
            return
        super().set_raw(name, ";".join(value[:_MAX_FIELD].split(";", _MAX_PARAMETERS)[:_MAX_PARAMETERS]))


def _read(raw: bytes, defects: set[str], depth: int) -> list[Leaf]:
    try:
        if not _is_laborious(raw):
            found, is_uuencoded = _fast(raw, defects, depth)
            if not is_uuencoded:
                return found
    except MimeStructureError:
        defects.add("too_deep")
        return []
    except ParseError:
        defects.add("encoding")
    except Exception:  # the fast parser may raise anything; the careful one is asked next
        defects.add("structure")
    if len(raw) * raw.lower().count(b"boundary") > _MAX_EFFORT or raw.count(b"\n") > _MAX_LINES:
        defects.add("structure")
        return []
    try:
        return list(_compat_leaves(email.message_from_bytes(raw, _ShortMessage, policy=email.policy.compat32), defects, depth))
    except Exception:  # the standard library too: RecursionError, IndexError, LookupError were all seen
        defects.add("structure")
        return []


def _with_few_boundaries(raw: bytes, defects: set[str]) -> bytes:
    if len(raw) <= _SMALL or raw.count(b"\n--") <= _MAX_BOUNDARIES:
        return raw
    defects.add("too_many_parts")
    end = 0
    for _ in range(_MAX_BOUNDARIES):
        end = raw.find(b"\n--", end) + 1
    return raw[:end]


def _is_laborious(raw: bytes) -> bool:
    """Whether the fast parser would take long over beginnings of encoded words. Only blocks of lines count: a body may be large."""
    if len(raw) <= _SMALL or raw.count(b"=?") * len(raw) <= _MAX_WORDS:
        return False
    return sum(block.count(b"=?") * len(block) for block in _BLOCK_ENDS.split(raw)) > _MAX_WORDS


def _fast(raw: bytes, defects: set[str], depth: int) -> tuple[list[Leaf], bool]:
    found: list[Leaf] = []
    for number, node in _numbered(parse_email_tree(raw), defects, depth):
        headers = {name.lower(): values[0] for name, values in node.headers.items() if values}
        if "uue" in headers.get("content-transfer-encoding", "").lower():
            return [], True
        found.append(
            Leaf(
                number,
                _content_type(node.content_type),
                _charset(headers.get("content-type", "")[:1000]),
                clean_filename(decode_words(node.filename[:5000])) if node.filename else "",
                (node.disposition or "").lower() or None,
                _content_id(node.content_id),
                node.content or b"",
            )
        )
    return found, False


def _numbered(root: PyMimePart, defects: set[str], deepest: int) -> Iterator[tuple[str, PyMimePart]]:
    """Leaves with their IMAP numbers, in order, without recursion."""
    stack: list[tuple[str, int, PyMimePart]] = [("", 0, root)]
    while stack:
        number, depth, node = stack.pop()
        if node.is_message or not (node.children or node.content_type.startswith("multipart/")):
            yield number or "1", node
        elif depth >= deepest:
            defects.add("too_deep")
        else:
            prefix = f"{number}." if number else ""
            stack.extend(reversed([(f"{prefix}{index}", depth + 1, child) for index, child in enumerate(node.children, 1)]))


def _compat_leaves(root: Message, defects: set[str], deepest: int) -> Iterator[Leaf]:
    stack: list[tuple[str, int, Message]] = [("", 0, root)]
    while stack:
        number, depth, node = stack.pop()
        payload = node.get_payload()
        if node.get_content_maintype() == "multipart":
            if depth >= deepest:
                defects.add("too_deep")
            elif isinstance(payload, list):
                prefix = f"{number}." if number else ""
                children = [(f"{prefix}{index}", depth + 1, child) for index, child in enumerate(payload, 1) if isinstance(child, Message)]
                stack.extend(reversed(children))
            continue
        yield _compat_leaf(number or "1", node)


def _compat_leaf(number: str, node: Message) -> Leaf:
    _settle_charsets(node)
    payload = node.get_payload()
    if isinstance(payload, list):  # an embedded message
        content = payload[0].as_bytes() if payload and isinstance(payload[0], Message) else b""
    else:
        decoded = node.get_payload(decode=True)
        content = decoded if isinstance(decoded, bytes) else b""
    return Leaf(
        number,
        _content_type(node.get_content_type()),
        _charset(str(node.get("content-type", ""))[:1000]),
        clean_filename(decode_words(str(node.get_filename() or ""))),
        node.get_content_disposition(),
        _content_id(str(node.get("content-id", ""))),
        content,
    )


def _settle_charsets(node: Message) -> None:
    """Raw 8-bit bytes in the headers that carry parameters, before the standard library puts question marks in their place."""
    for name, value in list(node.raw_items()):
        if name.lower() in {"content-type", "content-disposition"} and not str(value).isascii():
            node.replace_header(name, decode_text(str(value).encode("utf-8", "surrogateescape"), None)[0])


def _charset(content_type: str) -> str | None:
    found = _CHARSET.search(content_type) if "charset" in content_type.lower() else None
    return found.group(1) if found else None


def _content_type(text: str) -> str:
    """Lower case, at most 127 characters as RFC 4288 allows, and a harmless default."""
    cleaned = storable(text).strip().lower()
    return cleaned if re.fullmatch(r"[\w!#$&^.+-]{1,63}/[\w!#$&^.+-]{1,100}", cleaned, re.ASCII) else "application/octet-stream"


def _content_id(text: str | None) -> str | None:
    return storable(text or "").strip().strip("<>").strip()[:255] or None


def clean_filename(name: str) -> str:
    """The last path component without control and direction characters, at most 200 characters and the extension kept."""
    cleaned = _UNSAFE_IN_NAMES.sub("", storable(name)).replace("\\", "/").rpartition("/")[2].strip().strip(".")
    if len(cleaned) <= 200:
        return cleaned
    stem, dot, extension = cleaned.rpartition(".")
    return f"{stem[: 199 - len(extension)]}{dot}{extension}" if dot and len(extension) <= 10 else cleaned[:200]


def body_leaves(found: Iterable[Leaf]) -> tuple[list[Leaf], list[Leaf]]:
    """(body, attachments): body is text/plain and text/html not marked as attachment and, unless it is the whole message, unnamed."""
    body: list[Leaf] = []
    attachments: list[Leaf] = []
    parts = list(found)
    for leaf in parts:
        is_text = leaf.content_type in {"text/plain", "text/html"} and leaf.disposition != "attachment"
        (body if is_text and (not leaf.filename or len(parts) == 1) else attachments).append(leaf)
    return body, attachments
