"""What travels on a broker: ids and no payloads, in dramatiq's own JSON, signed.

The signature covers everything a worker acts on, and is checked before anything else is looked at. It keeps whoever can write
to a broker from making Mailroom run something. Keys are a ring: the first signs, all verify.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass, field
from typing import Any

import orjson
from dramatiq import Encoder

from core.errors import PermanentError
from core.ids import is_id
from core.settings import KeyRing

VERSION = 1
MAX_BYTES = 65_536


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


@dataclass(frozen=True, slots=True, eq=False)
class Outgoing:
    """One message on its way to a broker. `declared` is the queue to declare when `routing_key` is that queue's dead letters."""

    routing_key: str
    body: bytes
    priority: int = 1
    declared: str | None = None


class MessageEncoder(Encoder):
    """Signs on the way out, verifies on the way in. As dramatiq's encoder it serves other services' plain `.send()` too."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys
        self._active = next(iter(keys))

    def encode(self, data: dict[str, Any]) -> bytes:
        """dramatiq's message fields to signed JSON."""
        options = {**data["options"], "v": VERSION}
        options.pop("signature", None)
        signed = {**data, "args": list(data["args"]), "options": options}
        options["signature"] = f"{self._active}:{_mac(self._keys[self._active], signed)}"
        return orjson.dumps(signed)

    def decode(self, data: bytes) -> dict[str, Any]:
        """Signed JSON to dramatiq's message fields. Raises MessageRejectedError."""
        try:
            fields = orjson.loads(data)
            signature = fields["options"].pop("signature", None)
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise MessageRejectedError("not_json") from None
        self._verify(fields, signature)
        if fields["options"].get("v") != VERSION:
            raise MessageRejectedError("newer_version")
        return dict(fields)

    def _verify(self, fields: dict[str, Any], signature: object) -> None:
        if not isinstance(signature, str):
            raise MessageRejectedError("unsigned")
        key_id, _, mac = signature.partition(":")
        if key_id not in self._keys:
            raise MessageRejectedError("unknown_key")
        if not hmac.compare_digest(mac.encode(), _mac(self._keys[key_id], fields).encode()):
            raise MessageRejectedError("bad_signature")

    def pack(self, envelope: Envelope) -> bytes:
        """An envelope as it goes to a broker."""
        options = {
            "tenant_id": envelope.tenant_id,
            "user_id": envelope.user_id,
            "request_id": envelope.request_id,
            "attempt": envelope.attempt,
            "priority": envelope.priority,
        }
        return self.encode(
            {
                "queue_name": envelope.queue,
                "actor_name": envelope.task,
                "args": [],
                "kwargs": envelope.args,
                "options": options,
                "message_id": envelope.run_id,
                "message_timestamp": time.time_ns() // 1_000_000,
            }
        )

    def unpack(self, body: bytes) -> Envelope:
        """The envelope of a message from a broker. Raises MessageRejectedError."""
        if len(body) > MAX_BYTES:
            raise MessageRejectedError("too_large")
        fields = self.decode(body)
        options = fields["options"]
        try:
            envelope = Envelope(
                run_id=fields["message_id"],
                task=fields["actor_name"],
                queue=fields["queue_name"],
                tenant_id=options["tenant_id"],
                user_id=options.get("user_id"),
                request_id=options.get("request_id"),
                attempt=None if options.get("attempt") is None else int(options["attempt"]),
                priority=int(options.get("priority", 1)),
                args=dict(fields["kwargs"]),
            )
        except (KeyError, TypeError, ValueError):
            raise MessageRejectedError("incomplete") from None
        if not all(_is_our_id(text) for text in (envelope.run_id, envelope.tenant_id, envelope.user_id or envelope.tenant_id)):
            raise MessageRejectedError("wrong_id")  # PostgreSQL would refuse the whole batch of claims that it is part of
        return envelope


def _is_our_id(text: object) -> bool:
    return isinstance(text, str) and is_id(text) and text == text.lower()


def _mac(key: bytes, fields: dict[str, Any]) -> str:
    return hmac.new(key, orjson.dumps(fields, option=orjson.OPT_SORT_KEYS), hashlib.sha256).hexdigest()
