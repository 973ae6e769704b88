"""The in-memory twin of a mailbox. It behaves like the real one, so that tests need no server and no mocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import Message
from types import TracebackType
from typing import Self, cast, overload

from mail.errors import ConnectionFailed, FolderMissing, MailboxProtocolError
from mail.fake_transport import FakeDelivery, FakeTransport
from mail.folder_names import RemoteFolder, encode_name
from mail.mailbox import Flags, FolderChanges, FolderState, Identity, RawMessage, Span, UidRanges
from mail.mime_headers import by_name, message_id, read_headers, split_message

__all__ = ["FakeDelivery", "FakeMailbox", "FakeTransport"]

_RECEIVED = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class _FakeMessage:
    raw: bytes
    flags: Flags
    modseq: int
    size: int
    received_at: datetime = _RECEIVED


@dataclass(slots=True)
class _FakeFolder:
    remote: RemoteFolder
    uid_validity: int = 1
    uid_next: int = 1
    modseq: int = 1
    messages: dict[int, _FakeMessage] = field(default_factory=dict)
    vanished: dict[int, int] = field(default_factory=dict)  # UID to the change number it went with


class FakeMailbox:
    """A mailbox in memory, see `mailbox.Mailbox`. `commands` records what was asked of it, by method name and folder.

    `lose_connection_after` whole fetches raises ConnectionFailed from then on; `during_fetch` is called before each one, for whatever
    somebody else does to the mailbox meanwhile. `append` and `expunge` also have a form for what others do, in a folder by its name.
    """

    def __init__(self, *, condstore: bool = True, qresync: bool = False, uidplus: bool = True) -> None:
        self._condstore, self._qresync, self._uidplus = condstore or qresync, qresync, uidplus
        self._folders: dict[str, _FakeFolder] = {}
        self._open: _FakeFolder | None = None
        self._is_writable = False
        self.commands: list[tuple[str, str]] = []
        self.lose_connection_after: int | None = None
        self.during_fetch: Callable[[], None] | None = None
        self.expunges_only_from_trash = False
        self.add_folder("INBOX", role="inbox")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open = None

    # -- what others do to the mailbox ----------------------------------------------------------------------------------------

    def add_folder(self, name: str, *, role: str | None = None, selectable: bool = True) -> None:
        """Creates an empty folder."""
        self._folders[name] = _FakeFolder(RemoteFolder(name, encode_name(name), "/", role, selectable))

    def remove_folder(self, name: str) -> None:
        """Deletes a folder with everything in it."""
        del self._folders[name]

    def set_flags(self, uid: int, *flags: str, folder: str = "INBOX") -> None:
        """Replaces the flags of a message."""
        box = self._folders[folder]
        box.modseq += 1
        box.messages[uid].flags = frozenset(flags)
        box.messages[uid].modseq = box.modseq

    def change_uid_validity(self, folder: str = "INBOX") -> None:
        """Renumbers the folder from 1 under another UIDVALIDITY, as after a restore."""
        box = self._folders[folder]
        box.vanished.clear()
        box.uid_validity += 1
        box.messages = dict(enumerate(box.messages.values(), 1))
        box.uid_next = len(box.messages) + 1

    @overload
    def append(self, folder: RemoteFolder, raw: bytes, flags: Collection[str] = ..., received_at: datetime | None = ...) -> int: ...
    @overload
    def append(
        self, raw: bytes, /, *, folder: str = ..., flags: Collection[str] = ..., size: int | None = ..., received_at: datetime = ...
    ) -> int: ...
    def append(  # type: ignore[misc]  # the first parameter goes by two names
        self,
        first: RemoteFolder | bytes | None = None,
        raw: bytes = b"",
        flags: Collection[str] = (),
        received_at: datetime | None = None,
        *,
        folder: RemoteFolder | str = "INBOX",
        size: int | None = None,
    ) -> int:
        """Puts a message into a folder and returns its UID. `size` pretends another RFC822.SIZE."""
        target = first if isinstance(first, RemoteFolder) else folder
        body = first if isinstance(first, bytes) else raw
        if isinstance(target, str):
            return self._add(self._folders[target], body, flags, received_at, size)
        self.commands.append(("append", target.name))
        return self._add(self._existing(target), body, flags, received_at)

    def expunge(self, *uids: int | Sequence[int], folder: str | None = None) -> None:
        """Removes messages: of the open folder when given as one sequence, of `folder` (INBOX) when given one by one."""
        if uids and not isinstance(uids[0], int):
            if not self._uidplus:
                raise MailboxProtocolError("The fake server cannot delete single messages.")
            box, wanted = self._changing("expunge"), uids[0]
        else:
            box, wanted = self._folders[folder or "INBOX"], [uid for uid in uids if isinstance(uid, int)]
        for uid in wanted:
            self._remove(box, uid)

    # -- changing the open folder ---------------------------------------------------------------------------------------------

    def select(self, folder: RemoteFolder) -> FolderState:
        """Opens a folder for changes. Raises FolderMissing."""
        self.commands.append(("select", folder.name))
        self._open, self._is_writable = self._existing(folder), True
        return self._state(self._open)

    def move(self, uids: Sequence[int], to: RemoteFolder) -> dict[int, int | None]:
        """Without `uidplus` the new UIDs are not told, and messages stay behind as `\\Deleted`."""
        box, target = self._changing("move"), self._existing(to)
        moved: dict[int, int | None] = {} if self._uidplus else dict.fromkeys(uids)
        for uid in [uid for uid in uids if uid in box.messages]:
            message = box.messages[uid]
            new = self._add(target, message.raw, message.flags, message.received_at, message.size)
            if self._uidplus:
                moved[uid] = new
                self._remove(box, uid)
            else:
                self.set_flags(uid, *message.flags, "\\Deleted", folder=box.remote.name)
        return moved

    def store_flags(self, uids: Sequence[int], add: Collection[str] = frozenset(), remove: Collection[str] = frozenset()) -> None:
        """Adds and removes flags."""
        box = self._changing("store_flags")
        for uid in [uid for uid in uids if uid in box.messages]:
            self.set_flags(uid, *((box.messages[uid].flags | frozenset(add)) - frozenset(remove)), folder=box.remote.name)

    # -- what sync asks -------------------------------------------------------------------------------------------------------

    def list_folders(self) -> list[RemoteFolder]:
        """Every folder, in the order of creation."""
        self.commands.append(("list_folders", ""))
        return [box.remote for box in self._folders.values()]

    def states(self, folders: Sequence[RemoteFolder]) -> dict[str, FolderState]:
        """The counters of those folders that exist."""
        self.commands.append(("states", ",".join(folder.name for folder in folders)))
        return {folder.raw_name: self._state(self._folders[folder.name]) for folder in folders if folder.name in self._folders}

    def examine(self, folder: RemoteFolder) -> FolderState:
        """Opens a folder. Raises FolderMissing."""
        self.commands.append(("examine", folder.name))
        self._open, self._is_writable = self._existing(folder), False
        return self._state(self._open)

    def examine_since(self, folder: RemoteFolder, uid_validity: int, modseq: int, last: int) -> tuple[FolderState, FolderChanges | None]:
        """`examine` with changes when the mailbox was made with `qresync`."""
        state = self.examine(folder)
        if not self._qresync or state.uid_validity != uid_validity or self._open is None:
            return state, None
        flags = {uid: message.flags for uid, message in self._open.messages.items() if message.modseq > modseq and uid <= last}
        gone = UidRanges((uid, uid) for uid, when in self._open.vanished.items() if when > modseq and uid <= last)
        return state, FolderChanges(flags, gone)

    def sizes(self, first: int, last: int) -> list[tuple[int, int]]:
        """(UID, bytes) in the range."""
        return [(uid, message.size) for uid, message in self._asked("sizes", first, last).items()]

    def flags(self, first: int, last: int) -> dict[int, Flags]:
        """UID to flags in the range."""
        return {uid: message.flags for uid, message in self._asked("flags", first, last).items()}

    def changed_since(self, modseq: int, last: int) -> dict[int, Flags]:
        """UID to flags of those changed after `modseq`."""
        return {uid: message.flags for uid, message in self._asked("changed_since", 1, last).items() if message.modseq > modseq}

    def present(self, last: int) -> Container[int]:
        """The UIDs up to `last`."""
        return set(self._asked("present", 1, last))

    def identities(self, first: int, last: int) -> list[Identity]:
        """What tells the messages in the range apart."""
        found = self._asked("identities", first, last)
        return [Identity(uid, _message_id(each.raw) or None, each.received_at, each.size) for uid, each in found.items()]

    def find_message_id(self, message_id: str) -> list[int]:
        """The UIDs with this Message-ID in the open folder."""
        return [uid for uid, each in self._asked("find_message_id", 1, 2**32).items() if _message_id(each.raw) == message_id]

    def fetch_raw(self, uid: int) -> bytes | None:
        """The whole message."""
        return next((message.raw for message in self._asked("fetch_raw", uid, uid).values()), None)

    def fetch_part(self, uid: int, part: str) -> bytes | None:
        """One body part, still encoded for transfer."""
        found = self._part(uid, part)
        return found[1] if found else None

    def fetch_part_header(self, uid: int, part: str) -> bytes | None:
        """The MIME header of a body part."""
        found = self._part(uid, part)
        return found[0] if found else None

    def fetch(self, spans: Sequence[Span]) -> Iterator[list[RawMessage]]:
        """One list for each span. A message expunged since `sizes` is left out."""
        for span in spans:
            if self.during_fetch is not None:
                self.during_fetch()
            if self.lose_connection_after is not None:
                if self.lose_connection_after <= 0:
                    raise ConnectionFailed("The connection to the fake server was lost.")
                self.lose_connection_after -= 1
            found = self._asked("fetch", span.first, span.last)
            wanted = [uid for uid in found if span.uids is None or uid in span.uids]
            yield [_raw_message(uid, found[uid], header_only=span.header_only) for uid in wanted]

    def _existing(self, folder: RemoteFolder) -> _FakeFolder:
        if folder.name not in self._folders:
            raise FolderMissing("There is no such folder.")
        return self._folders[folder.name]

    def _changing(self, command: str) -> _FakeFolder:
        assert self._open is not None, "no folder is open"
        assert self._is_writable, "the folder is open for reading only"
        self.commands.append((command, self._open.remote.name))
        return self._open

    @staticmethod
    def _add(box: _FakeFolder, raw: bytes, flags: Collection[str], received_at: datetime | None = None, size: int | None = None) -> int:
        uid, box.uid_next = box.uid_next, box.uid_next + 1
        box.modseq += 1
        box.messages[uid] = _FakeMessage(raw, frozenset(flags), box.modseq, len(raw) if size is None else size, received_at or _RECEIVED)
        return uid

    @staticmethod
    def _remove(box: _FakeFolder, uid: int) -> None:
        if box.messages.pop(uid, None) is not None:
            box.modseq += 1
            box.vanished[uid] = box.modseq

    def _part(self, uid: int, part: str) -> tuple[bytes, bytes] | None:
        """(MIME header, body) of a part, as the standard library sees them."""
        raw = self.fetch_raw(uid)
        entity = message_from_bytes(raw) if raw is not None else None
        for number in map(int, part.split(".")):
            if entity is None:
                return None
            inside = cast("list[Message]", entity.get_payload() if entity.is_multipart() else [entity])
            entity = inside[number - 1] if number <= len(inside) else None
        return split_message(entity.as_bytes()) if entity is not None else None

    def _asked(self, command: str, first: int, last: int) -> dict[int, _FakeMessage]:
        assert self._open is not None, "no folder is open"
        self.commands.append((command, self._open.remote.name))
        return {uid: message for uid, message in sorted(self._open.messages.items()) if first <= uid <= last}

    def _state(self, box: _FakeFolder) -> FolderState:
        return FolderState(box.uid_validity, box.uid_next, len(box.messages), box.modseq if self._condstore else None)


def _raw_message(uid: int, message: _FakeMessage, *, header_only: bool) -> RawMessage:
    raw = split_message(message.raw)[0] + b"\r\n\r\n" if header_only else message.raw
    return RawMessage(uid, message.flags, message.received_at, message.size, raw)


def _message_id(raw: bytes) -> str:
    return message_id(by_name(read_headers(split_message(raw)[0], set())))
