"""Passwords at rest: AES-256-GCM, bound to the tenant, the account and the kind of secret.

The binding is the additional authenticated data: a ciphertext copied to another row, account or tenant does not decrypt. The
key ring's first key encrypts; every key of the ring decrypts, so that keys can be rotated.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from core.errors import PermanentError
from core.settings import KeyRing

FORMAT = b"1"
NONCE_BYTES = 12


class CredentialError(PermanentError):
    """A stored credential cannot be read with the keys in force."""

    code = "credential"


class CredentialBox:
    """Encrypts and decrypts one kind of secret of one account."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys
        self._active = next(iter(keys))

    def encrypt(self, secret: str, *, tenant_id: str, account_id: str, kind: str) -> bytes:
        """The ciphertext to store: format, key id, nonce, data."""
        return self.seal(secret.encode(), tenant_id=tenant_id, account_id=account_id, kind=kind)

    def decrypt(self, stored: bytes, *, tenant_id: str, account_id: str, kind: str) -> str:
        """The secret. Raises CredentialError for an unknown key, another owner's ciphertext, or a damaged one."""
        return self.open(stored, tenant_id=tenant_id, account_id=account_id, kind=kind).decode()

    def seal(self, secret: bytes, *, tenant_id: str, account_id: str, kind: str) -> bytes:
        """`encrypt` for bytes. `account_id` is the id of whatever row the secret belongs to."""
        nonce = os.urandom(NONCE_BYTES)
        sealed = AESGCM(self._keys[self._active]).encrypt(nonce, secret, _binding(tenant_id, account_id, kind))
        return b":".join((FORMAT, self._active.encode(), nonce + sealed))

    def open(self, stored: bytes, *, tenant_id: str, account_id: str, kind: str) -> bytes:
        """`decrypt` for bytes."""
        version, _, rest = bytes(stored).partition(b":")
        key_id, _, sealed = rest.partition(b":")
        key = self._keys.get(key_id.decode(errors="replace"))
        if version != FORMAT or key is None:
            raise CredentialError("The stored credential was encrypted with a key that is not in CREDENTIAL_ENCRYPTION_KEY.")
        try:
            return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _binding(tenant_id, account_id, kind))
        except InvalidTag:
            raise CredentialError("The stored credential does not belong to this account, or is damaged; set it again.") from None


def _binding(tenant_id: str, account_id: str, kind: str) -> bytes:
    return "|".join((FORMAT.decode(), tenant_id, account_id, kind)).encode()
