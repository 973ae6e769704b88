"""An IMAP mailbox with its folders: which there are, how they stand, and the one that is open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from types import TracebackType
from typing import Self

from core.errors import MailroomError
from mail.accounts import Endpoint
from mail.errors import FolderMissing, MailboxProtocolError
from mail.folder_names import RemoteFolder, folder_from_list, with_roles_by_name
from mail.imap_connection import ImapConnection, Pending
from mail.imap_login import log_in
from mail.imap_syntax import MAX_UID, Response, Value, fetch_items, flags_of, number, quoted, uid_items, uid_ranges, values
from mail.mailbox import Flags, FolderChanges, FolderState, UidRanges

_STATUS_PIPELINE = 50
_NEWS = {b"EXISTS", b"EXPUNGE", b"VANISHED", b"FETCH"}


class ImapSession:
    """The part of `imap.ImapMailbox` that opens: the connection, then folders. A lost connection is not reopened."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connection = ImapConnection(endpoint)
        self._exists = 0
        self._enabled: frozenset[str] | None = None
        self._listed_states: dict[str, FolderState] = {}

    def __enter__(self) -> Self:
        self._connection.open()
        try:
            if not self._connection.is_preauth:
                log_in(self._connection, self._endpoint)
            if self._endpoint.compress and self._offers("COMPRESS=DEFLATE"):
                self._connection.compress()
        except BaseException:  # a time limit too, which may strike anywhere: nothing stays open
            self._connection.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.logout()

    @property
    def has_condstore(self) -> bool:
        """Whether the server numbers changes (RFC 7162), so that flags need not be compared one by one."""
        return self._offers("CONDSTORE") or self._offers("QRESYNC")

    @property
    def expunges_only_from_trash(self) -> bool:
        """Gmail's way: expunging anywhere else only takes a label away."""
        return self._offers("X-GM-EXT-1")

    def list_folders(self) -> list[RemoteFolder]:
        """LIST, with special uses (RFC 6154), lasting ids (RFC 8474) and the counters (RFC 5819) where the server has them.

        Counters that came along are what the next `states` gives: one round trip for a whole account.
        """
        responses = self._list()
        folders = [folder for folder in map(_listed, responses) if folder is not None]
        unique = {folder.raw_name: folder for folder in reversed({folder.name: folder for folder in reversed(folders)}.values())}
        told = _statuses(responses)
        if self._offers("OBJECTID") and not told:
            told = self._ask_statuses(list(unique.values()))
        self._listed_states = {name: state for name, (state, _) in told.items() if state is not None}
        return with_roles_by_name(replace(folder, remote_id=told.get(name, (None, None))[1]) for name, folder in unique.items())

    def states(self, folders: Sequence[RemoteFolder]) -> dict[str, FolderState]:
        """What LIST told, once; STATUS for the others, many under way at once."""
        listed, self._listed_states = self._listed_states, {}
        told = self._ask_statuses([folder for folder in folders if folder.raw_name not in listed])
        asked = {folder.raw_name for folder in folders}
        return {name: state for name, state in listed.items() if name in asked} | {
            name: state for name, (state, _) in told.items() if state is not None
        }

    def examine(self, folder: RemoteFolder) -> FolderState:
        """EXAMINE; asks for change numbers where there are any. Raises FolderMissing, MailboxProtocolError without UIDVALIDITY."""
        return self._opened(self._open(b"EXAMINE", folder))

    def examine_since(self, folder: RemoteFolder, uid_validity: int, modseq: int, last: int) -> tuple[FolderState, FolderChanges | None]:
        """EXAMINE (QRESYNC) (RFC 7162 3.2.5): what changed and vanished up to UID `last` since `modseq`, in the same round trip.

        No changes (None) when the server has no QRESYNC, refuses it, or counts anew.
        """
        if not self._may_have("QRESYNC") or modseq < 1 or last < 1:
            return self.examine(folder), None
        try:
            responses = self._open(b"EXAMINE", folder, b" (QRESYNC (%d %d 1:%d))" % (uid_validity, modseq, last))
        except MailboxProtocolError:
            if not self._connection.is_open:
                raise
            return self.examine(folder), None
        state = self._opened(responses)
        if state.uid_validity != uid_validity or state.highest_modseq is None or not self._may_have("QRESYNC"):
            return state, None
        return state, _changes(responses, last)

    def select(self, folder: RemoteFolder) -> FolderState:
        """SELECT, for changing things. Raises what `examine` raises, and MailboxProtocolError when the folder is read-only."""
        responses = self._open(b"SELECT", folder)
        state = self._opened(responses)
        if any(response.code[0] == "READ-ONLY" for response in responses):
            raise MailboxProtocolError(f"{self._endpoint.where} allows this account no changes in a folder.")
        return state

    @property
    def has_idle(self) -> bool:
        """Whether the server tells what happens as it happens."""
        return self._offers("IDLE")

    def idle(self, seconds: float) -> Iterator[str]:
        """What happens in the open folder, as it happens: EXISTS (new mail), EXPUNGE or VANISHED, FETCH (flags).

        Waits for so many seconds, at most `imap_connection.LONGEST_IDLE`; whoever wants to go on waiting asks again. May be closed early.
        What happened is for a sync to find out: its connection may well be another one.
        """
        with closing(self._connection.idle(seconds)) as answers:
            for response in answers:
                if response.word in _NEWS:
                    yield response.word.decode("ascii")

    def _offers(self, capability: str) -> bool:
        return capability in self._connection.capabilities

    def _may_have(self, capability: str) -> bool:
        """Whether the extension is enabled, or may be by the time that a folder is open."""
        return capability in self._enabled if self._enabled is not None else self._offers(capability) and self._offers("ENABLE")

    def _list(self) -> list[Response]:
        options = []
        if self._offers("SPECIAL-USE") and self._offers("LIST-EXTENDED"):
            options.append(b"SPECIAL-USE")
        if self._offers("LIST-STATUS"):
            options.append(b"STATUS " + self._status_items())
        if options:
            try:
                return self._connection.run(b'LIST "" "*" RETURN (' + b" ".join(options) + b")")
            except MailboxProtocolError:  # some servers announce what they then refuse
                if not self._connection.is_open:
                    raise
        return self._connection.run(b'LIST "" "*"')

    def _status_items(self) -> bytes:
        modseq = b" HIGHESTMODSEQ" if self.has_condstore else b""
        return b"(MESSAGES UIDNEXT UIDVALIDITY" + modseq + (b" MAILBOXID)" if self._offers("OBJECTID") else b")")

    def _ask_statuses(self, folders: Sequence[RemoteFolder]) -> dict[str, tuple[FolderState | None, str | None]]:
        items = b" " + self._status_items()
        found: dict[str, tuple[FolderState | None, str | None]] = {}
        askable = [folder for folder in folders if folder.selectable and _is_sendable(folder.raw_name)]
        for start in range(0, len(askable), _STATUS_PIPELINE):
            chunk = askable[start : start + _STATUS_PIPELINE]
            for pending in [self._connection.send(b"STATUS " + quoted(folder.raw_name) + items) for folder in chunk]:
                found.update(self._status(pending))
        return found

    def _status(self, pending: Pending) -> dict[str, tuple[FolderState | None, str | None]]:
        """By the name in the answer. A refusal is no answer: a folder may vanish meanwhile, and one bad folder is no reason to stop."""
        try:
            return _statuses(list(self._connection.finish(pending)))
        except MailroomError:
            if not self._connection.is_open:
                raise
        return {}

    def _name(self, folder: RemoteFolder) -> bytes:
        """The folder's name as an argument. Raises FolderMissing for one that cannot be sent."""
        if not _is_sendable(folder.raw_name):
            raise FolderMissing(f"{self._endpoint.where} has a folder whose name cannot be sent.")
        return quoted(folder.raw_name)

    def _ask_to_enable(self) -> Pending | None:
        """ENABLE, once and before any folder is open (RFC 5161): some servers count changes only from here on, whatever EXAMINE says."""
        wanted = next((name for name in ("QRESYNC", "CONDSTORE") if self._offers(name)), None)
        if self._enabled is not None or wanted is None or not self._offers("ENABLE"):
            return None
        return self._connection.send(b"ENABLE " + wanted.encode())

    def _note_enabled(self, pending: Pending) -> None:
        self._enabled = frozenset()
        try:
            responses = list(self._connection.finish(pending))
        except MailboxProtocolError:
            if not self._connection.is_open:
                raise
            return
        enabled = {
            word.decode("ascii", "replace").upper() for each in responses if each.word == b"ENABLED" for word in each.line.split()[2:]
        }
        self._enabled = frozenset(enabled)

    def _open(self, command: bytes, folder: RemoteFolder, option: bytes = b"") -> list[Response]:
        """The first folder is asked for in the same breath as what is to be enabled: a round trip less."""
        name = self._name(folder)
        self._exists = 0
        if not option and self.has_condstore:
            option = b" (CONDSTORE)"
        enabling = self._ask_to_enable()
        opening = self._connection.send(command + b" " + name + option)
        if enabling is not None:
            self._note_enabled(enabling)
        return list(self._connection.finish(opening))

    def _opened(self, responses: Iterable[Response]) -> FolderState:
        codes: dict[str, int | None] = {}
        for response in responses:
            if response.word == b"EXISTS":
                self._exists = number(response.line.split()[1]) or 0
            elif response.word == b"OK":
                code, argument = response.code
                codes[code] = number(argument.strip())
        validity = codes.get("UIDVALIDITY")
        if validity is None:
            raise MailboxProtocolError(f"{self._endpoint.where} has no lasting message numbers (UIDVALIDITY) in a folder.")
        told = codes.get("UIDNEXT") or 0
        following = told if 0 < told <= MAX_UID + 1 else self._after_last()
        return FolderState(validity, following, self._exists, codes.get("HIGHESTMODSEQ") or None)

    def _after_last(self) -> int:
        """UIDNEXT for servers that do not tell it: one after the last message."""
        if not self._exists:
            return 1
        answers = uid_items(self._connection.run(b"UID FETCH * (UID)"), 1, MAX_UID)
        return max((uid for uid, _ in answers), default=0) + 1


