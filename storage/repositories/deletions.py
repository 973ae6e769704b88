"""What a deletion needs to know of stored messages, and what it leaves behind: the store says what the server says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, select, update
from sqlalchemy import delete as sql_delete

from core.errors import NotFoundError
from core.ids import is_id
from mail.deletion import Deleted
from storage.expressions import db_now
from storage.mail_batches import chunks
from storage.models import EmailFolder, EmailMessage
from storage.repositories.base import Repository
from storage.repositories.email_clients import EmailClients


@dataclass(frozen=True, slots=True)
class Place:
    """A folder in which some of the messages are, under one UIDVALIDITY."""

    client_id: str
    folder_id: str
    folder_name: str
    role: str | None
    uid_validity: int


@dataclass(slots=True)
class Found:
    """Which messages are where; how many are not in any folder any more; and which ids name nothing the identity may see."""

    places: dict[Place, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))  # UID to id
    already_gone: int = 0
    unknown: list[str] = field(default_factory=list)


class Deletions(Repository):
    """The identity's messages, looked up to be deleted. Messages have no user of their own: they are their account's."""

    def locate(self, email_ids: Sequence[str]) -> Found:
        """Foreign, unknown and malformed ids look alike. An id that is named twice counts once."""
        found = Found()
        wanted = list(dict.fromkeys(email_ids))
        rows: dict[str, Any] = {}
        for chunk in chunks([each for each in wanted if is_id(each)]):
            columns = (EmailMessage.id, EmailMessage.client_id, EmailMessage.uid_validity, EmailMessage.uid, EmailMessage.vanished_at)
            statement = select(*columns, EmailFolder.id.label("folder_id"), EmailFolder.name, EmailFolder.role).join(
                EmailFolder, (EmailFolder.tenant_id == EmailMessage.tenant_id) & (EmailFolder.id == EmailMessage.folder_id)
            )
            rows |= {row.id: row for row in self.session.execute(statement.where(self.owns(EmailMessage), EmailMessage.id.in_(chunk)))}
        visible = self._visible({row.client_id for row in rows.values()})
        for each in wanted:
            row = rows.get(each)
            if row is None or row.client_id not in visible:
                found.unknown.append(each)
            elif row.vanished_at is not None:
                found.already_gone += 1
            else:
                found.places[Place(row.client_id, row.folder_id, row.name, row.role, row.uid_validity)][row.uid] = row.id
        return found

    def record(self, place: Place, ids: Mapping[int, str], trash_name: str | None, deleted: Deleted) -> int:
        """Follows the server. A message whose new place is known keeps its identity there at once; one whose new place is not known, or
        which is gone, is hidden, and the next sync recognises it if it turns up. Returns how many were visible before."""
        folder = self._folder(place.client_id, place.folder_name)
        trash = self._folder(place.client_id, trash_name) if trash_name is not None else None
        if folder is None:
            return 0
        known = {old: new for old, new in deleted.moved.items() if new is not None and trash is not None and trash.uid_validity}
        hidden = self._hide(folder, place, [*deleted.gone, *(deleted.moved.keys() - known.keys())])
        if trash is not None and known:
            self._clear_places(trash, list(known.values()), [ids[old] for old in known])
            settled: set[int] = set()
            for old, new in known.items():
                moved = self.session.execute(
                    update(EmailMessage)
                    .where(self._at(folder, place), EmailMessage.id == ids[old])
                    .values(folder_id=trash.id, uid_validity=trash.uid_validity, uid=new)
                    .returning(EmailMessage.id)
                )
                count = len(moved.all())
                trash.message_count += count
                folder.message_count -= count
                hidden += count
                settled |= {new} if count else set()
            _advance(trash, settled)
        return hidden

    def _hide(self, folder: EmailFolder, place: Place, uids: Sequence[int]) -> int:
        hidden = 0
        for chunk in chunks(uids):
            statement = update(EmailMessage).where(self._at(folder, place), EmailMessage.uid.in_(chunk), EmailMessage.vanished_at.is_(None))
            hidden += len(self.session.execute(statement.values(vanished_at=db_now()).returning(EmailMessage.id)).all())
        folder.message_count -= hidden
        return hidden

    def _clear_places(self, trash: EmailFolder, uids: Sequence[int], ours: Sequence[str]) -> None:
        """A sync that ran meanwhile may have stored the moved messages as new ones: the older rows are who they are."""
        for chunk in chunks(uids):
            taken = self.session.execute(
                sql_delete(EmailMessage)
                .where(
                    self.owns(EmailMessage),
                    EmailMessage.folder_id == trash.id,
                    EmailMessage.uid_validity == trash.uid_validity,
                    EmailMessage.uid.in_(chunk),
                    EmailMessage.id.not_in(ours),
                )
                .returning(EmailMessage.vanished_at)
            )
            trash.message_count -= sum(row.vanished_at is None for row in taken)

    def _at(self, folder: EmailFolder, place: Place) -> ColumnElement[bool]:
        at: ColumnElement[bool] = EmailMessage.folder_id == folder.id
        return self.owns(EmailMessage) & at & (EmailMessage.uid_validity == place.uid_validity)

    def _folder(self, client_id: str, name: str) -> EmailFolder | None:
        found: EmailFolder | None = self.session.scalar(
            self.scoped(EmailFolder)
            .where(EmailFolder.client_id == client_id, EmailFolder.name == name, EmailFolder.vanished_at.is_(None))
            .with_for_update()
        )
        return found

    def _visible(self, client_ids: Iterable[str]) -> set[str]:
        """Those that are the identity's user's, too."""
        clients, visible = EmailClients(self.session), set()
        for client_id in client_ids:
            try:
                visible.add(clients.one(client_id).id)
            except NotFoundError:
                continue
        return visible


def _advance(folder: EmailFolder, settled: set[int]) -> None:
    """The cursor passes what was put right behind it: the next sync need not fetch that again. Behind messages that are not stored yet
    it stays. The change number stays, too, so that flags that changed since the move are seen."""
    while folder.uid_next is not None and folder.uid_next in settled:
        folder.uid_next += 1
