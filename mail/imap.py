"""A mailbox on an IMAP server, open for reading. Uses what the server offers (CONDSTORE, ESEARCH, SPECIAL-USE) and needs none of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from core.errors import MailroomError
from mail.accounts import Endpoint
from mail.errors import FolderMissing, MailboxProtocolError
from mail.folder_names import RemoteFolder, folder_from_list, with_roles_by_name
from mail.imap_connection import ImapConnection, Pending
from mail.imap_syntax import (
    Response,
    Value,
    fetch_items,
    flags_of,
    internal_date,
    number,
    quoted,
    search_result,
    values,
)
from mail.mailbox import Flags, FolderState, RawMessage, Span, UidRanges

_PIPELINE = 2
"""FETCH commands under way: the next answer is on the wire while this one is parsed. More gains nothing and holds more memory."""
_STATUS_PIPELINE = 50
_SEARCH_LIMIT = 50_000
"""Messages up to which a plain SEARCH answer surely fits a line; above, one answer for each message is asked for."""


class ImapMailbox:
    """See `mailbox.Mailbox` for what the methods promise. Use as a context manager; a lost connection is not reopened."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connection = ImapConnection(endpoint)
        self._exists = 0
        self._is_condstore_enabled = False

    def __enter__(self) -> Self:
        self._connection.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.logout()

    @property
    def has_condstore(self) -> bool:
        """Whether the server numbers changes (RFC 7162), so that flags need not be compared one by one."""
        return bool({"CONDSTORE", "QRESYNC"} & self._connection.capabilities)

    def list_folders(self) -> list[RemoteFolder]:
        """LIST, with the special uses where the server wants to be asked for them (RFC 6154)."""
        wants_asking = {"SPECIAL-USE", "LIST-EXTENDED"} <= self._connection.capabilities
        responses = self._connection.run(b'LIST "" "*"' + (b" RETURN (SPECIAL-USE)" if wants_asking else b""))
        folders = [folder for folder in map(_listed, responses) if folder is not None]
        unique = {folder.name: folder for folder in reversed(folders)}  # some servers list INBOX once for each namespace
        return with_roles_by_name(reversed(unique.values()))

    def states(self, folders: Sequence[RemoteFolder]) -> dict[str, FolderState]:
        """STATUS for all selectable folders, many under way at once: one round trip for a whole account."""
        items = b" (MESSAGES UIDNEXT UIDVALIDITY" + (b" HIGHESTMODSEQ)" if self.has_condstore else b")")
        found: dict[str, FolderState] = {}
        askable = [folder for folder in folders if folder.selectable and _is_sendable(folder.raw_name)]
        for start in range(0, len(askable), _STATUS_PIPELINE):
            chunk = askable[start : start + _STATUS_PIPELINE]
            for pending in [self._connection.send(b"STATUS " + quoted(folder.raw_name) + items) for folder in chunk]:
                found.update(self._status(pending))
        return found

    def examine(self, folder: RemoteFolder) -> FolderState:
        """EXAMINE; asks for change numbers where there are any. Raises FolderMissing, MailboxProtocolError without UIDVALIDITY."""
        if not _is_sendable(folder.raw_name):
            raise FolderMissing(f"{self._endpoint.where} has a folder whose name cannot be sent.")
        if self.has_condstore and "ENABLE" in self._connection.capabilities and not self._is_condstore_enabled:
            self._connection.run(b"ENABLE CONDSTORE")  # some servers count only from here on, whatever EXAMINE says
            self._is_condstore_enabled = True
        option = b" (CONDSTORE)" if self.has_condstore else b""
        codes: dict[str, int | None] = {}
        self._exists = 0
        for response in self._connection.run(b"EXAMINE " + quoted(folder.raw_name) + option):
            if response.word == b"EXISTS":
                self._exists = number(response.line.split()[1]) or 0
            elif response.word == b"OK":
                code, argument = response.code
                codes[code] = number(argument.strip())
        validity = codes.get("UIDVALIDITY")
        if validity is None:
            raise MailboxProtocolError(f"{self._endpoint.where} has no lasting message numbers (UIDVALIDITY) in a folder.")
        return FolderState(validity, codes.get("UIDNEXT") or self._after_last(), self._exists, codes.get("HIGHESTMODSEQ") or None)

    def sizes(self, first: int, last: int) -> list[tuple[int, int]]:
        """UID FETCH RFC822.SIZE."""
        found = {uid: number(items.get(b"RFC822.SIZE")) or 0 for uid, items in self._fetched(first, last, b"(UID RFC822.SIZE)")}
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
        if "ESEARCH" in self._connection.capabilities:
            responses = self._connection.run(b"UID SEARCH RETURN (ALL) UID 1:%d" % last)
        elif self._exists <= _SEARCH_LIMIT:
            responses = self._connection.run(b"UID SEARCH UID 1:%d" % last)
        else:
            return {uid for uid, _ in self._fetched(1, last, b"(UID)")}
        results = [result for result in map(search_result, responses) if result is not None]
        return results[0] if results else UidRanges([])

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
                for uid, items in _uid_items(self._connection.finish(pending), done.first, last):
                    _add_message(found, uid, items)
                yield [found.pop(uid) for uid in sorted(found) if uid <= done.last]

    def _send_fetch(self, span: Span) -> Pending:
        body = b"BODY.PEEK[HEADER]" if span.header_only else b"BODY.PEEK[]"
        return self._connection.send(b"UID FETCH %d:%d (UID FLAGS INTERNALDATE RFC822.SIZE %s)" % (span.first, span.last, body))

    def _status(self, pending: Pending) -> dict[str, FolderState]:
        """By the name in the answer. A refusal is no answer: a folder may vanish meanwhile, and one bad folder is no reason to stop."""
        found: dict[str, FolderState] = {}
        try:
            for response in self._connection.finish(pending):
                found.update(_state(values(response)) if response.word == b"STATUS" else {})
        except MailroomError:
            if not self._connection.is_open:
                raise
        return found

    def _fetched(self, first: int, last: int, items: bytes) -> list[tuple[int, dict[bytes, Value]]]:
        if last < first:
            return []
        return list(_uid_items(self._connection.finish(self._connection.send(b"UID FETCH %d:%d %s" % (first, last, items))), first, last))

    def _after_last(self) -> int:
        """UIDNEXT for servers that do not tell it: one after the last message."""
        if not self._exists:
            return 1
        answers = _uid_items(self._connection.finish(self._connection.send(b"UID FETCH * (UID)")), 1, 2**32)
        return max((uid for uid, _ in answers), default=0) + 1


