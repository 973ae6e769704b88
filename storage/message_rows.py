"""What of a fetched message becomes which column, and the words it is found by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from core.ids import new_id
from mail.addresses import Address
from mail.mime import AttachmentInfo
from mail.sync import FetchedMessage
from storage.models import EmailFolder

LONGEST_PEOPLE = 20_000
_PARTS_OF_ADDRESSES = str.maketrans("@.-_+", "     ")


class Words(NamedTuple):
    """What a message is found by beside its subject. `text` is None where it is the column `body_text`."""

    people: str
    text: str | None


def message_row(folder: EmailFolder, uid_validity: int, message: FetchedMessage, thread_id: str) -> dict[str, Any]:
    """The columns by their names in the database, JSON ones as Python values."""
    parsed = message.parsed
    return {
        "id": new_id(),
        "tenant_id": folder.tenant_id,
        "client_id": folder.client_id,
        "folder_id": folder.id,
        "uid_validity": uid_validity,
        "uid": message.uid,
        "message_id": parsed.message_id or None,
        "in_reply_to": parsed.in_reply_to or None,
        "message_references": parsed.references,
        "subject": parsed.subject,
        "sender": _address(parsed.sender) if parsed.sender else None,
        "to_addresses": [_address(address) for address in parsed.to],
        "cc_addresses": [_address(address) for address in parsed.cc],
        "sent_at": parsed.date,
        "internal_date": message.internal_date,
        "size": message.size,
        "flags": sorted(message.flags),
        "snippet": parsed.snippet,
        "body_text": parsed.text or None,
        "body_html": parsed.html or None,
        "headers": parsed.headers,
        "sha256": parsed.sha256,
        "remote_id": remote_id_of(message),
        "thread_id": thread_id,
        "defects": parsed.defects,
    }


def words_of(message: FetchedMessage) -> Words:
    """Names, addresses and their parts; of a message in HTML only, the words that are shown."""
    parsed = message.parsed
    people = [*([parsed.sender] if parsed.sender else []), *parsed.to, *parsed.cc]
    each = " ".join(f"{address.name} {address.addr} {address.addr.translate(_PARTS_OF_ADDRESSES)}" for address in people)
    return Words(each[:LONGEST_PEOPLE], None if parsed.text else parsed.words)


def attachment_row(tenant_id: str, email_id: str, found: AttachmentInfo) -> dict[str, Any]:
    """Everything but the bytes."""
    return {
        "id": new_id(),
        "tenant_id": tenant_id,
        "email_id": email_id,
        "part": found.part,
        "filename": found.filename,
        "content_type": found.content_type[:255],
        "size": found.size,
        "content_id": found.content_id,
        "is_inline": found.is_inline,
    }


def remote_id_of(message: FetchedMessage) -> str | None:
    """The server's own name for a mail in any folder, if it has one."""
    return message.remote_id[:255] if message.remote_id else None


def thread_references(message: FetchedMessage) -> tuple[str, Iterable[str]]:
    """(its own Message-ID or nothing, those it refers to)."""
    parsed = message.parsed
    return parsed.message_id, [*parsed.references, *([parsed.in_reply_to] if parsed.in_reply_to else [])]


def _address(address: Address) -> dict[str, str]:
    return {"name": address.name, "address": address.addr}
