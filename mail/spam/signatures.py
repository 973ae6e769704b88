"""A message's signatures verified once more: RSA (RFC 6376) and Ed25519 (RFC 8463).

The library knows Ed25519 only with another one that is not installed. What that is needed for, the key and one call, is here.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dkim
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from dkim.util import parse_tag_value

Lookup = Callable[[str], bytes | None]
"""The TXT record of a name, or None."""


def verify_signature(raw: bytes, index: int, lookup: Lookup) -> bool | None:
    """Whether the signature with this place among those of the header verifies; None where its key is not to be had. Never raises."""
    missing = False

    def key(name: bytes | str, timeout: int = 5) -> bytes | None:  # noqa: ARG001 - the library passes it
        nonlocal missing
        try:
            record = lookup((name.decode("ascii", "replace") if isinstance(name, bytes) else name).rstrip("."))
        except Exception:  # whoever looks it up: that a key is not to be had is nobody's fault
            record = None
        missing |= record is None
        return record

    try:
        verified = bool(_Message(raw).verify(idx=index, dnsfunc=key))
    except Exception:  # the library raises what it likes at a stranger's bytes: it does not verify
        verified = False
    return None if missing and not verified else verified


class _Message(dkim.DKIM):  # type: ignore[misc]  # the library has no types
    """A message whose Ed25519 signatures can be verified too."""

    def verify_sig(
        self, sig: dict[bytes, bytes], include_headers: list[bytes], sig_header: Any, dnsfunc: Callable[..., bytes | None]
    ) -> bool:
        """As the library's, with a key of ours for Ed25519."""
        if sig[b"a"] != b"ed25519-sha256":
            return bool(super().verify_sig(sig, include_headers, sig_header, dnsfunc))
        record = dnsfunc(sig[b"s"] + b"._domainkey." + sig[b"d"])
        if record is None:
            return False
        self.pk, self.keysize, self.ktag, self.seqtlsrpt = _ed25519_key(record), 256, b"ed25519", False
        return bool(self.verify_sig_process(sig, include_headers, sig_header, dnsfunc))


@dataclass(frozen=True, slots=True)
class _Ed25519Key:
    """A key as the library wants one: the data before the signature."""

    key: Ed25519PublicKey

    def verify(self, data: bytes, signature: bytes) -> None:
        """Raises InvalidSignature."""
        self.key.verify(signature, data)


def _ed25519_key(record: bytes) -> _Ed25519Key:
    """Of a key record (RFC 8463 4). Raises ValueError or KeyError for one of another kind, or one that was withdrawn (an empty `p`)."""
    tags = parse_tag_value(record)
    if tags.get(b"v", b"DKIM1") != b"DKIM1" or tags.get(b"k") != b"ed25519":
        raise ValueError("not an Ed25519 key")
    return _Ed25519Key(Ed25519PublicKey.from_public_bytes(base64.b64decode(tags[b"p"])))
