"""Mail for the tests of the spam check: a plain letter, and the same with one thing about it that is not right."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Sequence

HEAD = {
    "Received": "from mail.baker.example (mail.baker.example [192.0.2.7])\r\n\tby mx.acme.example; Mon, 06 Jan 2025 10:00:05 +0000",
    "From": "Mo Baker <mo@baker.example>",
    "To": "Jo <jo@acme.example>",
    "Subject": "Wheelbarrows",
    "Date": "Mon, 06 Jan 2025 10:00:00 +0000",
    "Message-ID": "<1.2@baker.example>",
    "MIME-Version": "1.0",
}
TEXT = "Hello Jo,\r\n\r\nthe wheelbarrows are ready. You can have them on Tuesday.\r\n\r\nMo\r\n"


def letter(body: str | bytes = TEXT, kind: str = "text/plain; charset=utf-8", **headers: str | None) -> bytes:
    """A letter; a header is changed by its name with underscores, and left out with None."""
    fields: dict[str, str] = {**HEAD, "Content-Type": kind}
    for name, value in headers.items():
        key = next((each for each in fields if each.lower() == name.lower().replace("_", "-")), name.replace("_", "-"))
        if value is None:
            fields.pop(key, None)
        else:
            fields[key] = value
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode("utf-8")
    return head + b"\r\n" + (body if isinstance(body, bytes) else body.encode("utf-8"))


def page(html: str, **headers: str | None) -> bytes:
    """A letter whose body is HTML."""
    return letter(f"<html><body><p>{TEXT}</p>{html}</body></html>", "text/html; charset=utf-8", **headers)


def with_file(name: str, content: bytes, kind: str = "application/octet-stream") -> bytes:
    """A letter with a file."""
    part = (
        f'--b\r\nContent-Type: text/plain\r\n\r\n{TEXT}\r\n--b\r\nContent-Type: {kind}; name="{name}"\r\n'
        f'Content-Disposition: attachment; filename="{name}"\r\nContent-Transfer-Encoding: base64\r\n\r\n'
    )
    return letter(part.encode() + base64.encodebytes(content) + b"\r\n--b--\r\n", "multipart/mixed; boundary=b")


def zipped(files: Sequence[tuple[str, bytes]], encrypted: bool = False) -> bytes:
    """A ZIP archive; `encrypted` only says that it is."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    data = bytearray(buffer.getvalue())
    if encrypted:
        for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            place = data.find(mark)
            while place >= 0:
                data[place + offset] |= 1
                place = data.find(mark, place + 4)
    return bytes(data)
