"""What changes an IMAP mailbox: flags, moving, expunging, appending. Repeating any of it for messages that are gone does nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from mail.errors import MailboxProtocolError, MessageRejected
from mail.folder_names import RemoteFolder
from mail.imap_session import ImapSession
from mail.imap_syntax import Response, copied_uids, date_time, flag_list, number, uid_sets

_DELETED = frozenset({r"\Deleted"})


class ImapWriting(ImapSession):
    """The part of `imap.ImapMailbox` that changes things, in the folder opened with `select`."""

    def move(self, uids: Sequence[int], to: RemoteFolder) -> dict[int, int | None]:
        """UID MOVE (RFC 6851); else copies, marks `\\Deleted` and expunges these alone (UIDPLUS), or leaves them marked.

        The new UIDs by the old ones, None where the server does not tell (RFC 4315); where it does, messages that were not there any
        more are left out. Raises FolderMissing when the target is not there.
        """
        name = self._name(to)
        moved: dict[int, int | None] = {}
        for text, chunk in uid_sets(uids):
            if self._offers("MOVE"):
                responses = self._connection.run(b"UID MOVE " + text + b" " + name)
            else:
                responses = self._connection.run(b"UID COPY " + text + b" " + name)
                self._delete(text)
            told = copied_uids(responses, chunk)
            moved.update(dict.fromkeys(chunk) if told is None else told)
        return moved

    def expunge(self, uids: Sequence[int]) -> None:
        """Deletes these messages for good, and no others that are marked `\\Deleted` (UIDPLUS, RFC 4315).

        Raises MailboxProtocolError, and has changed nothing, when the server can only expunge all of them.
        """
        if not self._offers("UIDPLUS"):
            raise MailboxProtocolError(f"{self._endpoint.where} cannot delete single messages (UIDPLUS).")
        for text, _ in uid_sets(uids):
            self._delete(text)

    def store_flags(self, uids: Sequence[int], add: Collection[str] = frozenset(), remove: Collection[str] = frozenset()) -> None:
        """UID STORE +FLAGS.SILENT and -FLAGS.SILENT."""
        for text, _ in uid_sets(uids):
            for sign, flags in ((b"+", add), (b"-", remove)):
                if flags:
                    self._store(text, sign, flags)

    def append(self, folder: RemoteFolder, raw: bytes, flags: Collection[str] = (), received_at: datetime | None = None) -> int | None:
        """APPEND; the new UID where the server tells it (APPENDUID). `received_at` is aware, and becomes the INTERNALDATE.

        Raises FolderMissing, and MessageRejected when the message is larger than the server takes (APPENDLIMIT, RFC 7889).
        """
        limits = [number(name.partition("=")[2].encode()) for name in self._connection.capabilities if name.startswith("APPENDLIMIT=")]
        if any(limit is not None and len(raw) > limit for limit in limits):
            raise MessageRejected(f"{self._endpoint.where} takes no message of this size.")
        command = b"APPEND " + self._name(folder)
        command += b" " + flag_list(flags) if flags else b""
        command += b" " + date_time(received_at) if received_at is not None else b""
        return _appended_uid(self._connection.run_literal(command, raw))

    def _delete(self, text: bytes) -> None:
        """Without UIDPLUS they stay marked: a plain EXPUNGE would delete what somebody else marked, too."""
        self._store(text, b"+", _DELETED)
        if self._offers("UIDPLUS"):
            self._connection.run(b"UID EXPUNGE " + text)

    def _store(self, text: bytes, sign: bytes, flags: Collection[str]) -> None:
        self._connection.run(b"UID STORE " + text + b" " + sign + b"FLAGS.SILENT " + flag_list(flags))


def _appended_uid(responses: Sequence[Response]) -> int | None:
    for response in responses:
        code, argument = response.code
        if code == "APPENDUID":
            return number(argument.split()[-1]) if argument.split() else None
    return None
