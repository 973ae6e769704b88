"""The account's Sent folder: whether a mail is in it, which proves that it was sent, and putting a copy there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from mail.errors import FolderMissing
from mail.folder_names import RemoteFolder

SEEN = (r"\Seen",)


class SentMailbox(Protocol):
    """What is asked of a mailbox here (`imap.ImapMailbox`)."""

    def list_folders(self) -> Sequence[RemoteFolder]:
        """Every folder."""
        ...

    def select(self, folder: RemoteFolder) -> object:
        """Opens a folder for the following commands."""
        ...

    def find_message_id(self, message_id: str) -> list[int]:
        """The UIDs of the messages with that Message-ID in the open folder."""
        ...

    def append(self, folder: RemoteFolder, raw: bytes, flags: Collection[str], received_at: datetime | None) -> int | None:
        """Puts a message into a folder (RFC 9051 6.3.12)."""
        ...


def is_in_sent(mailbox: SentMailbox, message_id: str) -> bool:
    """Whether the Sent folder has the mail. Providers put it there when they take it over SMTP; that it is not there proves nothing."""
    folder = _sent(mailbox)
    if folder is None:
        return False
    mailbox.select(folder)
    return bool(mailbox.find_message_id(message_id))


def save_to_sent(mailbox: SentMailbox, raw: bytes, message_id: str, sent_at: datetime | None) -> None:
    """Puts a copy into the Sent folder, unless one is there: the server's own, or ours of an earlier try. Raises FolderMissing."""
    folder = _sent(mailbox)
    if folder is None:
        raise FolderMissing("The account has no folder for sent mail.")
    mailbox.select(folder)
    if not mailbox.find_message_id(message_id):
        mailbox.append(folder, raw, SEEN, sent_at)


def _sent(mailbox: SentMailbox) -> RemoteFolder | None:
    return next((folder for folder in mailbox.list_folders() if folder.role == "sent" and folder.selectable), None)
