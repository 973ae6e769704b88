"""The pen that messages of our own are written with: names that belong to nobody, prose that says nothing, and the post that carries it."""

from __future__ import annotations

import base64
import quopri
import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.header import Header
from email.utils import format_datetime

FIRST = [
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Elif",
    "Farid",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
    "Karin",
    "Liam",
    "Maria",
    "Nils",
    "Olga",
    "Paul",
    "Rosa",
    "Sven",
    "Tara",
    "Uwe",
    "Vera",
    "Wei",
    "Yara",
    "Zoe",
]
LAST = [
    "Keller",
    "Novak",
    "Duarte",
    "Baker",
    "Schmidt",
    "Rossi",
    "Larsen",
    "Okafor",
    "Tanaka",
    "Moreau",
    "Silva",
    "Lindgren",
    "Cohen",
    "Patel",
    "Meyer",
    "Costa",
    "Dubois",
    "Evans",
]
NOUNS = [
    "garden",
    "river",
    "copper",
    "maple",
    "harbor",
    "summit",
    "pixel",
    "orbit",
    "cedar",
    "lantern",
    "willow",
    "ember",
    "falcon",
    "meadow",
    "anchor",
    "canvas",
    "prairie",
    "velvet",
    "granite",
    "compass",
    "saffron",
    "juniper",
    "marble",
    "breeze",
]
TLDS = ["com", "org", "net", "io", "de", "fr", "co.uk", "es", "it", "nl", "app", "dev", "shop", "eu"]
TEXT = [
    "we",
    "have",
    "looked",
    "at",
    "the",
    "numbers",
    "again",
    "and",
    "the",
    "second",
    "quarter",
    "is",
    "better",
    "than",
    "we",
    "thought",
    "but",
    "the",
    "plan",
    "for",
    "the",
    "new",
    "office",
    "still",
    "needs",
    "a",
    "decision",
    "from",
    "your",
    "side",
    "before",
    "the",
    "end",
    "of",
    "the",
    "month",
    "could",
    "you",
    "check",
    "the",
    "draft",
    "and",
    "tell",
    "me",
    "what",
    "is",
    "missing",
    "the",
    "meeting",
    "moves",
    "to",
    "thursday",
    "because",
    "the",
    "room",
    "is",
    "taken",
    "the",
    "team",
    "would",
    "like",
    "to",
    "try",
    "the",
    "other",
    "supplier",
    "first",
    "and",
    "the",
    "tests",
    "run",
    "green",
    "again",
    "after",
    "the",
    "fix",
    "in",
    "the",
    "parser",
    "the",
    "children",
    "liked",
    "the",
    "trip",
    "and",
    "we",
    "will",
    "send",
    "photos",
    "soon",
    "please",
    "bring",
    "the",
    "keys",
    "when",
    "you",
    "come",
    "over",
    "on",
    "sunday",
    "the",
    "release",
    "waits",
    "for",
    "the",
    "translation",
    "and",
    "one",
    "open",
    "question",
    "about",
    "the",
    "licence",
    "of",
    "the",
    "fonts",
]


class Pen:
    """Random choices of one message."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.when = datetime(2019, 1, 1, tzinfo=timezone(timedelta(hours=self.rng.choice([-8, -5, 0, 1, 2, 5, 9])))) + timedelta(
            minutes=self.rng.randrange(3_000_000)
        )

    def one(self, options: list[str] | str) -> str:
        """One of them, or of the words of a text divided by bars."""
        return self.rng.choice(options.split("|") if isinstance(options, str) else options)

    def name(self) -> str:
        return f"{self.one(FIRST)} {self.one(LAST)}"

    def domain(self) -> str:
        return f"{self.one(NOUNS)}{self.one(['', '', '-', ''])}{self.one(NOUNS)}.{self.one(TLDS)}"

    def token(self, length: int = 16) -> str:
        return "".join(self.rng.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=length))

    def number(self, low: int = 1000, high: int = 999_999) -> str:
        return str(self.rng.randint(low, high))

    def money(self) -> str:
        return f"{self.one(['$', '€', 'EUR ', 'USD ', '£'])}{self.rng.randint(3, 900)}.{self.rng.randint(0, 99):02d}"

    def prose(self, sentences: int) -> str:
        lines = []
        for _ in range(sentences):
            start = self.rng.randrange(len(TEXT) - 14)
            words = TEXT[start : start + self.rng.randint(6, 14)]
            lines.append(" ".join(words).capitalize() + self.one([".", ".", ".", "?"]))
        return " ".join(lines)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share


@dataclass
class Draft:
    """A message before it is sent."""

    name: str
    address: str
    subject: str
    text: str = ""
    html: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    files: list[tuple[str, str, bytes]] = field(default_factory=list)
    """(name, content type, bytes)."""
    to: str = ""
    path: str = ""
    """The envelope's sender; the address where it is empty."""
    host: str = ""
    """The machine that hands it over; one of the sender's domain where it is empty."""
    local: bool = False
    """It never left the machine."""
    mailer: str = ""


