"""IMAP answers taken apart (RFC 9051 section 9): values, lists, dates, UID sets."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import TypeAlias

from mail.mailbox import Flags, UidRanges

MAX_UID = 2**32 - 1
MAX_SIZE = 2**31 - 1

Value: TypeAlias = "bytes | list[Value] | None"
"""An atom, a string or a literal; a parenthesised list; NIL."""

_TOKEN = re.compile(
    rb'(?P<open>\()|(?P<close>\))|"(?P<quoted>(?:[^"\\]|\\.)*)"|~?\{(?P<literal>\d+)\+?\}'
    rb"|(?P<atom>(?:BODY|BINARY|RFC822)[A-Z0-9.]*\[[^\]]*\](?:<\d+>)?|[^\s()\"{]+)",
    re.IGNORECASE,
)
_ITEM = rb"""([A-Za-z0-9.-]+(?:\[[^\]\s]*\])?) (?:(\d+)|"([^"\\]+)"|\(((?!(?i:nil))[^\s()"{}]*(?: (?!(?i:nil))[^\s()"{}]+)*)\)|\{(\d+)\})"""
_PLAIN_ITEM = re.compile(_ITEM)
_PLAIN_FETCH = re.compile(rb"\* \d+ FETCH \((" + _ITEM + rb"(?: " + _ITEM + rb")*)\)")
"""How most servers answer: each item a number, a string without escapes, a list of atoms or a literal. A fifth of the time of `_TOKEN`."""
_FLAG = re.compile(r"\\?[!#$&'+,\-./0-9:;<=>?@A-Z\[^_`a-z|}~]+")
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_CODE = re.compile(rb"\[([A-Za-z0-9-]+)(?: ([^\]]*))?\]")
_DATE = re.compile(rb"\s*(\d{1,2})-([A-Za-z]{3})-(\d{4}) (\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d)")
_MONTH_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
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
    plain = _PLAIN_FETCH.fullmatch(response.line)
    if plain is not None:
        literals = iter(response.literals)
        return {name.upper(): _plain_value(found, literals) for name, *found in _PLAIN_ITEM.findall(plain.group(1))}
    if response.word != b"FETCH":
        return {}
    parsed = values(response)
    items = parsed[3] if len(parsed) > 3 else None
    if not isinstance(items, list):
        return {}
    return {name.upper(): value for name, value in zip(items[::2], items[1::2], strict=False) if isinstance(name, bytes)}


def _plain_value(found: Sequence[bytes], literals: Iterator[bytes]) -> Value:
    atom, quoted_text, flags, literal = found
    if literal:
        return next(literals, b"")
    return atom or quoted_text or list[Value](flags.split())


def uid_items(responses: Iterable[Response], first: int, last: int) -> Iterator[tuple[int, dict[bytes, Value]]]:
    """The FETCH answers with a UID in the range. Others are news about the mailbox, or the `n:*` quirk: the last message always answers."""
    for response in responses:
        items = fetch_items(response)
        uid = number(items.get(b"UID"))
        if uid is not None and first <= uid <= min(last, MAX_UID):
            yield uid, items


def number(value: Value) -> int | None:
    """A number below 2^63 (the largest modseq, and what a database takes), or None."""
    found = int(value) if isinstance(value, bytes) and value.isdigit() and len(value) < 20 else None
    return found if found is not None and found < 2**63 else None


def size_in(items: dict[bytes, Value]) -> int:
    """RFC822.SIZE; 0 when it is missing. Nothing is larger than 2 GB: whoever says so is not believed."""
    return min(number(items.get(b"RFC822.SIZE")) or 0, MAX_SIZE)


def flags_of(value: Value) -> Flags:
    """Flags as text; unreadable bytes in a keyword are replaced."""
    if not isinstance(value, list):
        return frozenset()
    return _flags_of(tuple(flag for flag in value if isinstance(flag, bytes)))


@lru_cache(maxsize=1024)
def _flags_of(flags: tuple[bytes, ...]) -> Flags:
    """Most messages of a folder share a few sets: they are the same objects."""
    texts = (flag.decode("utf-8", "replace").replace("\0", "") for flag in flags)
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


def searched_uids(responses: Iterable[Response]) -> list[int]:
    """The UIDs of a plain SEARCH, one by one."""
    found = [value for response in responses if response.word == b"SEARCH" for value in values(response)[2:]]
    return sorted({uid for uid in map(number, found) if uid})


def quoted(text: str) -> bytes:
    """A quoted string (RFC 9051 4.3). The caller has made sure that there is no line break or NUL in it."""
    return b'"' + text.encode("utf-8").replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def date_time(moment: datetime) -> bytes:
    """A moment as APPEND takes it, in UTC and in English whatever the machine speaks."""
    utc = moment.astimezone(UTC)
    return b'"%02d-%b-%04d %b +0000"' % (utc.day, _MONTH_NAMES[utc.month - 1].encode(), utc.year, utc.strftime("%H:%M:%S").encode())


def flag_list(flags: Collection[str]) -> bytes:
    """`(\\Seen $Label)`. `\\Recent` is the server's alone, and what is no flag is left out: no server would take it."""
    good = sorted(flag for flag in flags if _FLAG.fullmatch(flag) and flag.lower() != "\\recent")
    return b"(" + " ".join(good).encode("ascii") + b")"


def uid_sets(uids: Iterable[int], *, longest: int = 7500) -> Iterator[tuple[bytes, list[int]]]:
    """UIDs as sets with ranges (`1:3,7`), each at most `longest` bytes (Exchange takes lines of 8 KB), with the UIDs in it."""
    pieces: list[bytes] = []
    inside: list[int] = []
    length = 0
    for first, last in _runs(sorted(set(uids))):
        piece = b"%d" % first if first == last else b"%d:%d" % (first, last)
        if pieces and length + len(piece) + 1 > longest:
            yield b",".join(pieces), inside
            pieces, inside, length = [], [], 0
        pieces.append(piece)
        inside += range(first, last + 1)
        length += len(piece) + 1
    if pieces:
        yield b",".join(pieces), inside


def _runs(ordered: Iterable[int]) -> Iterator[tuple[int, int]]:
    first = last = 0
    for uid in ordered:
        if last and uid == last + 1:
            last = uid
            continue
        if last:
            yield first, last
        first = last = uid
    if last:
        yield first, last


def copied_uids(responses: Iterable[Response], asked: Collection[int]) -> dict[int, int] | None:
    """Old UID to new UID from a COPYUID code (RFC 4315 3); None where there is none, or one that does not add up."""
    for response in responses:
        code, argument = response.code
        pieces = argument.split()
        if code == "COPYUID" and len(pieces) == 3:
            old, new = (list(islice(_expanded(uid_ranges(piece)), len(asked) + 1)) for piece in pieces[1:])
            return dict(zip(old, new, strict=True)) if len(old) == len(new) and set(old) <= set(asked) else None
    return None


def _expanded(ranges: Iterable[tuple[int, int]]) -> Iterator[int]:
    for pair in ranges:
        yield from range(min(pair), max(pair) + 1)
