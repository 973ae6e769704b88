"""Folders and messages as sync stores them: a batch and the cursor that covers it, in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete as sql_delete
from sqlalchemy import func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from core.ids import new_id
from mail.addresses import Address
from mail.folder_names import RemoteFolder
from mail.sync import FetchedMessage, FlagsChanged, FolderCursor, SyncBatch
from storage.expressions import db_now
from storage.models import EmailAttachment, EmailFolder, EmailMessage
from storage.repositories.base import Repository
from storage.repositories.email_clients import EmailClients

CHUNK = 500
"""UIDs named in one statement; SQLite takes 32,766 parameters, and a plan for thousands is no better than several for hundreds."""


@dataclass(slots=True)
class Changes:
    """How many messages a sync added, changed and removed."""

    synced: int = 0
    updated: int = 0
    deleted: int = 0

    def __iadd__(self, other: Changes) -> Changes:
        self.synced += other.synced
        self.updated += other.updated
        self.deleted += other.deleted
        return self


class EmailFolders(Repository):
    """The folders of the identity's accounts."""

    def one(self, folder_id: str, client_id: str) -> EmailFolder:
        """Raises NotFoundError, also for a folder of another account."""
        EmailClients(self.session).one(client_id)
        folder = self.get(EmailFolder, folder_id, "folder")
        if folder.client_id != client_id:
            return self.get(EmailFolder, "", "folder")
        return folder

    def of(self, client_id: str) -> list[EmailFolder]:
        """An account's folders, by name."""
        EmailClients(self.session).one(client_id)
        return list(self.session.scalars(self.scoped(EmailFolder).where(EmailFolder.client_id == client_id).order_by(EmailFolder.name)))

    def match(self, client_id: str, remotes: Sequence[RemoteFolder]) -> int:
        """Adds folders that are new on the server and removes those that are gone. Returns how many messages went with them."""
        tenant_id = EmailClients(self.session).one(client_id).tenant_id
        stored = {folder.name: folder for folder in self.of(client_id)}
        present = {remote.name: remote for remote in remotes if remote.selectable}
        for name, remote in present.items():
            if name in stored:
                stored[name].role = remote.role
            else:
                self.session.add(EmailFolder(tenant_id=tenant_id, client_id=client_id, name=name, role=remote.role))
        lost = [stored[name] for name in stored.keys() - present.keys()]
        removed = sum(folder.message_count for folder in lost)
        for folder in lost:
            self.session.execute(sql_delete(EmailFolder).where(self.owns(EmailFolder), EmailFolder.id == folder.id))
        self.session.flush()
        return removed


