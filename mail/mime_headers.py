"""The header block of a message as people read it: split, unfolded, charsets and encoded words decoded (RFC 5322, RFC 2047)."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from email.utils import getaddresses, parsedate_to_datetime

from mail.addresses import Address
from mail.charsets import decode_text, storable

MAX_HEADERS = 1000
MAX_VALUE = 64 * 1024
"""Bytes of one header that are read; more is a program's mistake or an attack."""
MAX_ADDRESSES = 1000
MAX_REFERENCES = 100

_END = re.compile(rb"\r?\n\r?\n|\r\r")
_NAME = re.compile(rb"[!-9;-~]+[ \t]*$")
_WORD = re.compile(r"=\?([^?\s*]+)(?:\*[^?\s]*)?\?([bBqQ])\?([^?]*)\?=")
_BETWEEN_WORDS = re.compile(r"(\?=)\s+(=\?[^?\s]+\?[bBqQ]\?)")
_MESSAGE_ID = re.compile(r"<[^<>\s]{1,900}>")
_PLAIN_ADDRESS = re.compile(
    r"(?P<bare>[\w.!#$%&'*+/=?^`{|}~-]+@[\w.-]+)|(?P<name>[\w '=?!+/*-]*) ?<(?P<angled>[\w.!#$%&'*+/=?^`{|}~-]+@[\w.-]+)>", re.ASCII
)
_BLANKS = re.compile(r"[\x00-\x20\x7f\u2028\u2029]+")

RawHeaders = list[tuple[str, str]]
"""Names as written and values with charsets settled but encoded words still in them: addresses are split before they are decoded."""


def split_message(raw: bytes) -> tuple[bytes, bytes]:
    """Header block and body. Without an empty line everything is header, unless the first line is none at all."""
    if raw[:2] == b"\r\n" or raw[:1] == b"\n":
        return b"", raw.lstrip(b"\r\n")
    end = _END.search(raw)
    head = raw[: end.start()] if end else raw
    first = head.split(b"\n", 1)[0]
    if b":" not in first and not first.startswith(b"From "):
        return b"", raw
    return head, raw[end.end() :] if end else b""


def read_headers(head: bytes, defects: set[str]) -> RawHeaders:
    """All headers in order. Adds `bad_header`, `charset` or `headers_truncated` to the defects."""
    headers: RawHeaders = []
    for name, value in _unfolded(head, defects):
        if len(headers) >= MAX_HEADERS:
            defects.add("headers_truncated")
            break
        if len(value) > MAX_VALUE:
            defects.add("headers_truncated")
            value = value[:MAX_VALUE]  # noqa: PLW2901
        text, is_certain = decode_text(value, None)
        if not is_certain:
            defects.add("charset")
        headers.append((name.decode("ascii"), _BLANKS.sub(" ", text).strip()))
    return headers


def _unfolded(head: bytes, defects: set[str]) -> Iterable[tuple[bytes, bytes]]:
    name: bytes | None = None
    parts: list[bytes] = []
    for line in head.replace(b"\r\n", b"\n").split(b"\n"):
        if name is not None and line[:1] in {b" ", b"\t"}:
            parts.append(line)
            continue
        if name is not None:
            yield name, b"\n".join(parts)
        before, colon, after = line.partition(b":")
        name = before.rstrip() if colon and _NAME.match(before) else None
        parts = [after]
        if name is None and line.strip() and not line.startswith((b"From ", b">From ")):
            defects.add("bad_header")
    if name is not None:
        yield name, b"\n".join(parts)


def first(headers: RawHeaders, name: str) -> str:
    """The first value under this name, in any case, or an empty string: of duplicates the first one counts, as in most clients."""
    wanted = name.lower()
    return next((value for key, value in headers if key.lower() == wanted), "")


def decode_words(value: str) -> str:
    """Encoded words into text (RFC 2047). Neighbours in one charset are joined as bytes first: senders split inside a character."""
    if "=?" not in value:
        return value
    value = _BETWEEN_WORDS.sub(r"\1\2", value)
    pieces: list[str] = []
    pending, charset, position = b"", "", 0
    for match in _WORD.finditer(value):
        if pending and (match.start() != position or match.group(1).lower() != charset):
            pieces.append(decode_text(pending, charset)[0])
            pending = b""
        pieces.append(value[position : match.start()])
        charset = match.group(1).lower()
        pending += _word_bytes(match.group(2), match.group(3))
        position = match.end()
    pieces += [decode_text(pending, charset)[0] if pending else "", value[position:]]
    return _BLANKS.sub(" ", storable("".join(pieces))).strip()


def _word_bytes(encoding: str, text: str) -> bytes:
    if encoding in "qQ":
        return binascii.a2b_qp(text.encode("utf-8"), header=True)
    return lenient_base64(text.encode("utf-8"))


def lenient_base64(data: bytes) -> bytes:
    """What can be read of damaged base64: foreign characters are skipped, a torn end is dropped."""
    letters = re.sub(rb"[^A-Za-z0-9+/]", b"", data)
    usable = letters[: len(letters) - 1] if len(letters) % 4 == 1 else letters
    return binascii.a2b_base64(usable + b"=" * (-len(usable) % 4))


def addresses(headers: RawHeaders, name: str, defects: set[str]) -> list[Address]:
    """Everybody in the headers of this name, groups flattened. Adds `bad_address` when something was there and nobody could be read."""
    values = [value for key, value in headers if key.lower() == name]
    if not any(values):
        return []
    pairs = [pair for value in values for pair in _pairs(value)]
    found = [Address(decode_words(display), _BLANKS.sub("", storable(addr))) for display, addr in pairs[:MAX_ADDRESSES] if addr]
    if len(pairs) > MAX_ADDRESSES:
        defects.add("too_many_addresses")
    if not found and not any(":" in value for value in values):  # an empty group is how "undisclosed recipients" is said
        defects.add("bad_address")
    return found


def _pairs(value: str) -> list[tuple[str, str]]:
    """(display name, address) of one header; the plain forms nearly all mail has are read at once, the rest by the standard library."""
    plain = _PLAIN_ADDRESS.fullmatch(value)
    if plain is not None:
        return [((plain["name"] or "").strip(), plain["bare"] or plain["angled"])]
    try:
        return getaddresses([value])
    except (RecursionError, IndexError, ValueError):  # a thousand nested comments
        return []


def date(headers: RawHeaders, defects: set[str]) -> datetime | None:
    """The Date header in UTC, or None; `-0000` and no zone count as UTC."""
    value = first(headers, "date")
    if not value:
        return None
    try:
        moment = parsedate_to_datetime(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        defects.add("bad_date")
        return None


def message_ids(value: str) -> list[str]:
    """All `<...>` of a Message-ID, In-Reply-To or References value, each once; of very many the first and the newest."""
    found = list(dict.fromkeys(_MESSAGE_ID.findall(value)))
    return found if len(found) <= MAX_REFERENCES else [found[0], *found[1 - MAX_REFERENCES :]]


def message_id(headers: RawHeaders) -> str:
    """The Message-ID with its angle brackets; a bare one gets them; empty when there is none."""
    value = first(headers, "message-id")
    found: Sequence[str] = _MESSAGE_ID.findall(value)
    if found:
        return found[0]
    bare = _BLANKS.sub("", value).strip("<>")
    return f"<{bare[:900]}>" if bare else ""
