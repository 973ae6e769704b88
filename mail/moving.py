"""Moving messages of a folder to another on an IMAP server, and never any other message than those that were named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mail.deletion import CHUNK, Deleted, FolderRenumberedError
from mail.folder_names import RemoteFolder
from mail.mailbox import WritableMailbox


def move_messages(
    mailbox: WritableMailbox, folder: RemoteFolder, uid_validity: int, uids: Sequence[int], to: RemoteFolder
) -> Iterator[Deleted]:
    """Moves messages and says so chunk by chunk, so that the store follows the server. May be repeated.

    Raises FolderMissing, and FolderRenumberedError when the folder's UIDVALIDITY is another.
    """
    if mailbox.select(folder).uid_validity != uid_validity:
        raise FolderRenumberedError("The folder's messages have new numbers on the server; it is synced again first.", retry_after=10)
    for start in range(0, len(uids), CHUNK):
        chunk = list(uids[start : start + CHUNK])
        moved = mailbox.move(chunk, to)
        yield Deleted(moved, [uid for uid in chunk if uid not in moved])
