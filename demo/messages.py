"""The demo's letters as RFC 5322 messages: the same bytes for the same moment, dates spread over the days before it."""

from __future__ import annotations

import base64
import html
import quopri
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.header import Header
from email.utils import format_datetime

from demo.letters import Letter
from demo.letters_acme import ACME
from demo.letters_globex import GLOBEX

EOL = b"\r\n"
BETWEEN = timedelta(hours=3, minutes=41)
LAST_BEFORE = timedelta(minutes=12)


@dataclass(frozen=True)
class SeedMessage:
    """One message of a mailbox, with what IMAP keeps beside it."""

    raw: bytes
    received_at: datetime
    seen: bool


def acme_inbox(before: datetime) -> list[SeedMessage]:
    """The 22 messages of support@acme.example, the oldest first. `before` needs a time zone."""
    return inbox("support@acme.example", ACME, before)


def globex_inbox(before: datetime) -> list[SeedMessage]:
    """The 18 messages of office@globex.example, the oldest first."""
    return inbox("office@globex.example", GLOBEX, before)


def inbox(owner: str, letters: Sequence[Letter], before: datetime) -> list[SeedMessage]:
    newest = before.replace(microsecond=0) - LAST_BEFORE
    known = {letter.key: letter for letter in letters}
    return [
        SeedMessage(render(letter, owner, at, ancestors(letter, known)), at, letter.seen)
        for letter, at in zip(letters, (newest - BETWEEN * age for age in reversed(range(len(letters)))), strict=True)
    ]


def message_id(letter: Letter) -> str:
    return f"<{letter.key}@{letter.address.partition('@')[2]}>"


def ancestors(letter: Letter, known: dict[str, Letter]) -> list[str]:
    """The Message-IDs a reply refers to, the first of the thread first (RFC 5322, section 3.6.4)."""
    chain: list[str] = []
    while letter.answers:
        letter = known[letter.answers]
        chain.insert(0, message_id(letter))
    return chain


def render(letter: Letter, owner: str, sent_at: datetime, references: Sequence[str]) -> bytes:
    to = "maria@keller.example" if letter.address == owner else owner
    headers = [
        ("From", f"{encoded(letter.sender, letter.charset)} <{letter.address}>"),
        ("To", to),
        ("Subject", encoded(letter.subject, letter.charset)),
        ("Date", format_datetime(sent_at)),
        ("Message-ID", message_id(letter)),
        *letter.headers,
    ]
    if references:
        headers += [("In-Reply-To", references[-1]), ("References", " ".join(references))]
    head = lines(*(f"{name}: {value}" for name, value in headers))
    if letter.broken:
        return head + broken_rest(letter)
    return head + b"MIME-Version: 1.0\r\n" + body(letter)


def body(letter: Letter) -> bytes:
    """The content headers and the content: text, text with HTML, or either of them with attachments."""
    content = text_part("plain", letter.text, letter.charset)
    if letter.html:
        content = multipart("alternative", f"alt-{letter.key}", [content, text_part("html", as_html(letter), letter.charset)])
    if letter.attachments:
        content = multipart("mixed", f"mix-{letter.key}", [content, *(attachment(name) for name in letter.attachments)])
    return content


def text_part(subtype: str, text: str, charset: str) -> bytes:
    raw = (text + "\n").replace("\n", "\r\n").encode(charset)
    if charset == "iso-2022-jp":  # seven bits by its nature
        encoding, payload = "7bit", raw
    elif charset == "iso-8859-1":
        encoding, payload = "quoted-printable", quopri.encodestring(raw.replace(EOL, b"\n")).replace(b"\n", EOL)
    elif raw.isascii():
        encoding, payload = "7bit", raw
    else:
        encoding, payload = "base64", folded_base64(raw)
    return lines(f"Content-Type: text/{subtype}; charset={charset}", f"Content-Transfer-Encoding: {encoding}", "") + payload


def as_html(letter: Letter) -> str:
    paragraphs = "\n".join(f"<p>{html.escape(paragraph)}</p>".replace("\n", "<br>\n") for paragraph in letter.text.split("\n\n"))
    return f"<html><body>\n<h1>{html.escape(letter.subject)}</h1>\n{paragraphs}\n</body></html>"


def multipart(subtype: str, boundary: str, parts: Iterable[bytes]) -> bytes:
    pieces = b"".join(lines(f"--{boundary}") + part + EOL for part in parts)
    return lines(f'Content-Type: multipart/{subtype}; boundary="{boundary}"', "") + pieces + lines(f"--{boundary}--")


def attachment(name: str) -> bytes:
    kind, content = {".pdf": ("application/pdf", small_pdf), ".png": ("image/png", small_png), ".csv": ("text/csv", small_csv)}[name[-4:]]
    head = lines(
        f'Content-Type: {kind}; name="{name}"',
        f'Content-Disposition: attachment; filename="{name}"',
        "Content-Transfer-Encoding: base64",
        "",
    )
    return head + folded_base64(content(name))


def broken_rest(letter: Letter) -> bytes:
    """A character set nobody knows, a line that is no header, bytes above 127 that nothing declares."""
    return (
        lines("Content-Type: text/plain; charset=x-fax-7", "this line is not a header", "") + letter.text.encode() + b"\r\n\xff\xfe\x80\r\n"
    )


def small_pdf(name: str) -> bytes:
    """One empty page that PDF readers open."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] >>",
        f"<< /Title ({name}) >>".encode(),
    ]
    document, offsets = b"%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        offsets.append(len(document))
        document += b"%d 0 obj\n%b\nendobj\n" % (number, text)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = b"trailer\n<< /Size 5 /Root 1 0 R /Info 4 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(document)
    return document + b"xref\n0 5\n0000000000 65535 f \n" + table + trailer


def small_png(name: str, width: int = 48, height: int = 32) -> bytes:
    """A gradient whose colour follows from the name."""
    tint = zlib.crc32(name.encode()) % 256
    rows = b"".join(b"\x00" + bytes(value for x in range(width) for value in (x * 5, y * 7, tint)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def small_csv(name: str) -> bytes:
    rows = [f"{name[:-4]}-{number:02d},{number * 37 % 90},{number * 1.25:.2f}" for number in range(1, 25)]
    return lines("article,count,price", *rows)


def encoded(text: str, charset: str) -> str:
    """A header text, as encoded words when it is not ASCII (RFC 2047)."""
    return text if text.isascii() else Header(text, charset, maxlinelen=75).encode(linesep="\r\n")


def folded_base64(data: bytes) -> bytes:
    return base64.encodebytes(data).replace(b"\n", EOL)


def lines(*texts: str) -> bytes:
    return b"".join(text.encode() + EOL for text in texts)
