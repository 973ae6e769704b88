"""Reading a message: whatever the bytes, `parse_message` says what could be read and what was wrong with it.

Mail comes from strangers. A message that breaks the reader would stop the sync of its mailbox for good, so nothing raises here, and
every size, depth and count has a bound.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime

from core.errors import NotFoundError
from mail import mime_headers as headers_of
from mail.addresses import Address
from mail.charsets import decode_text
from mail.mime_headers import DEFAULT_LIMITS, ParseLimits, by_name, decode_words, message_ids, read_headers, split_message
from mail.mime_parts import Leaf, body_leaves, leaves
from mail.sanitise import html_to_text, sanitise_html

__all__ = ["AttachmentInfo", "ParseLimits", "ParsedMessage", "attachment_content", "parse_message"]

MAX_TEXT = 2_000_000
"""Characters kept of the text and of the HTML each."""
MAX_WORDS = 50_000
SNIPPET = 200


@dataclass(frozen=True, slots=True)
class AttachmentInfo:
    """What is known of an attachment without its bytes; `part` is the key for `attachment_content`."""

    part: str
    filename: str
    content_type: str
    size: int
    content_id: str | None
    is_inline: bool


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """A message as the store keeps it. All text is free of NUL and lone surrogates.

    `message_id`, `in_reply_to` and `references` keep their angle brackets. `html` is sanitised and fetches nothing; `words` are those
    it shows where there is no text. `headers` are in the message's order, decoded. `defects` are sorted codes: bad_address, bad_date,
    bad_header, charset, encoding, headers_truncated, structure, text_truncated, too_deep, too_many_addresses, too_many_parts,
    unparsable; and `oversized` where sync read the header only.
    """

    message_id: str = ""
    in_reply_to: str = ""
    references: list[str] = field(default_factory=list)
    subject: str = ""
    sender: Address | None = None
    reply_to: list[Address] = field(default_factory=list)
    to: list[Address] = field(default_factory=list)
    cc: list[Address] = field(default_factory=list)
    bcc: list[Address] = field(default_factory=list)
    date: datetime | None = None
    text: str = ""
    html: str = ""
    snippet: str = ""
    words: str = ""
    attachments: list[AttachmentInfo] = field(default_factory=list)
    headers: list[tuple[str, str]] = field(default_factory=list)
    size: int = 0
    sha256: str = ""
    defects: list[str] = field(default_factory=list)


def parse_message(raw: bytes, limits: ParseLimits = DEFAULT_LIMITS) -> ParsedMessage:
    """Reads a message (RFC 5322, MIME). Never raises: what cannot be read is empty and named in `defects`."""
    digest = hashlib.sha256(raw).hexdigest()
    try:
        return _parsed(raw, digest, limits)
    except Exception:  # whatever a stranger's bytes provoke, the sync of the mailbox goes on
        return ParsedMessage(size=len(raw), sha256=digest, defects=["unparsable"])


def _parsed(raw: bytes, digest: str, limits: ParseLimits) -> ParsedMessage:
    defects: set[str] = set()
    head, rest = split_message(raw)
    headers = read_headers(head, defects, limits)
    if len(raw) > limits.message:
        defects.add("oversized")
    body, attached = body_leaves(_leaves(raw, head, rest, defects, limits))
    text = _joined(body, "text/plain", defects, limits.line)
    source = _joined(body, "text/html", defects, limits.line)
    shown = text or html_to_text(source)
    named = by_name(headers)
    senders = headers_of.addresses(named, "from", defects) or headers_of.addresses(named, "sender", defects)
    replied = headers_of.first(named, "in-reply-to")
    return ParsedMessage(
        message_id=headers_of.message_id(named),
        in_reply_to=next(iter(message_ids(replied)), ""),
        references=message_ids(headers_of.first(named, "references")),
        subject=decode_words(headers_of.first(named, "subject")),
        sender=senders[0] if senders else None,
        reply_to=headers_of.addresses(named, "reply-to", defects),
        to=headers_of.addresses(named, "to", defects),
        cc=headers_of.addresses(named, "cc", defects),
        bcc=headers_of.addresses(named, "bcc", defects),
        date=headers_of.date(named, defects),
        text=text,
        html=sanitise_html(source) if source else "",
        snippet=_snippet(shown),
        words="" if text else shown[:MAX_WORDS],
        attachments=[_info(leaf) for leaf in attached],
        headers=[(name, decode_words(value)) if "=?" in value else (name, value) for name, value in headers],
        size=len(raw),
        sha256=digest,
        defects=sorted(defects),
    )


def attachment_content(raw: bytes, part: str) -> bytes:
    """The decoded bytes of the part with this number. Raises NotFoundError when the message has no such part."""
    for leaf in leaves(raw, set()):
        if leaf.part == part:
            return leaf.content
    raise NotFoundError(f"The message has no part {part[:20]}.")


def _leaves(raw: bytes, head: bytes, rest: bytes, defects: set[str], limits: ParseLimits) -> list[Leaf]:
    if len(raw) > limits.message:
        return []
    if len(head) > limits.header:  # the part of it that describes the body may be anywhere: it is not looked for
        return [Leaf("1", "text/plain", None, "", None, None, rest)]
    return leaves(raw, defects, limits)


def _joined(body: list[Leaf], content_type: str, defects: set[str], longest_line: int) -> str:
    texts: list[str] = []
    for leaf in body:
        if leaf.content_type == content_type:
            text, is_certain = decode_text(leaf.content[: MAX_TEXT * 4], leaf.charset)
            texts.append(_with_short_lines(text.replace("\r\n", "\n"), longest_line, defects))
            if not is_certain:
                defects.add("charset")
    joined = "\n".join(texts)
    if len(joined) > MAX_TEXT:
        defects.add("text_truncated")
    return joined[:MAX_TEXT]


def _with_short_lines(text: str, longest: int, defects: set[str]) -> str:
    if len(text) <= longest:
        return text
    lines = text.split("\n")
    if any(len(line) > longest for line in lines):
        defects.add("text_truncated")
    return "\n".join(line[:longest] for line in lines)


def _snippet(text: str) -> str:
    """The first words, quotes of earlier mails left out where there is something else."""
    for size in (1000, 20_000):  # mostly the first lines tell
        lines = [line for line in text[:size].splitlines() if line.strip()]
        own = [line for line in lines if not line.lstrip().startswith(">")]
        words = " ".join(" ".join(own or lines).split())
        if own and len(words) >= SNIPPET:
            break
    return words[:SNIPPET].strip()


def _info(leaf: Leaf) -> AttachmentInfo:
    fallback = "message.eml" if leaf.content_type == "message/rfc822" else "attachment"
    is_inline = leaf.disposition == "inline" or (leaf.disposition is None and leaf.content_id is not None)
    return AttachmentInfo(leaf.part, leaf.filename or fallback, leaf.content_type, len(leaf.content), leaf.content_id, is_inline)
