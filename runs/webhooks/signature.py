"""Secrets and signatures of Standard Webhooks 1.0 (github.com/standard-webhooks/standard-webhooks, spec)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence

from core.errors import InvalidInputError

PREFIX = "whsec_"
SECRET_BYTES = 32
ALLOWED_BYTES = range(24, 65)


def new_secret() -> str:
    """For the receiver; shown once."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def key_of(secret: str) -> bytes:
    """The bytes that sign. Raises InvalidInputError for text that is no secret."""
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(PREFIX) or len(key) not in ALLOWED_BYTES:
        raise InvalidInputError("A webhook's secret is whsec_ and 24 to 64 bytes in Base64.")
    return key


def headers_of(event_id: str, timestamp: int, body: bytes, keys: Sequence[str]) -> dict[str, str]:
    """The three headers. `timestamp` in seconds; one signature for each secret, so that either may be known to the receiver."""
    signed = b".".join((event_id.encode(), str(timestamp).encode(), body))
    signatures = [base64.b64encode(hmac.digest(key_of(secret), signed, hashlib.sha256)).decode() for secret in keys]
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
