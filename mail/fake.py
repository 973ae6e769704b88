"""The in-memory twins of a mailbox and a transport. They behave like the real ones, so that tests need no server and no mocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from mail.delivery import SendReport
from mail.errors import ConnectionFailed, DeliveryUncertain, FolderMissing
from mail.folder_names import RemoteFolder, encode_name
from mail.mailbox import Flags, FolderState, RawMessage, Span
from mail.mime_headers import split_message
from mail.replies import SmtpReply, smtp_error

_RECEIVED = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class _FakeMessage:
    raw: bytes
    flags: Flags
    modseq: int
    size: int


@dataclass(slots=True)
class _FakeFolder:
    remote: RemoteFolder
    uid_validity: int = 1
    uid_next: int = 1
    modseq: int = 1
    messages: dict[int, _FakeMessage] = field(default_factory=dict)


class FakeMailbox:
    """A mailbox in memory, see `mailbox.Mailbox`. `commands` records what was asked of it, by method name and folder.

    `lose_connection_after` whole fetches raises ConnectionFailed from then on; `during_fetch` is called before each one, for whatever
    somebody else does to the mailbox meanwhile.
    """

    def __init__(self, *, condstore: bool = True) -> None:
        self._condstore = condstore
        self._folders: dict[str, _FakeFolder] = {}
        self._open: _FakeFolder | None = None
        self.commands: list[tuple[str, str]] = []
        self.lose_connection_after: int | None = None
        self.during_fetch: Callable[[], None] | None = None
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

    def append(self, raw: bytes, *, folder: str = "INBOX", flags: Collection[str] = (), size: int | None = None) -> int:
        """Delivers a message and returns its UID. `size` pretends another RFC822.SIZE."""
        box = self._folders[folder]
        uid, box.uid_next = box.uid_next, box.uid_next + 1
        box.modseq += 1
        box.messages[uid] = _FakeMessage(raw, frozenset(flags), box.modseq, len(raw) if size is None else size)
        return uid

    def set_flags(self, uid: int, *flags: str, folder: str = "INBOX") -> None:
        """Replaces the flags of a message."""
        box = self._folders[folder]
        box.modseq += 1
        box.messages[uid].flags = frozenset(flags)
        box.messages[uid].modseq = box.modseq

    def expunge(self, *uids: int, folder: str = "INBOX") -> None:
        """Removes messages."""
        box = self._folders[folder]
        box.modseq += 1
        for uid in uids:
            del box.messages[uid]

    def change_uid_validity(self, folder: str = "INBOX") -> None:
        """Renumbers the folder from 1 under another UIDVALIDITY, as after a restore."""
        box = self._folders[folder]
        box.uid_validity += 1
        box.messages = dict(enumerate(box.messages.values(), 1))
        box.uid_next = len(box.messages) + 1

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
        if folder.name not in self._folders:
            raise FolderMissing("There is no such folder.")
        self._open = self._folders[folder.name]
        return self._state(self._open)

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
            yield [_raw_message(uid, message, header_only=span.header_only) for uid, message in found.items()]

    def _asked(self, command: str, first: int, last: int) -> dict[int, _FakeMessage]:
        assert self._open is not None, "no folder is open"
        self.commands.append((command, self._open.remote.name))
        return {uid: message for uid, message in sorted(self._open.messages.items()) if first <= uid <= last}

    def _state(self, box: _FakeFolder) -> FolderState:
        return FolderState(box.uid_validity, box.uid_next, len(box.messages), box.modseq if self._condstore else None)


def _raw_message(uid: int, message: _FakeMessage, *, header_only: bool) -> RawMessage:
    raw = split_message(message.raw)[0] + b"\r\n\r\n" if header_only else message.raw
    return RawMessage(uid, message.flags, _RECEIVED, message.size, raw)


@dataclass(frozen=True, slots=True)
class FakeDelivery:
    """One mail that a FakeTransport took."""

    sender: str
    recipients: list[str]
    raw: bytes


class FakeTransport:
    """Takes mails and keeps them in `delivered`.

    `refuses` answers 550 to these recipients, `defers` 451 (a mapping gives the reply); `rejects_message` and `rejects_sender` answer
    the whole mail with that reply. `fails_before_dot` loses the connection while the body is sent, `drops_after_dot` takes the mail
    and never says so.
    """

    def __init__(
        self,
        *,
        refuses: Collection[str] | Mapping[str, SmtpReply] = (),
        defers: Collection[str] | Mapping[str, SmtpReply] = (),
        rejects_sender: SmtpReply | None = None,
        rejects_message: SmtpReply | None = None,
        fails_before_dot: bool = False,
        drops_after_dot: bool = False,
    ) -> None:
        self.replies = _replies(refuses, SmtpReply(550, "5.1.1 no such user")) | _replies(defers, SmtpReply(451, "4.7.1 greylisted"))
        self.rejects_sender = rejects_sender
        self.rejects_message = rejects_message
        self.fails_before_dot = fails_before_dot
        self.drops_after_dot = drops_after_dot
        self.delivered: list[FakeDelivery] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return

    @property
    def delivered_to(self) -> list[str]:
        """The recipients of all mails taken, in order."""
        return [recipient for delivery in self.delivered for recipient in delivery.recipients]

    def send(self, sender: str, recipients: Sequence[str], raw: bytes, before_final_dot: Callable[[], None]) -> SendReport:
        """See `smtp.SmtpTransport.send`."""
        if self.rejects_sender is not None:
            raise smtp_error(self.rejects_sender, "sender", where="fake:25")
        refused = {recipient: self.replies[recipient] for recipient in recipients if recipient in self.replies}
        accepted = [recipient for recipient in recipients if recipient not in refused]
        if not accepted:
            return SendReport([], refused, None)
        if self.fails_before_dot:
            raise ConnectionFailed("The connection to fake:25 was lost.")
        before_final_dot()
        if self.rejects_message is not None:
            raise smtp_error(self.rejects_message, "message", where="fake:25")
        self.delivered.append(FakeDelivery(sender, accepted, raw))
        if self.drops_after_dot:
            raise DeliveryUncertain("The connection to fake:25 was lost before it confirmed the mail.")
        return SendReport(accepted, refused, SmtpReply(250, "2.0.0 queued"))


def _replies(given: Collection[str] | Mapping[str, SmtpReply], usual: SmtpReply) -> dict[str, SmtpReply]:
    return dict(given) if isinstance(given, Mapping) else dict.fromkeys(given, usual)
