"""The header block of a message as people read it: split, unfolded, charsets and encoded words decoded (RFC 5322, RFC 2047)."""

from __future__ import annotations

import binascii
import email.utils
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from email.utils import getaddresses, parsedate_to_datetime
from functools import lru_cache

from mail.addresses import Address
from mail.charsets import decode_text, storable


@dataclass(frozen=True, slots=True)
class ParseLimits:
    """What of a message is read at most, in bytes where nothing else is said. The rest is left out and named in the defects."""

    message: int = 50 * 1024 * 1024
    """Of a larger one only the header."""
    header: int = 1024 * 1024
    line: int = 1024 * 1024
    """Of the header, or of a text (characters)."""
    parts: int = 1000
    depth: int = 100
    """Multiparts inside each other."""


DEFAULT_LIMITS = ParseLimits()
MAX_HEADERS = 1000
MAX_VALUE = 64 * 1024
"""Bytes of one header that are read; more is a program's mistake or an attack."""
MAX_ADDRESSES = 1000
MAX_REFERENCES = 100

_ENDS = (b"\n\r\n", b"\n\n", b"\r\r")
_NAME = re.compile(rb"[!-9;-~]+[ \t]*$")
_WORD = re.compile(r"=\?([^?\s*]+)(?:\*[^?\s]*)?\?([bBqQ])\?([^?]*)\?=")
_BETWEEN_WORDS = re.compile(r"(\?=)\s+(=\?[^?\s]+\?[bBqQ]\?)")
_MESSAGE_ID = re.compile(r"<[^<>\s]{1,900}>")
_PLAIN_ADDRESS = re.compile(
    r"(?P<bare>[\w.!#$%&'*+/=?^`{|}~-]+@[\w.-]+)"
    r"|(?:\"(?P<quoted>[^\"\\]*)\"|(?P<name>[\w '=?!+/*-]*)) ?<(?P<angled>[\w.!#$%&'*+/=?^`{|}~-]+@[\w.-]+)>",
    re.ASCII,
)
_MORE_THAN_PLAIN = frozenset('"(\\:;[')
_BLANKS = re.compile(r"[\x00-\x20\x7f\u2028\u2029]+")
_PLAIN_DATE = re.compile(
    r"(?:[A-Z][a-z]{2}, )?(\d{1,2}) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) ([+-])(\d\d)([0-5]\d)(?: \([^()]*\))?", re.ASCII
)
_MONTHS = dict(zip(("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), range(1, 13), strict=True))

RawHeaders = list[tuple[str, str]]
"""Names as written and values with charsets settled but encoded words still in them: addresses are split before they are decoded."""
NamedHeaders = Mapping[str, Sequence[str]]
"""The values by their names in lower case, in order."""
_REMEMBERED, _SHORT = 2048, 400
"""What is read again and again (names of headers and of people, subjects): how many values, of at most how many characters each."""


def split_message(raw: bytes) -> tuple[bytes, bytes]:
    """Header block and body. Without an empty line everything is header, unless the first line is none at all."""
    if raw[:2] == b"\r\n" or raw[:1] == b"\n":
        return b"", raw.lstrip(b"\r\n")
    end, after = _end_of_header(raw)
    first = raw[: min(end, 64 * 1024)].split(b"\n", 1)[0]
    if b":" not in first and not first.startswith(b"From "):
        return b"", raw
    return raw[:end], raw[after:]


def _end_of_header(raw: bytes) -> tuple[int, int]:
    """Where the first empty line begins and ends. Looked for one form after the other: a pattern of all takes ten times as long."""
    end = after = len(raw)
    for form in _ENDS:
        found = raw.find(form, 0, end + 2)
        if 0 <= found < end:
            end, after = found, found + len(form)
    return (end - 1 if raw[end - 1 : end + 1] == b"\r\n" else end), after


def read_headers(head: bytes, defects: set[str], limits: ParseLimits = DEFAULT_LIMITS) -> RawHeaders:
    """All headers in order. Adds `bad_header`, `charset` or `headers_truncated` to the defects."""
    plain = _plain_headers(head) if len(head) <= min(limits.header, MAX_VALUE) else None
    return _any_headers(head, defects, limits) if plain is None else plain


def _plain_headers(head: bytes) -> RawHeaders | None:
    """All headers of a block without a single oddity, as nearly all mail has it, read at once; None for any other."""
    try:
        text = head.decode().replace("\r\n", "\n")
    except UnicodeDecodeError:
        return None
    if "\n\n" in text or "\0" in text:
        return None
    headers: RawHeaders = []
    for line in text.removesuffix("\n").replace("\n\t", " ").replace("\n ", " ").split("\n"):
        before, _, value = line.partition(":")
        name = _name_in(before) if len(before) <= _SHORT else None
        if name is None or len(before) == len(line) or len(headers) == MAX_HEADERS:
            return None
        headers.append((name, value.strip() if value.isprintable() and "  " not in value else _BLANKS.sub(" ", value).strip()))
    return headers


@lru_cache(maxsize=_REMEMBERED)
def _name_in(before: str) -> str | None:
    """The name of a header, the same object for all messages; None for what is none."""
    return before.rstrip() if before.isascii() and _NAME.match(before.encode("ascii")) else None


def _any_headers(head: bytes, defects: set[str], limits: ParseLimits) -> RawHeaders:
    headers: RawHeaders = []
    if len(head) > limits.header:
        defects.add("headers_truncated")
    for name, value in _unfolded(head[: limits.header], defects):
        if len(headers) >= MAX_HEADERS:
            defects.add("headers_truncated")
            break
        if len(value) > MAX_VALUE:
            defects.add("headers_truncated")
            value = value[:MAX_VALUE]  # noqa: PLW2901
        text, is_certain = decode_text(value, None)
        if not is_certain:
            defects.add("charset")
        headers.append((name.decode("ascii"), _unblanked(text)))
    return headers


def _unblanked(text: str) -> str:
    """Every run of blanks and control characters as one blank."""
    plain = text.replace("\n\t", " ").replace("\n ", " ")
    if plain.isprintable() and "  " not in plain:
        return plain.strip()
    return _BLANKS.sub(" ", text).strip()


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


def by_name(headers: RawHeaders) -> NamedHeaders:
    """The same headers, to be asked for one by one."""
    named: dict[str, list[str]] = {}
    for name, value in headers:
        named.setdefault(name.lower(), []).append(value)
    return named


def first(headers: NamedHeaders, name: str) -> str:
    """The first value under this name (in lower case), or an empty string: of duplicates the first one counts, as in most clients."""
    values = headers.get(name)
    return values[0] if values else ""


def decode_words(value: str) -> str:
    """Encoded words into text (RFC 2047). Neighbours in one charset are joined as bytes first: senders split inside a character."""
    if "=?" not in value:
        return value
    return _decoded_again(value) if len(value) <= _SHORT else _decoded(value)


def _decoded(value: str) -> str:
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


_decoded_again = lru_cache(maxsize=_REMEMBERED)(_decoded)


def _word_bytes(encoding: str, text: str) -> bytes:
    if encoding in "qQ":
        return binascii.a2b_qp(text.encode("utf-8"), header=True)
    return lenient_base64(text.encode("utf-8"))


def lenient_base64(data: bytes) -> bytes:
    """What can be read of damaged base64: foreign characters are skipped, a torn end is dropped."""
    letters = re.sub(rb"[^A-Za-z0-9+/]", b"", data)
    usable = letters[: len(letters) - 1] if len(letters) % 4 == 1 else letters
    return binascii.a2b_base64(usable + b"=" * (-len(usable) % 4))


def addresses(headers: NamedHeaders, name: str, defects: set[str]) -> list[Address]:
    """Everybody in the headers of this name, groups flattened. Adds `bad_address` when something was there and nobody could be read."""
    values = headers.get(name)
    if not values or not any(values):
        return []
    everybody = [each for value in values for each in (_people_again(value) if len(value) <= _SHORT else _people(value))]
    found = [each for each in everybody[:MAX_ADDRESSES] if each.addr]
    if len(everybody) > MAX_ADDRESSES:
        defects.add("too_many_addresses")
    if not found and not any(":" in value for value in values):  # an empty group is how "undisclosed recipients" is said
        defects.add("bad_address")
    return found


def _people(value: str) -> Sequence[Address]:
    """Whoever is named in one header; `addr` is empty where there is only a name."""
    return tuple(Address(decode_words(display), _BLANKS.sub("", storable(addr))) for display, addr in _pairs(value))


_people_again = lru_cache(maxsize=_REMEMBERED)(_people)

_LENIENT: dict[str, bool] = {"strict": False} if getattr(email.utils, "supports_strict_parsing", False) else {}
"""Newer Pythons give nobody for a header with a single mistake in it (CVE-2023-27043). Here nothing is decided by an address; who
decides reads the indicators."""


def _pairs(value: str) -> list[tuple[str, str]]:
    """(display name, address) of one header; the plain forms nearly all mail has are read at once, the rest by the standard library."""
    each = [value] if "," not in value or _MORE_THAN_PLAIN & set(value) else [one.strip() for one in value.split(",")]
    plain = [_PLAIN_ADDRESS.fullmatch(one) for one in each]
    if all(plain):
        return [((one["quoted"] or one["name"] or "").strip(), one["bare"] or one["angled"]) for one in plain if one]
    try:
        return getaddresses([value], **_LENIENT)
    except (RecursionError, IndexError, ValueError):  # a thousand nested comments
        return []


def date(headers: NamedHeaders, defects: set[str]) -> datetime | None:
    """The Date header in UTC, or None; `-0000` and no zone count as UTC."""
    value = first(headers, "date")
    if not value:
        return None
    try:
        moment = plain_date(value) or parsedate_to_datetime(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        defects.add("bad_date")
        return None


def plain_date(value: str) -> datetime | None:
    """A date in the form nearly all mail has (RFC 5322 3.3); None for any other, and for a day that is none."""
    plain = _PLAIN_DATE.fullmatch(value)
    if plain is None:
        return None
    day, month, year, hour, minute, second, sign, hours, minutes = plain.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    try:
        zone = timezone(-offset if sign == "-" else offset)
        return datetime(int(year), _MONTHS.get(month, 0), int(day), int(hour), int(minute), int(second), tzinfo=zone)
    except ValueError:
        return None


def message_ids(value: str) -> list[str]:
    """All `<...>` of a Message-ID, In-Reply-To or References value, each once; of very many the first and the newest."""
    found = list(dict.fromkeys(_indexable(each) for each in _MESSAGE_ID.findall(value)))
    return found if len(found) <= MAX_REFERENCES else [found[0], *found[1 - MAX_REFERENCES :]]


def message_id(headers: NamedHeaders) -> str:
    """The Message-ID with its angle brackets; a bare one gets them; empty when there is none."""
    value = first(headers, "message-id")
    found: Sequence[str] = _MESSAGE_ID.findall(value)
    if found:
        return _indexable(found[0])
    bare = _BLANKS.sub("", value).strip("<>")
    return _indexable(f"<{bare[:900]}>") if bare else ""


def _indexable(message_id: str) -> str:
    """At most 1,000 bytes: an entry of a database's index has to fit a third of its page."""
    if len(message_id) <= 250 or len(encoded := message_id.encode("utf-8", "replace")) <= 1000:
        return message_id
    return encoded[:999].decode("utf-8", "ignore") + ">"
