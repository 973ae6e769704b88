"""The folders of an account as they are matched with the server's list."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from mail.folder_names import RemoteFolder
from storage.expressions import db_now
from storage.models import EmailFolder
from storage.repositories.base import Repository
from storage.repositories.email_clients import EmailClients
from storage.repositories.places import Places


class EmailFolders(Repository):
    """The folders of the identity's accounts. `matched` are those that the last `match` found on the server."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.matched: list[EmailFolder] = []

    def one(self, folder_id: str, client_id: str) -> EmailFolder:
        """Raises NotFoundError, also for a folder of another account and for one that is gone."""
        EmailClients(self.session).one(client_id)
        folder = self.get(EmailFolder, folder_id, "folder")
        if folder.client_id != client_id or folder.vanished_at is not None:
            return self.get(EmailFolder, "", "folder")
        return folder

    def of(self, client_id: str) -> list[EmailFolder]:
        """An account's folders, by name."""
        EmailClients(self.session).one(client_id)
        return [folder for folder in self._all(client_id) if folder.vanished_at is None]

    def match(self, client_id: str, remotes: Sequence[RemoteFolder]) -> int:
        """Adds folders that are new on the server; those that are gone vanish. Returns how many messages went with them.

        A folder is known by the server's id for it where it has one, and so keeps its row when it is renamed; else by its name.
        """
        tenant_id = EmailClients(self.session).one(client_id).tenant_id
        stored = self._all(client_id)
        self.matched = []
        present = {remote.name: remote for remote in remotes if remote.selectable}
        rows = _matched(stored, present)
        removed = 0
        for folder in stored:
            if folder.vanished_at is None and folder not in rows.values():
                removed += self._vanish(folder)
        self._free_names(stored, rows)
        for name, remote in present.items():
            row = rows.get(name)
            if row is None:
                row = EmailFolder(tenant_id=tenant_id, client_id=client_id)
                self.session.add(row)
            row.name, row.raw_name, row.role, row.vanished_at = name, remote.raw_name, remote.role, None
            row.remote_id = remote.remote_id or row.remote_id
            self.matched.append(row)
        self.session.flush()
        return removed

    def _all(self, client_id: str) -> list[EmailFolder]:
        """Whoever calls has looked the account up."""
        return list(self.session.scalars(self.scoped(EmailFolder).where(EmailFolder.client_id == client_id).order_by(EmailFolder.name)))

    def _vanish(self, folder: EmailFolder) -> int:
        """The row stays for as long as messages in it may turn up elsewhere; if it comes back, it is read from the start."""
        removed = Places(self.session).leave_folder(folder)
        folder.uid_validity = folder.uid_next = folder.highest_modseq = None
        folder.message_count = 0
        folder.vanished_at = db_now()
        return removed

    def _free_names(self, stored: Sequence[EmailFolder], rows: dict[str, EmailFolder]) -> None:
        """Names are unique at every moment: whoever is called otherwise now gives up its name before it is given away."""
        now_called = {row.id: name for name, row in rows.items()}
        for folder in stored:
            if folder.name != now_called.get(folder.id, folder.name) or (folder.name in rows and folder.id not in now_called):
                folder.name = folder.id
        self.session.flush()


def _matched(stored: Sequence[EmailFolder], present: dict[str, RemoteFolder]) -> dict[str, EmailFolder]:
    """The server's folders (by name) and their rows: by the server's id, else by name. A server that gives all its folders new ids has the
    same folders still; where one was really made anew its UIDVALIDITY says so."""
    by_id = {folder.remote_id: folder for folder in stored if folder.remote_id is not None}
    rows = {name: by_id[remote.remote_id] for name, remote in present.items() if remote.remote_id in by_id}
    taken = {row.id for row in rows.values()}
    for folder in stored:
        if folder.name in present and folder.name not in rows and folder.id not in taken:
            rows[folder.name] = folder
    return rows
