"""Mail as people get it, made from a number: charsets, encodings, conversations, HTML, files; and what is left of it after an accident."""

from __future__ import annotations

import base64
import quopri
import random
from dataclasses import astuple
from email.header import Header
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

from mail.mime import ParsedMessage

_TEXT = (
    "the of report invoice meeting please attached budget quarter project schedule deploy customer contract review update server migration "
    "database team tomorrow thanks regards monday friday order shipment payment account number issue ticket resolved approval document"
)
WORDS = _TEXT.split()
FOREIGN = {
    "utf-8": "Grüße aus München — résumé naïve 日本語テキスト Привет мир ✓ ",
    "iso-8859-1": "Grüße aus München résumé naïve façade Ångström ",
    "windows-1252": "“smart quotes” — dash… résumé € 100 ", "koi8-r": "Привет мир, это тестовое сообщение ",
    "windows-1251": "Здравствуйте, направляем счёт на оплату ", "iso-2022-jp": "お世話になっております。",
    "shift_jis": "資料を添付します。",
    "gb18030": "您好，附件是本季度的报告。", "big5": "您好，附件是本季度的報告。", "euc-kr": "안녕하세요 보고서를 첨부합니다 ",
    "iso-8859-2": "Zażółć gęślą jaźń Příliš žluťoučký kůň ",
}  # fmt: skip
WEIGHTS = [50, 12, 12, 3, 5, 4, 2, 3, 2, 2, 2]
FILES = {
    "report.pdf": "application/pdf",
    "photo.jpg": "image/jpeg",
    "Rechnung_März.pdf": "application/pdf",
    "資料.docx": "application/msword",
}
NOISE = random.Random(99).randbytes(1 << 20)
FIRST = 1_600_000_000
FRAGMENTS = [
    b"\r\n", b"\r", b"\n\n", b"\0", b"\xff\xfe", b"=?utf-8?B?", b"?=", b"--", b"Content-Type: multipart/mixed; boundary=", b"boundary=\"\"",
    b"Content-Transfer-Encoding: base64\r\n", b"message/rfc822", b"charset=utf-16", b"<div>" * 50, b"(" * 500, b"<" * 500, b",;:<>@" * 50,
    b"filename*0*=utf-8''%", b"=" * 100, b"begin 644 x\r\n", b"\x1b$B", b"&#x110000;", b"<style", b"<!--",
    b"References: " + b"<a@b> " * 200,
]  # fmt: skip
"""What breaks parsers."""


def letter(number: int) -> bytes:
    """Message `number`; always the same bytes. Half plain, most of the rest with HTML, one in eight with files."""
    rng = random.Random(7_000_021 + number)
    charset = rng.choices(list(FOREIGN), WEIGHTS)[0]
    head, kind = _head(rng, number, charset), rng.random()
    if kind < 0.5:
        return head + _text(rng, "text/plain", charset, _paragraphs(rng, charset, rng.randint(300, 4500)))
    body = _alternative(rng, charset)
    if kind < 0.88:
        return head + body
    mark = b"----=_Part_%x" % rng.getrandbits(40)
    files = [_file(rng) for _ in range(1 if rng.random() < 0.75 else 2)]
    parts = b"".join(b"\r\n--%s\r\n%s" % (mark, part) for part in [body, *files])
    return head + b'Content-Type: multipart/mixed; boundary="%s"\r\n\r\nThis is MIME.%s\r\n--%s--\r\n' % (mark, parts, mark)


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """The message after a few accidents: something cut out, doubled, moved, overwritten, or put in that breaks parsers."""
    for _ in range(rng.randint(1, 8)):
        start = rng.randrange(min(len(raw), 3000) if rng.random() < 0.7 and raw else len(raw) + 1) if raw else 0
        end = min(len(raw), start + int(rng.expovariate(1 / 60)))
        piece = raw[start:end]
        match rng.randrange(6):
            case 0:
                raw = raw[:start] + raw[end:]
            case 1:
                raw = raw[:end] + piece * rng.randint(1, 20) + raw[end:]
            case 2:
                raw = raw[:start] + rng.randbytes(len(piece)) + raw[end:]
            case 3:
                raw = raw[:start] + rng.choice(FRAGMENTS) * rng.choice([1, 1, 1, 30]) + raw[start:]
            case 4:
                raw = raw[:start] + piece[::-1] + raw[end:]
            case _:
                raw = raw[:start] if rng.random() < 0.2 else raw[:start] + raw[end:] + piece
    return raw


def texts_of(parsed: ParsedMessage) -> str:
    """Everything of it that a database is to take as text."""
    return " ".join(_strings(astuple(parsed)))


