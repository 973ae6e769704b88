"""Messages as sync stores them: a batch and the cursor that covers it, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, delete, exists, func, select

from mail.mailbox import Identity
from mail.sync import FetchedMessage, FolderCursor, SyncBatch
from storage import mail_batches, search
from storage.expressions import among, db_now
from storage.mail_batches import chunks
from storage.message_rows import attachment_row, message_row, words_of
from storage.models import EmailAttachment, EmailFolder, EmailMessage, TaskRun
from storage.repositories.base import Repository
from storage.repositories.conversations import Conversations
from storage.repositories.folders import EmailFolders
from storage.repositories.places import Move, Places
from storage.repositories.sources import EmailSources

__all__ = ["Changes", "EmailFolders", "EmailMessages"]


@dataclass(slots=True)
class Changes:
    """How many messages a sync added, changed and removed, as their folders see it: a move is one removed and one added.

    `added` and `moves` are of one batch: the rows of the messages that are new indeed, by their UIDs, and where others went."""

    synced: int = 0
    updated: int = 0
    deleted: int = 0
    added: dict[int, str] = field(default_factory=dict, compare=False)
    moves: list[Move] = field(default_factory=list, compare=False)

    def __iadd__(self, other: Changes) -> Changes:
        self.synced += other.synced
        self.updated += other.updated
        self.deleted += other.deleted
        return self


class EmailMessages(Repository):
    """The messages of the identity's accounts. Whoever calls has looked the account up, and so passed its user's wall too."""

    def flags_by_uid(self, folder_id: str, uid_validity: int) -> dict[int, frozenset[str]]:
        """What is stored of a folder, for comparing with the server."""
        in_folder = (self._visible(), EmailMessage.folder_id == folder_id, EmailMessage.uid_validity == uid_validity)
        statement = select(EmailMessage.uid, EmailMessage.flags).where(*in_folder).execution_options(yield_per=10_000)
        sets: dict[tuple[str, ...], frozenset[str]] = {}  # most messages share a few: half a million sets would be 100 MB
        return {uid: sets.setdefault(tuple(flags), frozenset(flags)) for uid, flags in self.session.execute(statement)}

    def uids_among(self, folder_id: str, uid_validity: int, uids: Sequence[int]) -> list[int]:
        """Which of these UIDs are stored of a folder."""
        in_folder = (self._visible(), EmailMessage.folder_id == folder_id, EmailMessage.uid_validity == uid_validity)
        chunked = chunks(uids)
        return [
            uid
            for chunk in chunked
            for uid in self.session.scalars(select(EmailMessage.uid).where(*in_folder, among(EmailMessage.uid, chunk)))
        ]

    def uids_by_remote_id(self, folder_id: str) -> dict[str, int]:
        """What is stored of a folder that has no UIDs but lasting ids (POP3's UIDL)."""
        columns, in_folder = (EmailMessage.remote_id, EmailMessage.uid), (self._visible(), EmailMessage.folder_id == folder_id)
        rows = self.session.execute(select(*columns).where(*in_folder, EmailMessage.remote_id.is_not(None)))
        return {remote_id: uid for remote_id, uid in rows if remote_id is not None}

    def identities(self, folder_id: str, uid_validity: int) -> list[Identity]:
        """What tells the stored messages of a folder apart when their UIDs no longer do, by UID."""
        in_folder = (self._visible(), EmailMessage.folder_id == folder_id, EmailMessage.uid_validity == uid_validity)
        columns = (EmailMessage.uid, EmailMessage.message_id, EmailMessage.internal_date, EmailMessage.size)
        return [Identity(*row) for row in self.session.execute(select(*columns).where(*in_folder).order_by(EmailMessage.uid))]

    def store(self, client_id: str, batch: SyncBatch, *, keep_source: bool = False) -> Changes:
        """Everything a batch says, and its cursor. `keep_source` keeps the bytes of new messages too."""
        of_account = (EmailFolder.client_id == client_id, EmailFolder.name == batch.folder.name, EmailFolder.vanished_at.is_(None))
        folder = self.session.scalars(self.scoped(EmailFolder).where(*of_account).with_for_update()).one()
        places = Places(self.session)
        removed = 0
        if batch.is_reset:
            removed += places.renumber(folder, batch.uid_validity, batch.kept)
        left = places.leave(folder, batch.gone)
        added, new = self._add(places, folder, batch.uid_validity, batch.new, keep_source=keep_source)
        changed = {change.uid: change.flags for change in batch.changed}
        changed |= {message.uid: message.flags for message in batch.new if message.uid not in added}
        updated = self._set_flags(folder, batch.uid_validity, changed)
        folder.message_count += len(added) - left
        self._advance(folder, batch.cursor)
        return Changes(len(added), updated, removed + left, new, places.moves)

    def keep_statistics(self) -> None:
        """After many messages were stored, in a transaction of its own: what the database plans by is to be true of them."""
        mail_batches.keep_statistics(self.session)

    def count(self, client_id: str) -> int:
        """How many messages of an account are stored."""
        statement = select(func.count()).select_from(EmailMessage).where(self._visible(), EmailMessage.client_id == client_id)
        return self.session.scalar(statement) or 0

    def count_since(self, client_id: str, run_id: str) -> int:
        """How many messages of an account were stored since the run was recorded."""
        recorded_at = select(TaskRun.created_at).where(self.owns(TaskRun), TaskRun.id == run_id).scalar_subquery()
        since = (self._visible(), EmailMessage.client_id == client_id, EmailMessage.created_at >= recorded_at)
        return self.session.scalar(select(func.count()).select_from(EmailMessage).where(*since)) or 0

    def forget_vanished(self, client_id: str, before: datetime, limit: int = 1000) -> int:
        """Deletes what vanished before that moment and did not turn up again, at most `limit` messages. Returns how many."""
        vanished = (self.owns(EmailMessage), EmailMessage.client_id == client_id, EmailMessage.vanished_at < before)
        ids = self.session.scalars(select(EmailMessage.id).where(*vanished).order_by(EmailMessage.vanished_at).limit(limit)).all()
        for chunk in chunks(ids):
            self.session.execute(delete(EmailMessage).where(self.owns(EmailMessage), EmailMessage.id.in_(chunk)))
        if len(ids) < limit:
            self._forget_folders(client_id, before)
        if ids:
            search.sweep(self.session)
        return len(ids)

    def source(self, email_id: str) -> bytes | None:
        """The message as it came, if it was kept."""
        return EmailSources(self.session).one(email_id)

    def forget_sources(self, before: datetime, limit: int = 1000) -> int:
        """Deletes sources that were kept before that moment, the oldest first, at most `limit`. Returns how many."""
        return EmailSources(self.session).forget(before, limit)

    def _forget_folders(self, client_id: str, before: datetime) -> None:
        still_used = exists().where(EmailMessage.tenant_id == EmailFolder.tenant_id, EmailMessage.folder_id == EmailFolder.id)
        gone = (self.owns(EmailFolder), EmailFolder.client_id == client_id, EmailFolder.vanished_at < before, ~still_used)
        self.session.execute(delete(EmailFolder).where(*gone).execution_options(synchronize_session=False))

    @staticmethod
    def _advance(folder: EmailFolder, cursor: FolderCursor) -> None:
        folder.uid_validity, folder.uid_next, folder.highest_modseq = cursor.uid_validity, cursor.uid_next, cursor.highest_modseq
        folder.synced_at = db_now()

    def _add(
        self, places: Places, folder: EmailFolder, uid_validity: int, messages: Sequence[FetchedMessage], *, keep_source: bool
    ) -> tuple[set[int], dict[int, str]]:
        """Stores those the folder does not show yet: again, moved here from elsewhere, or new. Returns their UIDs, and the new rows."""
        stored = places.stored(folder, uid_validity, [message.uid for message in messages])
        revived = places.revive(list(stored.values())) if stored else set()
        missing = [message for message in messages if message.uid not in stored]
        moved = places.take_over(folder, uid_validity, missing) if missing else {}
        new = self._insert(folder, uid_validity, [message for message in missing if message.uid not in moved])
        ids = stored | moved | new
        if keep_source:
            EmailSources(self.session).keep(folder.tenant_id, {ids[message.uid]: message for message in messages if message.uid in ids})
        return {uid for uid, row_id in ids.items() if uid not in stored or row_id in revived}, new

    def _insert(self, folder: EmailFolder, uid_validity: int, messages: Sequence[FetchedMessage]) -> dict[int, str]:
        """Returns UID to row of those that really were new."""
        if not messages:
            return {}
        threads = Conversations(self.session).assign(folder, messages)
        rows = [message_row(folder, uid_validity, message, thread) for message, thread in zip(messages, threads, strict=True)]
        added = mail_batches.add_messages(self.session, rows, [words_of(message) for message in messages])
        files = [
            attachment_row(folder.tenant_id, row["id"], found)
            for row, message in zip(rows, messages, strict=True)
            if row["id"] in added
            for found in message.parsed.attachments
        ]
        mail_batches.add_rows(self.session, EmailAttachment, files)
        return {row["uid"]: row["id"] for row in rows if row["id"] in added}

    def _set_flags(self, folder: EmailFolder, uid_validity: int, wanted: dict[int, frozenset[str]]) -> int:
        """Returns how many messages really changed."""
        where = {"tenant_id": folder.tenant_id, "folder_id": folder.id, "uid_validity": uid_validity}
        uids = sorted(wanted)
        return sum(mail_batches.set_flags(self.session, where, {uid: sorted(wanted[uid]) for uid in chunk}) for chunk in chunks(uids, 5000))

    def _visible(self) -> ColumnElement[bool]:
        return self.owns(EmailMessage) & EmailMessage.vanished_at.is_(None)
