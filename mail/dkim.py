"""Signing mail (RFC 6376, relaxed/relaxed) with RSA (rsa-sha256) or Ed25519 (RFC 8463), and the DNS record that publishes the key."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

from core.errors import InvalidInputError

ALGORITHMS = ("rsa-sha256", "ed25519-sha256")
RSA_BITS = 2048
SIGNED = ("from", "reply-to", "to", "cc", "subject", "date", "message-id", "in-reply-to", "references", "mime-version", "content-type",
    "content-transfer-encoding", "auto-submitted", "list-id", "list-unsubscribe", "list-unsubscribe-post", "feedback-id")  # fmt: skip
ONCE = ("from", "to", "cc", "subject", "date", "message-id", "reply-to")
"""Signed once more than they are there, so that nobody adds a second one (RFC 6376 8.15)."""
_BLANKS = re.compile(rb"[ \t]+")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_B_LINE = 72


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key that signs. Prints as nothing."""

    key: RSAPrivateKey | Ed25519PrivateKey

    def __repr__(self) -> str:
        return "***"

    @property
    def algorithm(self) -> str:
        """One of ALGORITHMS."""
        return ALGORITHMS[1] if isinstance(self.key, Ed25519PrivateKey) else ALGORITHMS[0]

    def as_text(self) -> str:
        """PKCS #8 in PEM, in clear, to be encrypted at once."""
        form, nothing = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return self.key.private_bytes(serialization.Encoding.PEM, form, nothing).decode("ascii")

    def public_record(self) -> str:
        """The TXT record's value (RFC 6376 3.6.1, RFC 8463 4)."""
        public = self.key.public_key()
        if isinstance(self.key, Ed25519PrivateKey):
            data = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
            return f"v=DKIM1; k=ed25519; p={base64.b64encode(data).decode()}"
        data = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return f"v=DKIM1; k=rsa; h=sha256; p={base64.b64encode(data).decode()}"

    def sign(self, data: bytes) -> bytes:
        """RSASSA-PKCS1-v1_5 over the data's hash; Ed25519 over the hash as its message (RFC 8463 3)."""
        if isinstance(self.key, Ed25519PrivateKey):
            return self.key.sign(hashlib.sha256(data).digest())
        return self.key.sign(data, padding.PKCS1v15(), hashes.SHA256())


def new_private_key(algorithm: str) -> PrivateKey:
    """Raises InvalidInputError for an algorithm that is none of ALGORITHMS."""
    if algorithm not in ALGORITHMS:
        raise InvalidInputError(f"algorithm is one of {', '.join(ALGORITHMS)}.")
    return PrivateKey(Ed25519PrivateKey.generate() if algorithm == ALGORITHMS[1] else generate_private_key(65537, RSA_BITS))


@lru_cache(maxsize=64)  # reading an RSA key takes longer than signing with it
def load_private_key(text: str) -> PrivateKey:
    """From `as_text`."""
    key = serialization.load_pem_private_key(text.encode("ascii"), None)
    if not isinstance(key, RSAPrivateKey | Ed25519PrivateKey):
        raise InvalidInputError("A DKIM key is an RSA or an Ed25519 key.")
    return PrivateKey(key)


def check_selector(selector: str) -> str:
    """Raises InvalidInputError for what cannot stand as a label in DNS."""
    if not _LABEL.fullmatch(selector):
        raise InvalidInputError("selector holds lower-case letters, digits and hyphens, at most 63.")
    return selector


def record_name(selector: str, domain: str) -> str:
    """Where the record is published (RFC 6376 3.6.2.1)."""
    return f"{selector}._domainkey.{domain}"


def txt_strings(record: str) -> list[str]:
    """The value as a zone file wants it: strings of at most 255 bytes, joined without blanks (RFC 6376 3.6.2.2)."""
    return [record[start : start + 255] for start in range(0, len(record), 255)]


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs for a domain."""

    domain: str
    selector: str
    key: PrivateKey

    def signed(self, raw: bytes, moment: datetime) -> bytes:
        """The message with a DKIM-Signature before its first header. `raw` has CRLF line ends and is not changed any more."""
        head, _, body = raw.partition(b"\r\n\r\n")
        fields = list(_fields(head + b"\r\n"))
        names = list(_signed_names([name for name, _ in fields]))
        tags = [
            "v=1",
            f"a={self.key.algorithm}",
            "c=relaxed/relaxed",
            f"d={self.domain}",
            f"s={self.selector}",
            f"t={int(moment.timestamp())}",
            f"h={':'.join(names)}",
            f"bh={base64.b64encode(hashlib.sha256(relaxed_body(body)).digest()).decode()}",
            "b=",
        ]
        unsigned = f"DKIM-Signature: {_folded(tags)}".encode("ascii")
        data = b"".join([*_chosen(fields, names), relaxed_header(unsigned).removesuffix(b"\r\n")])
        value = base64.b64encode(self.key.sign(data)).decode("ascii")
        lines = [value[start : start + _B_LINE] for start in range(0, len(value), _B_LINE)]
        return unsigned + "\r\n ".join(["", *lines]).encode("ascii") + b"\r\n" + raw


def relaxed_header(field: bytes) -> bytes:
    """One header field as it is hashed (RFC 6376 3.4.2)."""
    name, _, value = field.partition(b":")
    unfolded = value.replace(b"\r\n", b"")
    return name.strip().lower() + b":" + _BLANKS.sub(b" ", unfolded).strip(b" ") + b"\r\n"


def relaxed_body(body: bytes) -> bytes:
    """The body as it is hashed (RFC 6376 3.4.4)."""
    lines = [_BLANKS.sub(b" ", line).rstrip(b" ") for line in body.split(b"\r\n")]
    while lines and not lines[-1]:
        lines.pop()
    return b"\r\n".join(lines) + b"\r\n" if lines else b""


def _fields(head: bytes) -> Iterator[tuple[str, bytes]]:
    """(name in lower case, the whole field with its continuation lines)."""
    for match in re.finditer(rb"([!-9;-~]+)[ \t]*:.*?\r\n(?![ \t])", head, re.DOTALL):
        yield match.group(1).decode("ascii").lower(), match.group().removesuffix(b"\r\n")


def _signed_names(present: list[str]) -> Iterator[str]:
    for name in SIGNED:
        yield from [name] * present.count(name)
        if name in ONCE:
            yield name


def _chosen(fields: list[tuple[str, bytes]], names: list[str]) -> Iterator[bytes]:
    """Of several fields of a name the last first; one that is not there counts as nothing (RFC 6376 5.4.2)."""
    left: dict[str, list[bytes]] = {}
    for name, field in fields:
        left.setdefault(name, []).append(field)
    for name in names:
        if left.get(name):
            yield relaxed_header(left[name].pop())


def _folded(tags: list[str]) -> str:
    """Lines below 78 characters; the list of names and the hash may be broken anywhere between their parts."""
    lines, current = [], ""
    for part in "; ".join(tags).replace(":", ":\0").replace("; ", "; \0").split("\0"):
        if current and len(current) + len(part) > 74:
            lines.append(current.rstrip())
            current = ""
        current += part
    lines.append(current)
    return "\r\n ".join(lines)
