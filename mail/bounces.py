"""Reading the reports that come back about mails of ours: delivery status notifications (RFC 3462, RFC 3464, RFC 6533)."""

from __future__ import annotations

import base64
import email
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from itertools import islice

_LOOK = 64 * 1024
_STATUS = re.compile(r"\b([245]\.\d{1,3}\.\d{1,3})\b")
_ADDRESS = re.compile(r"[^\s<>;]+@[^\s<>;]+")
_XTEXT = re.compile(r"\+([0-9A-F]{2})")
_MESSAGE_ID = re.compile(r"<[^<>\s]+>")
_STATUS_TYPES = {"message/delivery-status", "message/global-delivery-status"}
_ORIGINAL_TYPES = {"message/rfc822", "text/rfc822-headers", "message/global", "message/global-headers"}
_MOST_RECIPIENTS = 1000
_LONGEST_FIELD = 2000
"""Characters that are read of a field: what is looked for in it stands at its beginning."""

Fields = dict[str, str]


@dataclass(frozen=True, slots=True)
class BounceReport:
    """What a report says of one recipient.

    `message_id` (with angle brackets) and `envelope_id` name the mail, as far as they came back. `address` is the recipient as we named
    it, or as its server did. `action` is failed, delayed, delivered, relayed or expanded; `status` the code of RFC 3463.
    """

    message_id: str | None
    envelope_id: str | None
    address: str
    action: str
    status: str

    @property
    def is_permanent(self) -> bool:
        """Whether it will never arrive there."""
        return self.action == "failed" and self.status.startswith("5")


def read_bounce(raw: bytes) -> list[BounceReport] | None:
    """The recipients of a delivery report, or None when the message is none. Never raises, whatever the bytes are."""
    if b"multipart/report" not in raw[:_LOOK].lower():
        return None
    try:
        message = email.message_from_bytes(raw)
        if message.get_content_type() != "multipart/report":
            return None
        return _reports(message)
    except Exception:  # strangers write these; what cannot be read is no report
        return None


def _reports(message: Message) -> list[BounceReport] | None:
    parts = [part for part in message.get_payload() if isinstance(part, Message)]
    status = next((part for part in parts if part.get_content_type() in _STATUS_TYPES), None)
    if status is None:
        return None
    about, *recipients = list(islice(_blocks(status), 1 + _MOST_RECIPIENTS)) or [{}]
    message_id = next((found for part in parts if part.get_content_type() in _ORIGINAL_TYPES and (found := _original_id(part))), None)
    envelope_id = _xtext(about["original-envelope-id"]) if about.get("original-envelope-id") else None
    return [_report(fields, message_id, envelope_id) for fields in recipients if _address(fields)]


def _report(fields: Fields, message_id: str | None, envelope_id: str | None) -> BounceReport:
    action = fields.get("action", "").strip().lower().partition(" ")[0]
    found = _STATUS.search(fields.get("status", "")) or _STATUS.search(fields.get("diagnostic-code", ""))
    status = found.group(1) if found else {"failed": "5.0.0", "delayed": "4.0.0"}.get(action, "2.0.0")
    return BounceReport(message_id, envelope_id, _address(fields), action, status)


def _address(fields: Fields) -> str:
    """The address we wrote to (ORCPT, RFC 3461 4.2), else the one its server had in the end."""
    for name in ("original-recipient", "final-recipient"):
        kind, _, address = fields.get(name, "").rpartition(";")
        match = _ADDRESS.search(_xtext(address) if kind.strip().lower() == "rfc822" else address)
        if match:
            return match.group()
    return ""


def _blocks(part: Message) -> Iterator[Fields]:
    """The groups of fields: about the mail first, then one for each recipient (RFC 3464 2.1)."""
    payload = part.get_payload()
    blocks = [block for block in payload if isinstance(block, Message)] if isinstance(payload, list) else []
    if any(block.keys() for block in blocks):
        yield from (_fields(block) for block in blocks if block.keys())
        return
    text = str(blocks[0].get_payload()) if blocks else str(payload)  # some encode it, against RFC 3464 2.1
    for block in re.split(rb"\r?\n[ \t]*\r?\n", base64.b64decode(text).strip()):
        yield _fields(email.message_from_bytes(block + b"\n\n"))


def _fields(block: Message) -> Fields:
    return {name.lower(): re.sub(r"\s+", " ", str(value)[:_LONGEST_FIELD]) for name, value in reversed(block.items())}


def _original_id(part: Message) -> str | None:
    """The Message-ID in what came back of the mail: the whole of it, or its header."""
    payload = part.get_payload()
    if isinstance(payload, list):
        head = payload[0] if payload else None
    else:
        text = part.get_payload(decode=True)
        head = email.message_from_bytes(text) if isinstance(text, bytes) else None
    match = _MESSAGE_ID.search(str(head.get("message-id", ""))[:_LONGEST_FIELD]) if isinstance(head, Message) else None
    return match.group() if match else None


def _xtext(text: str) -> str:
    """RFC 3461 4."""
    return _XTEXT.sub(lambda match: chr(int(match.group(1), 16)), text.strip())