def _strings(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [text for each in value for text in _strings(each)]
    return [value] if isinstance(value, str) else []


def _head(rng: random.Random, number: int, charset: str) -> bytes:
    foreign = FOREIGN[charset]
    name = foreign.split()[0][:8] if rng.random() < 0.4 else _words(rng, 2).title()
    subject = (foreign[:20] if rng.random() < 0.4 else "") + _words(rng, rng.randint(3, 8))
    date = formatdate(FIRST + number * 600)
    lines = [
        f"Received: from mx{hop}.example.net (mx{hop}.example.net [192.0.2.{rng.randint(1, 254)}])\r\n\tby mail.example.org; {date}"
        for hop in range(rng.randint(2, 4))
    ]
    if rng.random() < 0.7:
        signature = base64.b64encode(rng.randbytes(256)).decode()
        folded = "\r\n\t ".join(signature[at : at + 70] for at in range(0, len(signature), 70))
        lines.append(f"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.com; s=one;\r\n\th=from:to:subject; b={folded}")
    lines.append(f"From: {_encoded(name, charset)} <{rng.choice(WORDS)}{rng.randint(1, 400)}@example.com>")
    others = [f"{_words(rng, 2).title()} <r{each}@example.org>" for each in range(0 if rng.random() < 0.7 else rng.randint(1, 8))]
    lines.append("To: " + ",\r\n\t".join(["user@example.org", *others]))
    if number > 50 and rng.random() < 0.45:
        root = number - rng.randint(1, 50)
        lines += [f"References: {_message_id(root)}", f"In-Reply-To: {_message_id(root)}"]
        subject = f"Re: {subject}"
    lines += [f"Subject: {_encoded(subject, charset)}", f"Date: {date}"]
    if rng.random() > 0.003:
        lines.append(f"Message-ID: {_message_id(number if rng.random() > 0.005 else max(0, number - 3))}")
    return ("\r\n".join([*lines, "MIME-Version: 1.0"]) + "\r\n").encode("utf-8", "replace")


def _message_id(number: int) -> str:
    return f"<{number * 2654435761 % 2**32:08x}.{number}@host{number % 17}.example.com>"


def _alternative(rng: random.Random, charset: str) -> bytes:
    mark = b"=_%016x" % rng.getrandbits(64)
    plain = _text(rng, "text/plain", charset, _paragraphs(rng, charset, rng.randint(200, 850)))
    shown = "".join(
        f'<p style="font-family:Arial">{line}</p>\r\n<a href="https://example.com/t/{rng.getrandbits(48):x}">link</a>\r\n'
        for line in _paragraphs(rng, charset, rng.randint(700, 3400)).split("\r\n")
    )
    html = f"<html><head><style>p{{color:#333;margin:0 0 1em}}</style></head><body>{shown}</body></html>\r\n"
    parts = b"".join(b"--%s\r\n%s\r\n" % (mark, part) for part in (plain, _text(rng, "text/html", charset, html)))
    return b'Content-Type: multipart/alternative; boundary="%s"\r\n\r\n%s--%s--\r\n' % (mark, parts, mark)


def _text(rng: random.Random, kind: str, charset: str, text: str) -> bytes:
    raw, choice = text.encode(charset, "replace"), rng.random()
    if raw.isascii() or choice > 0.8:
        encoding, body = "8bit", raw
    elif choice < 0.45:
        encoding, body = "quoted-printable", quopri.encodestring(raw.replace(b"\r\n", b"\n")).replace(b"\n", b"\r\n")
    else:
        encoding, body = "base64", base64.encodebytes(raw).replace(b"\n", b"\r\n")
    return f"Content-Type: {kind}; charset={charset}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode() + body


def _file(rng: random.Random) -> bytes:
    name, kind = rng.choice(list(FILES.items()))
    size = min(int(rng.lognormvariate(9.2, 0.85)), 400_000)
    start = rng.randrange(0, len(NOISE) - size)
    content = base64.encodebytes(NOISE[start : start + size]).replace(b"\n", b"\r\n")
    head = f"Content-Type: {kind}\r\nContent-Transfer-Encoding: base64\r\nContent-Disposition: attachment; filename*=utf-8''{quote(name)}"
    return f"{head}\r\n\r\n".encode() + content


def _paragraphs(rng: random.Random, charset: str, size: int) -> str:
    lines: list[str] = []
    while sum(map(len, lines)) < size:
        lines.append((FOREIGN[charset] if rng.random() < 0.18 else "") + _words(rng, rng.randint(8, 14)))
    return "\r\n".join(lines)


def _words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def _encoded(text: str, charset: str) -> str:
    return Header(text, charset, maxlinelen=70).encode(linesep="\r\n")
