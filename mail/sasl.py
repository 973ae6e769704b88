"""What is said when logging in (SASL), the same for IMAP and POP3: PLAIN with a password, OAUTHBEARER and XOAUTH2 with a token."""

from __future__ import annotations

import base64
from collections.abc import Collection
from dataclasses import dataclass, field

from mail.accounts import Endpoint, Secret
from mail.errors import AuthenticationRefused


@dataclass(frozen=True, slots=True)
class Exchange:
    """The client's side: the `initial` response, and what to answer when the server goes on asking; all in base64."""

    mechanism: bytes
    initial: bytes = field(repr=False)
    later: tuple[bytes, ...] = ()


def plain(username: str, password: Secret) -> Exchange:
    """RFC 4616; carries any character, unlike LOGIN."""
    return Exchange(b"PLAIN", base64.b64encode(f"\0{username}\0{password.reveal()}".encode()))


def token_exchange(endpoint: Endpoint, mechanisms: Collection[str]) -> Exchange:
    """OAUTHBEARER (RFC 7628) before XOAUTH2 (Google, Microsoft). Raises AuthenticationRefused when the server knows neither.

    A refused token is told in a challenge first; an empty answer (`AQ==` in OAUTHBEARER) brings the refusal itself.
    """
    token = endpoint.token.reveal() if endpoint.token is not None else ""
    user = endpoint.username or ""
    if "OAUTHBEARER" in mechanisms:
        name = user.replace("=", "=3D").replace(",", "=2C")
        text = f"n,a={name},\1host={endpoint.host}\1port={endpoint.port}\1auth=Bearer {token}\1\1"
        return Exchange(b"OAUTHBEARER", base64.b64encode(text.encode()), (b"AQ==",))
    if "XOAUTH2" in mechanisms:
        return Exchange(b"XOAUTH2", base64.b64encode(f"user={user}\1auth=Bearer {token}\1\1".encode()), (b"",))
    raise AuthenticationRefused(f"{endpoint.where} knows no login with a token.")