def _changes(responses: Iterable[Response], last: int) -> FolderChanges:
    """The VANISHED (EARLIER) and FETCH answers to EXAMINE. A plain VANISHED happens just now and has a later change number."""
    flags: dict[int, Flags] = {}
    vanished: list[tuple[int, int]] = []
    for response in responses:
        items = fetch_items(response)
        uid = number(items.get(b"UID"))
        if uid is not None and uid <= last and b"FLAGS" in items:
            flags[uid] = flags_of(items[b"FLAGS"])
        words = response.line.split()
        if response.word == b"VANISHED" and len(words) > 3 and words[2].upper() == b"(EARLIER)":
            vanished += uid_ranges(words[3])
    return FolderChanges(flags, UidRanges(vanished))


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


def _statuses(responses: Iterable[Response]) -> dict[str, tuple[FolderState | None, str | None]]:
    """`* STATUS name (items)`: counters (None when one is missing) and MAILBOXID by the folder's raw name."""
    found: dict[str, tuple[FolderState | None, str | None]] = {}
    for response in responses:
        parsed = values(response) if response.word == b"STATUS" else []
        if len(parsed) >= 4 and isinstance(parsed[2], bytes) and isinstance(parsed[3], list):
            items = parsed[3]
            named = {name.upper(): value for name, value in zip(items[::2], items[1::2], strict=False) if isinstance(name, bytes)}
            found[parsed[2].decode("utf-8", "replace")] = (_state(named), object_id(named.get(b"MAILBOXID")))
    return found


def _state(items: dict[bytes, Value]) -> FolderState | None:
    counters = {name: number(value) for name, value in items.items()}
    validity, following = counters.get(b"UIDVALIDITY"), counters.get(b"UIDNEXT")
    if validity is None or following is None:
        return None
    return FolderState(validity, following, counters.get(b"MESSAGES") or 0, counters.get(b"HIGHESTMODSEQ") or None)


def object_id(value: Value) -> str | None:
    """`(M6d99ac3275bb4e)` (RFC 8474 4): 1 to 255 letters, digits, `_` and `-`; anything else is no id."""
    inner = value[0] if isinstance(value, list) and len(value) == 1 else None
    text = inner.decode("ascii", "replace") if isinstance(inner, bytes) else ""
    return text if 0 < len(text) < 256 and text.replace("-", "").replace("_", "").isalnum() and text.isascii() else None


def _is_sendable(raw_name: str) -> bool:
    return not any(character in "\r\n\0" for character in raw_name)