def _uid_items(responses: Iterable[Response], first: int, last: int) -> Iterator[tuple[int, dict[bytes, Value]]]:
    """The FETCH answers with a UID in the range. Others are news about the mailbox, or the `n:*` quirk: the last message always answers."""
    for response in responses:
        items = fetch_items(response)
        uid = number(items.get(b"UID"))
        if uid is not None and first <= uid <= last:
            yield uid, items


def _listed(response: Response) -> RemoteFolder | None:
    if response.word not in {b"LIST", b"XLIST"}:
        return None
    parsed = values(response)
    if len(parsed) < 5 or not isinstance(parsed[2], list):
        return None
    attributes, delimiter, name = parsed[2:5]
    raw_name = b"NIL" if name is None else name  # a folder may be called that
    if not isinstance(raw_name, bytes) or not isinstance(attributes, list):
        return None
    texts = [each.decode("ascii", "replace") for each in attributes if isinstance(each, bytes)]
    return folder_from_list(raw_name, delimiter.decode("ascii", "replace") if isinstance(delimiter, bytes) else None, texts)


def _state(parsed: list[Value]) -> dict[str, FolderState]:
    """`* STATUS name (items)` by the folder's raw name; empty when a counter is missing."""
    if len(parsed) < 4 or not isinstance(parsed[2], bytes) or not isinstance(parsed[3], list):
        return {}
    items = parsed[3]
    counters = {name.upper(): number(value) for name, value in zip(items[::2], items[1::2], strict=False) if isinstance(name, bytes)}
    validity, following = counters.get(b"UIDVALIDITY"), counters.get(b"UIDNEXT")
    if validity is None or following is None:
        return {}
    name = parsed[2].decode("utf-8", "replace")
    return {name: FolderState(validity, following, counters.get(b"MESSAGES") or 0, counters.get(b"HIGHESTMODSEQ") or None)}


def _add_message(found: dict[int, RawMessage], uid: int, items: dict[bytes, Value]) -> None:
    """Keeps the answer with the body; a bare FLAGS answer for the same UID, before or after, does not count."""
    raw = items.get(b"BODY[]", items.get(b"BODY[HEADER]"))
    body = raw if isinstance(raw, bytes) else None
    if body is not None or uid not in found:
        size = number(items.get(b"RFC822.SIZE")) or len(body or b"")
        found[uid] = RawMessage(uid, flags_of(items.get(b"FLAGS")), internal_date(items.get(b"INTERNALDATE")), size, body)


def _is_sendable(raw_name: str) -> bool:
    return not any(character in "\r\n\0" for character in raw_name)
