"""Deleting messages on an IMAP server: into the trash, or for good, and never any other message than those that were named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from core.errors import PermanentError, TransientError
from mail.folder_names import RemoteFolder
from mail.mailbox import WritableMailbox

CHUNK = 500
"""Messages after which the store is told what happened: what a lost connection leaves undone is no more than that."""


class FolderRenumberedError(TransientError):
    """The UIDs that the store knows are void; a sync tells the messages apart again."""

    code = "folder_renumbered"


class NoTrashError(PermanentError):
    """There is nowhere to move what is deleted to."""

    code = "no_trash"

    def __init__(self) -> None:
        super().__init__("The account has no Trash folder; delete permanently, or create one and sync.")


class DeletingMailbox(WritableMailbox, Protocol):
    """What deleting needs of a mailbox."""

    @property
    def expunges_only_from_trash(self) -> bool:
        """Gmail's way: expunging anywhere else only takes a label away."""
        ...


@dataclass(frozen=True, slots=True)
class Deleted:
    """What became of some messages of a folder: `moved` into the trash (old UID to new, None where the server does not tell), and
    `gone`: expunged, or not there any more when we came."""

    moved: dict[int, int | None] = field(default_factory=dict)
    gone: list[int] = field(default_factory=list)


def delete_messages(
    mailbox: DeletingMailbox, folder: RemoteFolder, uid_validity: int, uids: Sequence[int], *, trash: RemoteFolder | None, permanent: bool
) -> Iterator[Deleted]:
    """Deletes messages of one folder and says so chunk by chunk, so that the store follows the server. May be repeated.

    Messages that are in the trash already stay there unless `permanent`. Raises NoTrashError, FolderMissing, FolderRenumberedError when
    the folder's UIDVALIDITY is another, MailboxProtocolError when the server cannot expunge single messages (no UIDPLUS).
    """
    if permanent:
        by_way_of = trash if mailbox.expunges_only_from_trash and folder.role != "trash" else None
    elif folder.role == "trash":
        return
    elif trash is None:
        raise NoTrashError
    if mailbox.select(folder).uid_validity != uid_validity:
        raise FolderRenumberedError("The folder's messages have new numbers on the server; it is synced again first.", retry_after=10)
    for start in range(0, len(uids), CHUNK):
        chunk = list(uids[start : start + CHUNK])
        if not permanent:
            assert trash is not None
            moved = mailbox.move(chunk, trash)
            yield Deleted(moved, [uid for uid in chunk if uid not in moved])
        elif by_way_of is None:
            mailbox.expunge(chunk)
            yield Deleted(gone=chunk)
        else:
            yield _expunged_from_trash(mailbox, folder, chunk, by_way_of)


def _expunged_from_trash(mailbox: DeletingMailbox, folder: RemoteFolder, chunk: list[int], trash: RemoteFolder) -> Deleted:
    moved = mailbox.move(chunk, trash)
    arrived = [uid for uid in moved.values() if uid is not None]
    mailbox.select(trash)
    mailbox.expunge(arrived)
    mailbox.select(folder)
    left: dict[int, int | None] = {
        old: None for old, new in moved.items() if new is None
    }  # somewhere in the trash: the server empties it by itself
    return Deleted(left, [uid for uid in chunk if uid not in left])
