"""A mailbox on an IMAP server. Uses what the server offers (QRESYNC, CONDSTORE, ESEARCH, SPECIAL-USE, ...) and needs none of it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Container, Iterator, Sequence

from core.errors import InvalidInputError
from mail.imap_connection import Pending
from mail.imap_session import object_id
from mail.imap_syntax import Value, flags_of, internal_date, quoted, search_result, searched_uids, size_in, uid_items, uid_sets
from mail.imap_writing import ImapWriting
from mail.mailbox import Flags, Identity, RawMessage, Span, UidRanges
from mail.mime_headers import by_name, message_id, read_headers

_PIPELINE = 2
"""FETCH commands under way: the next answer is on the wire while this one is parsed. More gains nothing and holds more memory."""
_SEARCH_LIMIT = 50_000
"""Messages up to which a plain SEARCH answer surely fits a line; above, one answer for each message is asked for."""
_MOST_FOUND = 100
"""Messages whose Message-ID is looked at after a search; the newest."""
_PART = re.compile(r"[1-9]\d{0,4}(\.[1-9]\d{0,4}){0,30}")


class ImapMailbox(ImapWriting):
    """See `mailbox.WritableMailbox` for what the methods promise. Use as a context manager; a lost connection is not reopened."""

    def sizes(self, first: int, last: int) -> list[tuple[int, int]]:
        """UID FETCH RFC822.SIZE."""
        found = {uid: size_in(items) for uid, items in self._fetched(first, last, b"(UID RFC822.SIZE)")}
        return sorted(found.items())

    def flags(self, first: int, last: int) -> dict[int, Flags]:
        """UID FETCH FLAGS."""
        return {uid: flags_of(items.get(b"FLAGS")) for uid, items in self._fetched(first, last, b"(UID FLAGS)") if b"FLAGS" in items}

    def changed_since(self, modseq: int, last: int) -> dict[int, Flags]:
        """UID FETCH FLAGS (CHANGEDSINCE) (RFC 7162 3.1.4.1)."""
        answers = self._fetched(1, last, b"(UID FLAGS) (CHANGEDSINCE %d)" % modseq)
        return {uid: flags_of(items.get(b"FLAGS")) for uid, items in answers if b"FLAGS" in items}

    def present(self, last: int) -> Container[int]:
        """ESEARCH where offered, a few bytes for any number of messages (RFC 4731); else SEARCH, or FETCH for very many."""
        if self._offers("ESEARCH"):
            responses = self._connection.run(b"UID SEARCH RETURN (ALL) UID 1:%d" % last)
        elif self._exists <= _SEARCH_LIMIT:
            responses = self._connection.run(b"UID SEARCH UID 1:%d" % last)
        else:
            return {uid for uid, _ in self._fetched(1, last, b"(UID)")}
        results = [result for result in map(search_result, responses) if result is not None]
        return results[0] if results else UidRanges([])

    def identities(self, first: int, last: int) -> list[Identity]:
        """UID FETCH of the Message-ID header, INTERNALDATE and RFC822.SIZE."""
        wanted = b"(UID INTERNALDATE RFC822.SIZE BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])"
        found = {uid: _identity(uid, items) for uid, items in self._fetched(first, last, wanted) if b"RFC822.SIZE" in items}
        return [found[uid] for uid in sorted(found)]

    def find_message_id(self, message_id: str) -> list[int]:
        """UID SEARCH HEADER (RFC 9051 6.4.4), which finds parts of the text as well: what it finds is read and compared."""
        if not message_id.strip("<> ") or any(character in "\r\n\0" for character in message_id):
            return []
        if message_id.isascii():
            responses = self._connection.run(b"UID SEARCH HEADER Message-ID " + quoted(message_id))
        else:
            responses = self._connection.run_literal(b"UID SEARCH CHARSET UTF-8 HEADER Message-ID", message_id.encode())
        wanted = b"(UID BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])"
        found: list[int] = []
        for text, chunk in uid_sets(searched_uids(responses)[-_MOST_FOUND:]):
            answers = uid_items(self._connection.run(b"UID FETCH " + text + b" " + wanted), chunk[0], chunk[-1])
            found += [uid for uid, items in answers if _message_id_in(items).strip("<>") == message_id.strip("<> ")]
        return sorted(set(found))

    def fetch_raw(self, uid: int) -> bytes | None:
        """UID FETCH BODY.PEEK[]."""
        return self._section(uid, "")

    def fetch_part(self, uid: int, part: str) -> bytes | None:
        """UID FETCH BODY.PEEK[part]. Raises InvalidInputError when `part` is no part number."""
        return self._section(uid, _checked(part))

    def fetch_part_header(self, uid: int, part: str) -> bytes | None:
        """UID FETCH BODY.PEEK[part.MIME]."""
        return self._section(uid, _checked(part) + ".MIME")

    def _section(self, uid: int, section: str) -> bytes | None:
        name = section.encode("ascii")
        found: bytes | None = None
        for _, items in self._fetched(uid, uid, b"(UID BODY.PEEK[" + name + b"])"):
            value = items.get(b"BODY[" + name + b"]")
            found = value if isinstance(value, bytes) else found
        return found

    def fetch(self, spans: Sequence[Span]) -> Iterator[list[RawMessage]]:
        """UID FETCH BODY.PEEK[], the next span already asked for while this one is read.

        A server may answer both at once (Dovecot does): what belongs to a span is told by the UID, and is complete at its tagged OK.
        """
        under_way: deque[tuple[Span, Pending]] = deque()
        found: dict[int, RawMessage] = {}
        for span in [*spans, *[None] * (_PIPELINE - 1)]:
            if span is not None:
                under_way.append((span, self._send_fetch(span)))
            if under_way and (span is None or len(under_way) == _PIPELINE):
                done, pending = under_way.popleft()
                last = max([done.last, *(each.last for each, _ in under_way)])
                for uid, items in uid_items(self._connection.finish(pending), done.first, last):
                    _add_message(found, uid, items)
                messages = [found.pop(uid) for uid in sorted(found) if uid <= done.last]
                yield [message for message in messages if done.uids is None or message.uid in done.uids]

    def _send_fetch(self, span: Span) -> Pending:
        body = b"BODY.PEEK[HEADER]" if span.header_only else b"BODY.PEEK[]"
        remote_id = b"EMAILID " if self._offers("OBJECTID") else b"X-GM-MSGID " if self._offers("X-GM-EXT-1") else b""
        uids = b"%d:%d" % (span.first, span.last) if span.uids is None else next(uid_sets(span.uids))[0]
        return self._connection.send(b"UID FETCH %b (UID FLAGS INTERNALDATE RFC822.SIZE %b%b)" % (uids, remote_id, body))

    def _fetched(self, first: int, last: int, items: bytes) -> Iterator[tuple[int, dict[bytes, Value]]]:
        """One at a time: the answers of a large folder are not held together."""
        if last >= first:
            pending = self._connection.send(b"UID FETCH %d:%d %s" % (first, last, items))
            yield from uid_items(self._connection.finish(pending), first, last)


def _add_message(found: dict[int, RawMessage], uid: int, items: dict[bytes, Value]) -> None:
    """Keeps the answer with the body; a bare FLAGS answer for the same UID, before or after, does not count."""
    raw = items.get(b"BODY[]", items.get(b"BODY[HEADER]"))
    body = raw if isinstance(raw, bytes) else None
    if body is not None or uid not in found:
        size = size_in(items) or len(body or b"")
        moment = internal_date(items.get(b"INTERNALDATE"))
        found[uid] = RawMessage(uid, flags_of(items.get(b"FLAGS")), moment, size, body, _remote_id(items))


def _remote_id(items: dict[bytes, Value]) -> str | None:
    """EMAILID (RFC 8474) or Gmail's X-GM-MSGID, a number of 64 bits."""
    gmail = items.get(b"X-GM-MSGID")
    return gmail.decode("ascii") if isinstance(gmail, bytes) and gmail.isdigit() and len(gmail) < 21 else object_id(items.get(b"EMAILID"))


def _identity(uid: int, items: dict[bytes, Value]) -> Identity:
    return Identity(uid, _message_id_in(items) or None, internal_date(items.get(b"INTERNALDATE")), size_in(items))


def _message_id_in(items: dict[bytes, Value]) -> str:
    """Read as a whole message's header would be, so that both compare. Servers write the section's name in their own ways."""
    head = next((value for name, value in items.items() if name.startswith(b"BODY[HEADER.FIELDS")), None)
    return message_id(by_name(read_headers(head, set()))) if isinstance(head, bytes) else ""


def _checked(part: str) -> str:
    if _PART.fullmatch(part) is None:
        raise InvalidInputError("A body part is numbered like 2.1.")
    return part
