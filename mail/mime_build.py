"""Writing a message: the same input gives the same bytes, so that a mail can be built again for another try and still be one mail.

Everything is 7-bit with short lines, so that no server needs 8BITMIME; only non-ASCII addresses need SMTPUTF8. Written by hand because
the standard library's folding of names and its random boundaries are neither safe nor stable across versions.
"""

from __future__ import annotations

import binascii
import hashlib
import quopri
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email.header import Header
from email.utils import format_datetime
from urllib.parse import quote

from core.errors import InvalidInputError
from mail.addresses import Address, check_header_text, normalise_address
from mail.charsets import storable

_RESERVED = {
    "from", "sender", "to", "cc", "bcc", "subject", "date", "message-id", "reply-to", "mime-version", "return-path", "received",
    "resent-bcc",
}  # fmt: skip
_HEADER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,75}")
_MESSAGE_ID = re.compile(r"<[!#-;=?A-Z^-~]+@[!#-;=?A-Z\[\]^-~]+>")
_CONTENT_TYPE = re.compile(r"[a-z0-9][\w!#$&^.+-]*/[a-z0-9][\w!#$&^.+-]*", re.ASCII)
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]+")
_LONGEST_LINE = 998
_HTTPS = re.compile(r"https://[A-Za-z0-9.-]+(:\d+)?([/?#][!#-;=?-Z\[\]_a-z~]*)?")
AUTOMATIC = ("Auto-Submitted", "auto-generated")
"""For mail that no person wrote at that moment (RFC 3834 5): nobody's absence note answers it."""


@dataclass(frozen=True, slots=True)
class OutgoingAttachment:
    """A file to send along."""

    filename: str
    content_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class OutgoingMail:
    """Everything a mail says. `bcc` never appears in the bytes; it is here so that one object describes the mail.

    `message_id` has its angle brackets, `date` is aware. `html` may be empty; so may `text` when there is HTML.
    """

    message_id: str
    date: datetime
    sender: Address
    to: Sequence[Address]
    subject: str
    cc: Sequence[Address] = ()
    bcc: Sequence[Address] = ()
    text: str = ""
    html: str | None = None
    attachments: Sequence[OutgoingAttachment] = ()
    reply_to: Address | None = None
    headers: Sequence[tuple[str, str]] = field(default=())


@dataclass(frozen=True, slots=True)
class _Entity:
    """A MIME entity: its own header lines and its body, both with CRLF."""

    head: list[str]
    body: bytes


def new_message_id(domain: str) -> str:
    """A Message-ID nobody else has. Raises InvalidInputError for a domain that cannot stand in one."""
    message_id = f"<{uuid.uuid4().hex}@{domain}>"
    _check_message_id(message_id)
    return message_id


def build_message(mail: OutgoingMail) -> bytes:
    """The message with CRLF line ends and no Bcc. Raises InvalidInputError naming the field that cannot be sent."""
    _check_message_id(mail.message_id)
    if mail.date.tzinfo is None:
        raise InvalidInputError("date needs a time zone.")
    entity = _content(mail)
    lines = [*_head(mail), "MIME-Version: 1.0", *entity.head]
    return "\r\n".join(lines).encode("utf-8") + b"\r\n\r\n" + entity.body


def bulk_headers(url: str | None = None, mailto: str | None = None) -> list[tuple[str, str]]:
    """How to get off a list (RFC 2369); with a URL by one click, too (RFC 8058). Both are signed where the mail is (`mail.dkim`).

    Raises InvalidInputError: RFC 8058 wants https, and one way there must be.
    """
    ways = []
    if url is not None:
        if not _HTTPS.fullmatch(url) or "=?" in url or len(url) > 900:
            raise InvalidInputError("listUnsubscribe.url is an https URL in ASCII, percent-encoded, of at most 900 characters.")
        ways.append(f"<{url}>")
    if mailto is not None:
        ways.append(f"<mailto:{quote(normalise_address(mailto, field='listUnsubscribe.mailto'), safe='@')}>")
    if not ways:
        raise InvalidInputError("listUnsubscribe needs a url or a mailto.")
    one_click = [("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")] if url is not None else []
    return [("List-Unsubscribe", ", ".join(ways)), *one_click]


def needs_smtputf8(addresses: Sequence[str]) -> bool:
    """Whether any of the addresses can only be said with SMTPUTF8 (RFC 6531)."""
    return not all(address.isascii() for address in addresses)


def _head(mail: OutgoingMail) -> Iterator[str]:
    yield f"Date: {format_datetime(mail.date)}"
    yield f"Message-ID: {mail.message_id}"
    yield _address_header("From", [mail.sender])
    if mail.reply_to is not None:
        yield _address_header("Reply-To", [mail.reply_to])
    if mail.to:
        yield _address_header("To", mail.to)
    elif not mail.cc:
        yield "To: undisclosed-recipients:;"
    if mail.cc:
        yield _address_header("Cc", mail.cc)
    yield _text_header("Subject", mail.subject)
    for name, value in mail.headers:
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _RESERVED or name.lower().startswith("content-"):
            raise InvalidInputError("headers holds a name that is not allowed there.")
        yield _text_header(name, value)


def _text_header(name: str, value: str) -> str:
    """An unstructured header, encoded where needed and folded (RFC 5322 2.2.3, RFC 2047)."""
    check_header_text(value, field=name.lower())
    value = storable(value)
    if value.isascii() and "=?" not in value:
        return _folded(f"{name}: {value}")
    return f"{name}: " + Header(value, "utf-8", maxlinelen=75, header_name=name).encode(linesep="\r\n")