def sealed(pen: Pen, draft: Draft) -> bytes:
    """The message as its reader's server stores it."""
    domain = draft.address.rpartition("@")[2]
    me = draft.to or f"{pen.one(FIRST).lower()}.{pen.one(LAST).lower()}@{pen.domain()}"
    here = f"{pen.one('mx|mx1|in|mail|inbound')}.{me.rpartition('@')[2]}"
    lines = [f"Return-Path: <{draft.path or draft.address}>"] if pen.chance(0.8) else []
    lines += _way(pen, draft, domain, me, here)
    body_head, body = _body(pen, draft)
    identifier = f"<{pen.token(pen.rng.randint(12, 32))}@{pen.one([domain, f'mail.{domain}', draft.host or domain])}>"
    common = [
        f"From: {_person(draft.name, draft.address)}",
        f"To: {pen.one([me, f'<{me}>', _person(pen.name(), me)])}",
        f"Subject: {_encoded(draft.subject)}",
        f"Date: {format_datetime(pen.when)}",
        f"Message-ID: {identifier}",
        "MIME-Version: 1.0",
        *body_head,
        *([f"X-Mailer: {draft.mailer}"] if draft.mailer else []),
        *(f"{name}: {value}" for name, value in draft.headers),
    ]
    if pen.chance(0.5):
        pen.rng.shuffle(common)
    return ("\r\n".join([*lines, *common]) + "\r\n\r\n").encode("utf-8") + body


def _person(name: str, address: str) -> str:
    if not name:
        return address
    return f"{_encoded(name)} <{address}>" if not name.isascii() or name.replace(" ", "").isalnum() else f'"{name}" <{address}>'


def _encoded(text: str) -> str:
    return text if text.isascii() else Header(text, "utf-8", maxlinelen=70).encode(linesep="\r\n")


def _way(pen: Pen, draft: Draft, domain: str, me: str, here: str) -> list[str]:
    date = format_datetime(pen.when + timedelta(seconds=pen.rng.randint(1, 90)))
    if draft.local:
        return [f"Received: by {here} (Postfix, from userid {pen.number(0, 1500)})\r\n\tid {pen.token(11).upper()}; {date}"]
    host = draft.host or pen.one(
        [f"mail.{domain}", f"mta{pen.number(1, 40)}.{domain}", f"o{pen.number(1, 9)}.em.{domain}", f"out.{pen.one(NOUNS)}mail.com"]
    )
    ip = f"{pen.rng.randint(11, 223)}.{pen.rng.randint(0, 255)}.{pen.rng.randint(0, 255)}.{pen.rng.randint(1, 254)}"
    how = pen.one(["ESMTPS", "ESMTP", "ESMTPS (TLS1.3)"])
    lines = [f"Received: from {host} ({host} [{ip}])\r\n\tby {here} with {how} id {pen.token(10)}\r\n\tfor <{me}>; {date}"]
    if pen.chance(0.6):
        lines.append(f"Received: by {host} with {pen.one('HTTP|SMTP|ESMTPSA')} id {pen.token(12)}; {date}")
    if pen.chance(0.6):
        signature = base64.b64encode(pen.rng.randbytes(96)).decode()
        lines.append(
            f"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d={domain}; s={pen.one('s1|k1|default|mail')};\r\n\th=from:to:subject:date; b={signature}"
        )
    return lines


