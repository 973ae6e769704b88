"""What travels on a broker: ids and no payloads, in dramatiq's own JSON, signed.

The signature keeps whoever can write to a broker from making Mailroom run something. It is the last member of the last member
of the object, and is made over the bytes before it, as they travel: nothing has to be brought into a canonical form, and
nothing that a worker acts on is outside it. It is checked before anything is parsed. Keys are a ring: the first signs, all verify.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import Any

import orjson
from dramatiq import Encoder

from core.errors import PermanentError
from core.settings import KeyRing

VERSION = 1
MAX_BYTES = 65_536
END = b'"}}'
MAC_AND_END = 64 + len(END)


class MessageRejectedError(PermanentError):
    """The message is not one of ours. `reason` says why in one word: not_json, unsigned, bad_signature..."""

    code = "message_rejected"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The message was rejected: {reason.replace('_', ' ')}.")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message for one run.

    `attempt` is None and `args` is filled only in a plain `.send()` of a service that does not share the database: its run is
    recorded when the message is claimed.
    """

    run_id: str
    task: str
    queue: str
    tenant_id: str
    user_id: str | None = None
    request_id: str | None = None
    attempt: int | None = 0
    priority: int = 1
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, eq=False)  # frozen would double the cost of making one
class Outgoing:
    """One message on its way to a broker. `declared` is the queue to declare when `routing_key` is that queue's dead letters, and
    `reason` says then why it is one of them."""

    routing_key: str
    body: bytes
    priority: int = 1
    declared: str | None = None
    reason: str | None = None


class MessageEncoder(Encoder):
    """Signs on the way out, verifies on the way in. As dramatiq's encoder it serves other services' plain `.send()` too."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = [_Key(key_id, key) for key_id, key in keys.items()]

    def encode(self, data: dict[str, Any]) -> bytes:
        """dramatiq's message fields to signed JSON."""
        fields = dict(data)
        options = {**fields.pop("options"), "v": VERSION}
        options.pop("signature", None)
        fields["options"] = options  # now the last
        signed = orjson.dumps(fields)[:-2]
        key = self._keys[0]
        return b"".join((signed, key.mark, key.mac(signed), END))

    def decode(self, data: bytes) -> dict[str, Any]:
        """Signed JSON to dramatiq's message fields. Raises MessageRejectedError."""
        for key in self._keys:
            signed = len(data) - MAC_AND_END - len(key.mark)
            if signed > 0 and data.startswith(key.mark, signed) and data.endswith(END):
                if not compare_digest(data[-MAC_AND_END : -len(END)], key.mac(data[:signed])):
                    raise MessageRejectedError("bad_signature")
                break
        else:
            raise MessageRejectedError(self._why_not(data))
        try:
            fields: dict[str, Any] = orjson.loads(data)
            options = fields["options"]
            del options["signature"]
        except (orjson.JSONDecodeError, KeyError, TypeError):  # whoever has the key signed it, but not by this encoder
            raise MessageRejectedError("not_json") from None
        if options.get("v") != VERSION:
            raise MessageRejectedError("newer_version")
        return fields

    def _why_not(self, data: bytes) -> str:
        """What is wrong with a message that does not end with the signature of a known key; nothing of it is believed."""
        try:
            options = orjson.loads(data)["options"]
            version, signature = options.get("v"), options.get("signature")
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, IndexError):
            return "not_json"
        if isinstance(version, int) and version > VERSION:
            return "newer_version"
        if not isinstance(signature, str):
            return "unsigned"
        known = {key.key_id for key in self._keys}
        return "bad_signature" if signature.partition(":")[0] in known else "unknown_key"

    def pack(self, envelope: Envelope) -> bytes:
        """An envelope as it goes to a broker."""
        return self.encode(
            {
                "queue_name": envelope.queue,
                "actor_name": envelope.task,
                "args": (),
                "kwargs": envelope.args,
                "message_id": envelope.run_id,
                "message_timestamp": time.time_ns() // 1_000_000,
                "options": {
                    "tenant_id": envelope.tenant_id,
                    "user_id": envelope.user_id,
                    "request_id": envelope.request_id,
                    "attempt": envelope.attempt,
                    "priority": envelope.priority,
                },
            }
        )

    def unpack(self, body: bytes) -> Envelope:
        """The envelope of a message from a broker. Raises MessageRejectedError."""
        if len(body) > MAX_BYTES:
            raise MessageRejectedError("too_large")
        fields = self.decode(body)
        options = fields["options"]
        attempt = options.get("attempt")
        try:
            run_id, tenant_id, user_id = fields["message_id"], options["tenant_id"], options.get("user_id")
            envelope = Envelope(
                run_id,
                fields["actor_name"],
                fields["queue_name"],
                tenant_id,
                user_id,
                options.get("request_id"),
                None if attempt is None else int(attempt),
                int(options.get("priority", 1)),
                dict(fields["kwargs"]),
            )
        except (KeyError, TypeError, ValueError):
            raise MessageRejectedError("incomplete") from None
        for text in (run_id, tenant_id, user_id or tenant_id):
            if not (isinstance(text, str) and _is_our_id(text)):
                raise MessageRejectedError("wrong_id")  # PostgreSQL would refuse the whole batch of claims that it is part of
        return envelope


class _Key:
    """One key of the ring. HMAC-SHA256 with both of its hashes already keyed (RFC 2104, section 4): half the time of hmac.digest."""

    def __init__(self, key_id: str, key: bytes) -> None:
        block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
        self.key_id = key_id
        self.mark = b',"signature":' + orjson.dumps(f"{key_id}:")[:-1]
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def mac(self, signed: bytes) -> bytes:
        """In hexadecimal."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(signed)
        outer.update(inner.digest())
        return outer.hexdigest().encode()


_is_our_id = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