def _folded(line: str) -> str:
    """Breaks before blanks so that lines stay below 78; a single longer word stays whole up to 998 bytes (RFC 5322 2.1.1)."""
    if len(line) <= 78:
        return line
    lines, current = [], ""
    for word in re.findall(r"[ ]*[^ ]+|[ ]+$", line):
        if current and len(current) + len(word) > 78 and current.strip(" ") and not current.endswith(":"):
            lines.append(current)
            current = word
        else:
            current += word
    lines.append(current)
    if any(len(each) > _LONGEST_LINE for each in lines):
        raise InvalidInputError("headers or subject hold a word of more than 998 characters.")
    return "\r\n".join(each for each in lines if each.strip()) if all(each.strip() for each in lines[1:]) else line.rstrip()


def _address_header(name: str, addresses: Sequence[Address]) -> str:
    formatted = [_mailbox(address, field=f"{name.lower()}[{index}]") for index, address in enumerate(addresses)]
    return f"{name}: " + ",\r\n ".join(formatted)


def _mailbox(address: Address, *, field: str) -> str:
    """`Name <local@domain>`: the name bare, quoted or encoded, whatever it needs and no more."""
    addr = normalise_address(address.addr, field=field)
    check_header_text(address.name, field=field)
    name = storable(address.name).strip()
    if not name:
        return addr
    if not name.isascii() or "=?" in name:
        shown = Header(name, "utf-8", maxlinelen=60).encode(linesep="\r\n")
    elif _ATOMS.fullmatch(name):
        shown = name
    else:
        shown = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if len(name) > 256:
        raise InvalidInputError(f"{field} has a display name of more than 256 characters.")
    return f"{shown} <{addr}>"


def _content(mail: OutgoingMail) -> _Entity:
    bodies = []
    if mail.text or mail.html is None:
        bodies.append(_text_entity("plain", mail.text))
    if mail.html is not None:
        bodies.append(_text_entity("html", mail.html))
    body = bodies[0] if len(bodies) == 1 else _multipart("alternative", bodies, mail.message_id)
    if not mail.attachments:
        return body
    files = [_file_entity(attachment, index) for index, attachment in enumerate(mail.attachments)]
    return _multipart("mixed", [body, *files], mail.message_id)


def _text_entity(subtype: str, text: str) -> _Entity:
    data = re.sub(rb"\r\n|\r|\n", b"\r\n", storable(text).encode("utf-8"))
    data = data if data.endswith(b"\r\n") else data + b"\r\n"
    if data.isascii() and max(map(len, data.split(b"\r\n"))) <= _LONGEST_LINE - 2:
        encoding = "7bit"
    elif sum(byte > 0x7F for byte in data) * 3 > len(data):  # mostly non-Latin: base64 is shorter
        encoding, data = "base64", _base64_lines(data)
    else:
        encoding, data = "quoted-printable", re.sub(rb"\r?\n", b"\r\n", quopri.encodestring(data.replace(b"\r\n", b"\n")))
    return _Entity([f'Content-Type: text/{subtype}; charset="utf-8"', f"Content-Transfer-Encoding: {encoding}"], data)


def _file_entity(attachment: OutgoingAttachment, index: int) -> _Entity:
    field = f"attachments[{index}]"
    check_header_text(attachment.filename, field=f"{field}.filename")
    content_type = attachment.content_type.lower().strip()
    if not _CONTENT_TYPE.fullmatch(content_type) or content_type.startswith(("multipart/", "message/")) or len(content_type) > 127:
        raise InvalidInputError(f"{field}.content_type is not a content type that a file can have.")
    return _Entity(
        [
            f"Content-Type: {content_type}",
            "Content-Transfer-Encoding: base64",
            f"Content-Disposition: attachment;\r\n {_filename_parameter(attachment.filename, field=field)}",
        ],
        _base64_lines(attachment.content),
    )


def _filename_parameter(filename: str, *, field: str) -> str:
    """`filename="..."`, or the extended form for other scripts (RFC 2231)."""
    name = storable(filename).replace("\\", "/").rpartition("/")[2].strip()
    if not name or len(name) > 200:
        raise InvalidInputError(f"{field}.filename is empty or longer than 200 characters.")
    if name.isascii():
        escaped = name.replace('"', "'")
        return f'filename="{escaped}"'
    return f"filename*=utf-8''{quote(name, safe='')}"


def _base64_lines(data: bytes) -> bytes:
    """Lines of 76 characters (RFC 2045 6.8)."""
    return b"".join(binascii.b2a_base64(data[start : start + 57], newline=False) + b"\r\n" for start in range(0, len(data), 57))


def _multipart(subtype: str, entities: Sequence[_Entity], message_id: str) -> _Entity:
    """The boundary comes from the Message-ID and the content, so that it is stable and nobody outside can foresee it."""
    digest = hashlib.sha256(f"{subtype}\n{message_id}\n".encode())
    for entity in entities:
        digest.update(entity.body)
    boundary = f"=_{subtype[:3]}_{digest.hexdigest()[:32]}"
    parts = [
        b"--" + boundary.encode() + b"\r\n" + "\r\n".join(entity.head).encode() + b"\r\n\r\n" + entity.body + b"\r\n" for entity in entities
    ]
    body = b"".join(parts) + b"--" + boundary.encode() + b"--\r\n"
    return _Entity([f'Content-Type: multipart/{subtype};\r\n boundary="{boundary}"'], body)


def _check_message_id(message_id: str) -> None:
    if len(message_id) > 250 or not _MESSAGE_ID.fullmatch(message_id):
        raise InvalidInputError("message_id must look like <something@domain>.")