def _body(pen: Pen, draft: Draft) -> tuple[list[str], bytes]:
    parts = [_text(pen, "plain", draft.text)] if draft.text else []
    parts += [_text(pen, "html", draft.html)] if draft.html else []
    if len(parts) == 2:
        parts = [_joined(pen, "alternative", parts)]
    for name, kind, content in draft.files:
        head = [
            f'Content-Type: {kind}; name="{name}"',
            "Content-Transfer-Encoding: base64",
            f'Content-Disposition: attachment; filename="{name}"',
        ]
        parts.append((head, base64.encodebytes(content).replace(b"\n", b"\r\n")))
    return _joined(pen, "mixed", parts) if len(parts) > 1 else parts[0]


def _text(pen: Pen, kind: str, text: str) -> tuple[list[str], bytes]:
    raw = text.replace("\n", "\r\n").encode("utf-8")
    way = pen.rng.random()
    if raw.isascii() and way < 0.4 and max(map(len, raw.split(b"\r\n"))) < 900:
        encoding, data = "7bit", raw
    elif way < 0.75:
        encoding, data = "quoted-printable", quopri.encodestring(text.encode("utf-8")).replace(b"\n", b"\r\n")
    elif way < 0.9:
        encoding, data = "base64", base64.encodebytes(raw).replace(b"\n", b"\r\n")
    else:
        encoding, data = "8bit", raw
    charset = pen.one(['charset="UTF-8"', "charset=utf-8", 'charset="utf-8"'])
    return [f"Content-Type: text/{kind}; {charset}", f"Content-Transfer-Encoding: {encoding}"], data


def _joined(pen: Pen, kind: str, parts: list[tuple[list[str], bytes]]) -> tuple[list[str], bytes]:
    mark = pen.one(
        [
            f"--==_mimepart_{pen.token(24)}",
            f"----=_Part_{pen.number()}_{pen.number()}",
            f"00000000000{pen.token(17).lower()}",
            f"b1_{pen.token(32)}",
        ]
    )
    inner = b"".join(b"--%s\r\n%s\r\n\r\n%s\r\n" % (mark.encode(), "\r\n".join(head).encode(), body) for head, body in parts)
    return [f'Content-Type: multipart/{kind}; boundary="{mark}"'], inner + b"--%s--\r\n" % mark.encode()


def page(pen: Pen, paragraphs: list[str], button: tuple[str, str] | None = None, footer: str = "", picture: str = "") -> str:
    """HTML as mailing services write it: tables, inline styles, a button, a footer."""
    font = pen.one(["Arial, sans-serif", "Helvetica, Arial, sans-serif", "-apple-system, Segoe UI, Roboto, sans-serif", "Georgia, serif"])
    colour = pen.one("#333333|#222|#1a1a1a|#444444")
    rows = [
        f'<p style="margin:0 0 16px;font-size:{pen.one("14|15|16")}px;line-height:1.5;color:{colour}">{each}</p>' for each in paragraphs
    ]
    if button:
        style = f"display:inline-block;padding:12px 24px;background-color:{pen.one('#0066cc|#1a73e8|#2ea44f|#e91e63|#000')};color:#fff;text-decoration:none"
        rows.append(f'<a href="{button[1]}" style="{style};border-radius:4px">{button[0]}</a>')
    if picture:
        rows.insert(0, f'<img src="{picture}" width="{pen.one("120|180|600")}" alt="Logo" style="display:block;border:0">')
    inner = "\n".join(rows)
    foot = f'<p style="font-size:12px;color:#888">{footer}</p>' if footer else ""
    if pen.chance(0.3):
        return f'<div style="font-family:{font}">{inner}{foot}</div>'
    head = f'<head><meta http-equiv="Content-Type" content="text/html; charset=utf-8"><meta name="viewport" content="width=device-width"><title></title><style>body{{margin:0}}a{{color:{colour}}}</style></head>'
    table = f'<table role="presentation" width="100%" cellpadding="0" cellspacing="0" border="0"><tr><td align="center"><table width="600" style="font-family:{font}"><tr><td style="padding:24px">{inner}</td></tr><tr><td>{foot}</td></tr></table></td></tr></table>'
    return f'<!DOCTYPE html>\n<html lang="en">{head}<body style="background-color:#f6f6f6">\n{table}\n</body></html>'
