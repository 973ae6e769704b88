"""The way a message took, as relations that hold at any site: what the Received headers say of the host that handed it over."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from functools import lru_cache

from publicsuffixlist import PublicSuffixList

from mail.mime_headers import plain_date

_SUFFIXES = PublicSuffixList()
_FROM = re.compile(r"from\s+(\S+)", re.IGNORECASE)
_BY = re.compile(r"\s[bB][yY]\s")
_LONGEST_FROM = 400
_IP = re.compile(r"(?<![\d.])(\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3})(?![\d.])")
_NAME = re.compile(r"[\w-]+(?:\.[\w-]+)+")
_HELO = re.compile(r"\bhelo[= ]\s*([^\s)\]]+)", re.IGNORECASE)
_PRIVATE = re.compile(r"(?:10|127|0)\.|192\.168\.|172\.(?:1[6-9]|2\d|3[01])\.|169\.254\.")
_DYNAMIC = re.compile(r"dsl|dial|dyn|cable|pool|ppp|dhcp|client|cust|broadband|catv|user|host|\d{1,3}[.-]\d{1,3}[.-]\d{1,3}", re.IGNORECASE)

_YEAR_2100 = 4_102_444_800


@dataclass(frozen=True, slots=True)
class Hop:
    """One Received header (RFC 5321 4.4): the name that was said, the name that was found for the address, the address."""

    helo: str
    found: str
    address: str
    is_private: bool


@lru_cache(maxsize=20_000)
def organisation(domain: str) -> str:
    """The registrable part of a host name by the public suffix list; the name itself where there is none."""
    return _SUFFIXES.privatesuffix(domain.strip(".").lower()[:253]) or domain.lower()


def find_border(values: list[str]) -> tuple[Hop | None, int]:
    """The newest hop that came from a public address, the last one that our own side wrote; and how many there are behind it.

    Of Received headers, the newest first, the first 30; those without a `from` do not count.
    """
    border, behind = None, 0
    for value in values[:30]:
        value = value[:600]  # noqa: PLW2901
        match = _FROM.match(value)
        if match is None:
            continue
        by = _BY.search(value, match.end())
        end = len(value) if by is None else by.start()
        if end - match.end() > _LONGEST_FROM:
            continue
        if border is not None:
            behind += 1
        elif (hop := _hop(match.group(1), value[match.end() : end])).address and not hop.is_private:
            border = hop
    return border, behind


def _hop(said: str, rest: str) -> Hop:
    ips = _IP.findall(rest) or _IP.findall(said)
    helo = _HELO.search(rest)
    found = next((name.group() for name in _NAME.finditer(rest) if not name.group()[-1].isdigit()), "")
    if helo is not None:  # qmail and Exim: the name before the brackets is the one that was found
        said, found = helo.group(1), said if "." in said else ""
    address = ips[-1] if ips else ""
    return Hop(said.strip("[]()").lower(), found.lower(), address, bool(address) and _PRIVATE.match(address) is not None)


def is_dynamic(name: str) -> bool:
    """Whether a host name looks like one of a provider's customers."""
    return _DYNAMIC.search(name) is not None


def received_at(value: str) -> float | None:
    """When a Received header says that it was written, in seconds since the epoch; None for nonsense."""
    return _moment(value.rpartition(";")[2][:100].strip())


@lru_cache(maxsize=256)  # asked for several times of a message
def _moment(text: str) -> float | None:
    plain = plain_date(text)
    if plain is not None:
        moment = plain.timestamp()
    else:
        parsed = parsedate_tz(text)
        if parsed is None:
            return None
        try:
            moment = float(mktime_tz(parsed))
        except (ValueError, OverflowError):
            return None
    return moment if 0 < moment < _YEAR_2100 else None
