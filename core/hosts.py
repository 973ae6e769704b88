"""Which network addresses Mailroom may connect to on behalf of a tenant, and the one mail server that an operator names.

An account's host name is a tenant's input. It is resolved once, every answer is judged, and the socket is opened to a judged
address, so that neither a private address nor a second answer of the name server leads inside (SSRF, DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from core.errors import PermanentError, TransientError

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # "this host": Linux connects 0.0.0.0 to itself
        "192.88.99.0/24",  # 6to4 relays
        "::/96",  # IPv4-compatible, carries an IPv4 address past the check (::1 is judged before)
        "64:ff9b::/96",  # NAT64, likewise
        "64:ff9b:1::/48",
        "2001::/32",  # Teredo, likewise
        "2002::/16",  # 6to4, likewise
        "fec0::/10",  # site-local: deprecated, and ipaddress calls it global
    )
)
"""Refused even where private hosts are allowed: no mail server lives there."""


class HostNotAllowed(PermanentError):  # noqa: N818  (says what happened; it is the name callers catch)
    """The host is no valid name or lies where connections are not allowed. The sentence does not say which address it has."""

    code = "host_not_allowed"


class ConnectionFailed(TransientError):  # noqa: N818
    """The host cannot be reached just now, or the connection to it was lost."""

    code = "connection_failed"


class HostUnresolved(ConnectionFailed):
    """The name server has no answer for the host just now."""

    code = "host_unresolved"


SMTP_PORTS = {"plain": 25, "starttls": 587, "tls": 465}
SMTP_SCHEMES = {"smtp": "plain", "smtp+starttls": "starttls", "smtps": "tls"}
SMTP_TLS = {"none": "plain", "starttls": "starttls", "implicit": "tls"}
_NAME_SERVER = re.compile(r"(?:(?P<four>[0-9.]+)|\[(?P<six>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """What SYSTEM_SMTP_URL says. `security` is one of tls, starttls, plain."""

    host: str
    port: int
    security: str
    username: str | None = field(repr=False)
    password: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Address:
    """One judged address of a host, ready for `socket.connect`."""

    family: int
    ip: str
    port: int


def is_private(ip: str) -> bool:
    """True for loopback, private and shared (RFC 6598) addresses: those that `allow_private` opens."""
    return not _unwrapped(ip).is_global


def is_allowed(ip: str, *, allow_private: bool) -> bool:
    """Whether a connection to this address may be opened. Link-local stays shut always: cloud metadata lives there."""
    address = _unwrapped(ip)
    if address.is_loopback:
        return allow_private
    if address.is_multicast or address.is_unspecified or address.is_link_local:
        return False
    if any(address.version == network.version and address in network for network in _NEVER):
        return False
    return address.is_global or allow_private


def resolve_checked(host: str, port: int, *, allow_private: bool) -> list[Address]:
    """All addresses of the host, in the resolver's order, each of them allowed.

    Raises HostNotAllowed when any one is not (a mixed answer is an attack or a mistake), HostUnresolved when there is none.
    """
    if not host or not 0 < port < 65536:
        raise HostNotAllowed("The host name or the port is not valid.")
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label is empty or too long: no resolver will ever know it
        raise HostNotAllowed("The host name is not valid.") from error
    except OSError as error:
        raise HostUnresolved(f"The host name {host} cannot be resolved.") from error
    addresses = list(dict.fromkeys(Address(int(family), str(where[0]), port) for family, _, _, _, where in answers))
    if not addresses:
        raise HostUnresolved(f"The host name {host} has no address.")
    if not all(is_allowed(address.ip, allow_private=allow_private) for address in addresses):
        raise HostNotAllowed(f"Connections to {host}:{port} are not allowed.")
    return addresses


def connect_checked(host: str, port: int, *, allow_private: bool, timeout: float) -> socket.socket:
    """A TCP connection to the first judged address that answers; `timeout` seconds in all, then for each read and write.

    Raises HostNotAllowed, HostUnresolved or ConnectionFailed.
    """
    addresses = resolve_checked(host, port, allow_private=allow_private)
    deadline = time.monotonic() + timeout
    failure: OSError = TimeoutError()
    for address in addresses:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            return _connected(address, within=left, then=timeout)
        except OSError as error:
            failure = error
    why = "timed out" if isinstance(failure, TimeoutError) else "the connection was refused or is not possible"
    raise ConnectionFailed(f"{host}:{port} cannot be reached: {why}.") from failure


def _connected(address: Address, *, within: float, then: float) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.settimeout(within)
        sock.connect((address.ip, address.port))
        sock.settimeout(then)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # commands are small and answers are waited for
    except BaseException:  # a time limit too, which may strike anywhere: nothing stays open
        sock.close()
        raise
    return sock


def _unwrapped(ip: str) -> IpAddress:
    """The address itself, without a zone (`fe80::1%eth0`); the IPv4 one inside `::ffff:a.b.c.d`."""
    address = ipaddress.ip_address(ip.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def parse_smtp_url(text: str) -> SmtpServer:
    """`smtp://` in clear text, `smtp+starttls://`, `smtps://`; `?tls=implicit|starttls|none` says the same. A login is percent-encoded.

    Raises ValueError with one sentence that repeats nothing of the URL.
    """
    try:
        url = urlsplit(text)
        port, query = url.port, dict(parse_qsl(url.query, keep_blank_values=True))
    except ValueError:
        raise ValueError("is no URL; write it like smtp+starttls://user:password@mail.example.com:587") from None
    security = SMTP_SCHEMES.get(url.scheme)
    if security is not None and "tls" in query:
        security = SMTP_TLS.get(query.pop("tls"))
    is_odd = query or url.path.strip("/") or url.fragment or port == 0 or (url.password and not url.username)
    if security is None or not url.hostname or is_odd:
        raise ValueError("must look like smtp+starttls://user:password@host:port (or smtps://, smtp://, ?tls=implicit|starttls|none)")
    username, password = (unquote(part) if part else None for part in (url.username, url.password))
    return SmtpServer(url.hostname, port or SMTP_PORTS[security], security, username, password)


def parse_name_server(text: str) -> tuple[str, int]:
    """The address and the port of `192.0.2.53`, `127.0.0.1:5353`, `[2001:db8::53]:53`. Raises ValueError for what is none."""
    found = _NAME_SERVER.fullmatch(text)
    if found is None or not 0 < int(found["port"] or 53) < 65_536:
        raise ValueError("no address of a name server")
    ip: IpAddress = ipaddress.IPv4Address(found["four"]) if found["four"] else ipaddress.IPv6Address(found["six"])
    return str(ip), int(found["port"] or 53)


def is_name_server(text: str) -> bool:
    """Whether it is `system`, for the machine's own ones, or an address of one."""
    try:
        return text == "system" or bool(parse_name_server(text))
    except ValueError:
        return False
