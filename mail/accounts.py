"""How to reach a mail server and as whom. Secrets travel wrapped, so that no log line or traceback shows them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn


class Security(StrEnum):
    """How a connection is protected."""

    TLS = "tls"  # from the first byte (RFC 8314)
    STARTTLS = "starttls"  # upgraded before anything is said; never optional
    PLAIN = "plain"  # not at all; a password then goes to private addresses only


class Secret:
    """A password or token that prints as `***`; `reveal()` gives it to the protocol that needs it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(("Secret", self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("A secret is not pickled.")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server of an account. `timeout` is in seconds, for connecting and for each read and write.

    `token` is an OAuth access token and is used instead of the password. `compress` asks IMAP servers for COMPRESS=DEFLATE: worth it
    on slow links only. `without` names capabilities that are not used whatever the server offers, in capitals: some have them broken.
    """

    host: str
    port: int
    security: Security
    username: str | None = None
    secret: Secret | None = None
    verify_tls: bool = True
    allow_private: bool = False
    timeout: float = 30
    token: Secret | None = None
    compress: bool = False
    without: frozenset[str] = frozenset()

    @property
    def where(self) -> str:
        """`host:port`, the way error sentences name a server."""
        return f"{self.host}:{self.port}"