class EmailMessages(Repository):
    """The messages of the identity's accounts. Whoever calls has looked the account up, and so passed its user's wall too."""

    def flags_by_uid(self, folder_id: str, uid_validity: int) -> dict[int, frozenset[str]]:
        """What is stored of a folder, for comparing with the server."""
        rows = self.session.execute(
            select(EmailMessage.uid, EmailMessage.flags).where(
                self.owns(EmailMessage), EmailMessage.folder_id == folder_id, EmailMessage.uid_validity == uid_validity
            )
        )
        return {uid: frozenset(flags) for uid, flags in rows}

    def store(self, client_id: str, batch: SyncBatch) -> Changes:
        """Everything a batch says, and its cursor."""
        folder = self.session.scalars(
            self.scoped(EmailFolder).where(EmailFolder.client_id == client_id, EmailFolder.name == batch.folder.name).with_for_update()
        ).one()
        cleared = self._clear(folder) if batch.is_reset else 0
        fresh = self._add(folder, batch.uid_validity, batch.new)
        repeated = [FlagsChanged(message.uid, message.flags) for message in batch.new if message.uid not in fresh]
        updated = self._set_flags(folder, [*batch.changed, *repeated])
        removed = self._remove(folder, batch.gone)
        folder.message_count += len(fresh) - removed
        self._advance(folder, batch.cursor)
        return Changes(len(fresh), updated, cleared + removed)

    def count(self, client_id: str) -> int:
        """How many messages of an account are stored."""
        statement = select(func.count()).select_from(EmailMessage).where(self.owns(EmailMessage), EmailMessage.client_id == client_id)
        return self.session.scalar(statement) or 0

    @staticmethod
    def _advance(folder: EmailFolder, cursor: FolderCursor) -> None:
        folder.uid_validity, folder.uid_next, folder.highest_modseq = cursor.uid_validity, cursor.uid_next, cursor.highest_modseq
        folder.synced_at = db_now()

    def _clear(self, folder: EmailFolder) -> int:
        """The server counts anew (another UIDVALIDITY): what was stored can no longer be told apart."""
        removed = self.session.execute(
            sql_delete(EmailMessage).where(self.owns(EmailMessage), EmailMessage.folder_id == folder.id).returning(EmailMessage.id)
        )
        folder.message_count = 0
        return len(removed.all())

    def _add(self, folder: EmailFolder, uid_validity: int, messages: Sequence[FetchedMessage]) -> set[int]:
        """Inserts those that are not stored yet. Returns their UIDs."""
        fresh: set[int] = set()
        insert = postgresql.insert if self.session.get_bind().dialect.name == "postgresql" else sqlite.insert
        for chunk in _chunks(messages, 100):
            rows = {message.uid: _message_row(folder, uid_validity, message) for message in chunk}
            statement = insert(EmailMessage.__table__).on_conflict_do_nothing().returning(EmailMessage.__table__.c.uid)  # type: ignore[arg-type]
            added = {row.uid for row in self.session.execute(statement, list(rows.values()))}
            files = [
                _attachment_row(folder.tenant_id, rows[message.uid]["id"], found)
                for message in chunk
                if message.uid in added
                for found in message.parsed.attachments
            ]
            if files:
                self.session.execute(insert(EmailAttachment), files)
            fresh |= added
        return fresh

    def _set_flags(self, folder: EmailFolder, changed: Iterable[FlagsChanged]) -> int:
        """Returns how many messages really changed."""
        stored: dict[int, frozenset[str]] = {}
        wanted = {change.uid: change.flags for change in changed}
        for chunk in _chunks(sorted(wanted), CHUNK):
            rows = self.session.execute(
                select(EmailMessage.uid, EmailMessage.flags).where(self._in_folder(folder), EmailMessage.uid.in_(chunk))
            )
            stored |= {uid: frozenset(flags) for uid, flags in rows}
        different = [(uid, wanted[uid]) for uid, flags in stored.items() if wanted[uid] != flags]
        for uid, flags in different:
            self.session.execute(update(EmailMessage).where(self._in_folder(folder), EmailMessage.uid == uid).values(flags=sorted(flags)))
        return len(different)

    def _remove(self, folder: EmailFolder, uids: Sequence[int]) -> int:
        removed = 0
        for chunk in _chunks(uids, CHUNK):
            statement = sql_delete(EmailMessage).where(self._in_folder(folder), EmailMessage.uid.in_(chunk)).returning(EmailMessage.id)
            removed += len(self.session.execute(statement).all())
        return removed

    def _in_folder(self, folder: EmailFolder) -> Any:
        return self.owns(EmailMessage) & (EmailMessage.folder_id == folder.id)


def _message_row(folder: EmailFolder, uid_validity: int, message: FetchedMessage) -> dict[str, Any]:
    parsed = message.parsed
    return {
        "id": new_id(),
        "tenant_id": folder.tenant_id,
        "client_id": folder.client_id,
        "folder_id": folder.id,
        "uid_validity": uid_validity,
        "uid": message.uid,
        "message_id": parsed.message_id or None,
        "in_reply_to": parsed.in_reply_to or None,
        "message_references": parsed.references,
        "subject": parsed.subject,
        "sender": _address(parsed.sender) if parsed.sender else None,
        "to_addresses": [_address(address) for address in parsed.to],
        "cc_addresses": [_address(address) for address in parsed.cc],
        "sent_at": parsed.date,
        "internal_date": message.internal_date,
        "size": message.size,
        "flags": sorted(message.flags),
        "snippet": parsed.snippet,
        "body_text": parsed.text or None,
        "body_html": parsed.html or None,
        "headers": [list(pair) for pair in parsed.headers],
        "sha256": parsed.sha256,
        "defects": parsed.defects,
    }


def _attachment_row(tenant_id: str, email_id: str, found: Any) -> dict[str, Any]:
    return {
        "id": new_id(),
        "tenant_id": tenant_id,
        "email_id": email_id,
        "part": found.part,
        "filename": found.filename,
        "content_type": found.content_type[:255],
        "size": found.size,
        "content_id": found.content_id,
        "is_inline": found.is_inline,
    }


def _address(address: Address) -> dict[str, str]:
    return {"name": address.name, "address": address.addr}


def _chunks(items: Sequence[Any], size: int) -> Iterable[list[Any]]:
    return (list(items[start : start + size]) for start in range(0, len(items), size))
