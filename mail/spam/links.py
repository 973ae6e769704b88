"""Where a link leads, taken apart without asking anybody."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from mail.spam.hops import organisation

_PARTS = re.compile(r"([a-z][a-z0-9+.-]{1,20}):[/\\]*([^/\\?#]*)([^?#]*)(\?[^#]*)?", re.IGNORECASE)
_IGNORED = re.compile(r"[\x00-\x20]+")
_NUMBER_HOST = re.compile(r"(?:0x[0-9a-f]+|\d+)(?:\.(?:0x[0-9a-f]+|\d+)){0,3}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Target:
    """A link's parts. `host` is lower case and may be empty; `organisation` is its registrable part."""

    url: str
    scheme: str
    host: str
    organisation: str
    port: str
    user: str
    path: str
    query: str

    @property
    def is_address(self) -> bool:
        """Whether the host is a number in any of the forms browsers take (RFC 3986 7.4)."""
        return self.host.startswith("[") or _NUMBER_HOST.fullmatch(self.host) is not None

    @property
    def is_web(self) -> bool:
        """Whether following it asks a web server."""
        return self.scheme in {"http", "https", "ftp"}


@lru_cache(maxsize=5_000)
def read_target(url: str) -> Target:
    """Never raises; what has no scheme is read as a web address."""
    cleaned = _IGNORED.sub("", url[:2000])
    match = _PARTS.match(cleaned)
    if match is None or (match.group(1).lower() not in _SCHEMES and "." in match.group(1)):
        match = _PARTS.match(f"http://{cleaned}")
    if match is None:
        return Target(url, "", "", "", "", "", "", "")
    scheme, netloc = match.group(1).lower(), match.group(2)
    path, query = match.group(3), (match.group(4) or "")[1:]
    if scheme not in _WEB:
        return Target(url, scheme, "", "", "", "", netloc + path, query)
    user, _, place = netloc.rpartition("@")
    host, _, port = place.partition(":") if not place.startswith("[") else (place.partition("]")[0] + "]", "", place.rpartition("]:")[2])
    host = host.strip(".").lower()[:253]
    org = host if not host or host[-1] in "0123456789]" else organisation(host)
    return Target(url, scheme, host, org, port if port.isdigit() else "", user, path, query)


_WEB = frozenset({"http", "https", "ftp"})
_SCHEMES = _WEB | {"mailto", "tel", "cid", "data", "javascript", "file", "sms"}
