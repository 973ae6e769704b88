"""IMAP answers taken apart (RFC 9051 section 9): values, lists, dates, UID sets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from mail.mailbox import Flags, UidRanges

Value: TypeAlias = "bytes | list[Value] | None"
"""An atom, a string or a literal; a parenthesised list; NIL."""

_TOKEN = re.compile(
    rb'(?P<open>\()|(?P<close>\))|"(?P<quoted>(?:[^"\\]|\\.)*)"|~?\{(?P<literal>\d+)\+?\}'
    rb"|(?P<atom>(?:BODY|BINARY|RFC822)[A-Z0-9.]*\[[^\]]*\](?:<\d+>)?|[^\s()\"{]+)",
    re.IGNORECASE,
)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_CODE = re.compile(rb"\[([A-Za-z0-9-]+)(?: ([^\]]*))?\]")
_DATE = re.compile(rb"\s*(\d{1,2})-([A-Za-z]{3})-(\d{4}) (\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d)")
_MONTHS = {name: number for number, name in enumerate(b"jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}


@dataclass(frozen=True, slots=True)
class Response:
    """One answer of the server: `line` with `{n}` where literals stood, and those literals in order."""

    line: bytes
    literals: list[bytes] = field(default_factory=list)

    @property
    def word(self) -> bytes:
        """What kind it is, in capitals: OK, BYE, FETCH, LIST, ... (the number in `* 12 FETCH` is passed over)."""
        words = self.line.split(None, 3)
        if len(words) > 2 and words[1].isdigit():
            return words[2].upper()
        return words[1].upper() if len(words) > 1 else b""

    @property
    def code(self) -> tuple[str, bytes]:
        """The bracketed response code of a status answer in capitals, and its argument; both empty without one."""
        match = _CODE.search(self.line)
        return (match.group(1).decode("ascii").upper(), match.group(2) or b"") if match else ("", b"")

    @property
    def text(self) -> str:
        """The whole line as text. For looking into, never for showing: servers echo user names."""
        return self.line.decode("utf-8", "replace")


def values(response: Response) -> list[Value]:
    """The values of a response line, tag included. Unbalanced brackets are closed or passed over: nothing raises."""
    top: list[Value] = []
    stack = [top]
    literals = iter(response.literals)
    for match in _TOKEN.finditer(response.line):
        kind = match.lastgroup
        if kind == "open":
            inner: list[Value] = []
            stack[-1].append(inner)
            stack.append(inner)
        elif kind == "close":
            if len(stack) > 1:
                stack.pop()
        elif kind == "quoted":
            stack[-1].append(_ESCAPED.sub(rb"\1", match["quoted"]))
        elif kind == "literal":
            stack[-1].append(next(literals, b""))
        else:
            atom = match["atom"]
            stack[-1].append(None if atom.upper() == b"NIL" else atom)
    return top


def fetch_items(response: Response) -> dict[bytes, Value]:
    """The items of `* n FETCH (...)` by name in capitals; empty for any other response."""
    if response.word != b"FETCH":
        return {}
    parsed = values(response)
    items = parsed[3] if len(parsed) > 3 else None
    if not isinstance(items, list):
        return {}
    return {name.upper(): value for name, value in zip(items[::2], items[1::2], strict=False) if isinstance(name, bytes)}


def number(value: Value) -> int | None:
    """A number of at most 19 digits (a modseq has 63 bits), or None."""
    return int(value) if isinstance(value, bytes) and value.isdigit() and len(value) < 20 else None


def flags_of(value: Value) -> Flags:
    """Flags as text; unreadable bytes in a keyword are replaced."""
    if not isinstance(value, list):
        return frozenset()
    texts = (flag.decode("utf-8", "replace").replace("\0", "") for flag in value if isinstance(flag, bytes))
    return frozenset(text for text in texts if text.lower() != "\\recent")


def internal_date(value: Value) -> datetime | None:
    """INTERNALDATE in UTC. By hand: `strptime` reads months in the machine's language."""
    match = _DATE.match(value) if isinstance(value, bytes) else None
    if match is None:
        return None
    day, month, year, hour, minute, second, sign, zone_hours, zone_minutes = match.groups()
    offset = timedelta(hours=int(zone_hours), minutes=int(zone_minutes))
    try:
        local = datetime(int(year), _MONTHS[month.lower()], int(day), int(hour), int(minute), min(int(second), 59), tzinfo=UTC)
        return local - offset if sign == b"+" else local + offset
    except (ValueError, KeyError, OverflowError):
        return None


def uid_ranges(text: bytes) -> list[tuple[int, int]]:
    """`1:3,7` as [(1, 3), (7, 7)]."""
    ranges: list[tuple[int, int]] = []
    for piece in text.split(b","):
        first, _, last = piece.partition(b":")
        if first.isdigit() and (not last or last.isdigit()):
            ranges.append((int(first), int(last or first)))
    return ranges


def search_result(response: Response) -> UidRanges | None:
    """The UIDs of an ESEARCH (`ALL 1:3,7`, RFC 4731) or SEARCH (`1 2 3 7`) response; None for any other."""
    parsed = values(response)
    if response.word == b"ESEARCH":
        names = [value.upper() if isinstance(value, bytes) else b"" for value in parsed]
        found = parsed[names.index(b"ALL") + 1] if b"ALL" in names[:-1] else b""
        return UidRanges(uid_ranges(found) if isinstance(found, bytes) else [])
    if response.word == b"SEARCH":
        return UidRanges((uid, uid) for uid in map(number, parsed[2:]) if uid is not None)
    return None


def quoted(text: str) -> bytes:
    """A quoted string (RFC 9051 4.3). The caller has made sure that there is no line break or NUL in it."""
    return b'"' + text.encode("utf-8").replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
