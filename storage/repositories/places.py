"""Where a mail is. It keeps its row, with its id, through moves, renumbered folders and renamed ones.

What is gone from its folder is not deleted: it has vanished, and is shown to nobody. When the same mail (by content, or by the server's
own name for it) turns up in a folder of the account, the row goes there. When it had turned up before it vanished, the two rows become
one: the older one, in the newer one's place. A copy, both of which stay, stays two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from mail.sync import FetchedMessage
from storage import mail_batches
from storage.expressions import among, db_now
from storage.mail_batches import chunks
from storage.message_rows import remote_id_of
from storage.models import EmailFolder, EmailMessage
from storage.repositories.base import Repository

Name = tuple[str, str | None]
_FACTS = (EmailMessage.id, EmailMessage.message_id, EmailMessage.sha256, EmailMessage.remote_id)
_PLACE = ("folder_id", "uid_validity", "uid", "flags", "internal_date", "remote_id")


@dataclass(frozen=True, slots=True)
class Move:
    """A mail that went from one folder to another (ids)."""

    email_id: str
    left: str
    arrived: str


class Places(Repository):
    """The places of one account's mails. Whoever calls has looked the account up and locked the folder. `moves` is what was seen."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.moves: list[Move] = []

    def renumber(self, folder: EmailFolder, uid_validity: int, kept: Mapping[int, int]) -> int:
        """The server counts anew: the kept ones (old UID to new) go on under new UIDs. Returns how many vanished."""
        in_folder = (self.owns(EmailMessage), EmailMessage.folder_id == folder.id)
        visible = self.session.execute(select(EmailMessage.uid, EmailMessage.id).where(*in_folder, EmailMessage.vanished_at.is_(None)))
        ids = {row.uid: row.id for row in visible}
        # First every number goes out of the way, below all that were ever used: old and new ones may overlap.
        lowest = self.session.scalar(select(func.min(EmailMessage.uid)).where(*in_folder)) or 0
        number = select(EmailMessage.id, func.row_number().over(order_by=EmailMessage.id).label("number")).where(*in_folder).subquery()
        self._update(
            *in_folder,
            EmailMessage.id == number.c.id,
            uid=min(lowest, 0) - number.c.number,
            vanished_at=func.coalesce(EmailMessage.vanished_at, db_now()),
        )
        stay = {ids[old]: new for old, new in kept.items() if old in ids}
        for chunk in chunks(sorted(stay)):
            mail_batches.set_uids(self.session, folder.tenant_id, uid_validity, {row_id: stay[row_id] for row_id in chunk})
        folder.message_count = len(stay)
        return len(ids) - len(stay)

    def leave(self, folder: EmailFolder, uids: Sequence[int]) -> int:
        """These are gone from the folder. Returns how many of them were there."""
        chunked = chunks(sorted(set(uids)))
        return sum(self._vanish(folder, and_(EmailMessage.folder_id == folder.id, among(EmailMessage.uid, chunk))) for chunk in chunked)

    def leave_folder(self, folder: EmailFolder) -> int:
        """The folder is gone with everything in it."""
        return self._vanish(folder, EmailMessage.folder_id == folder.id)

    def stored(self, folder: EmailFolder, uid_validity: int, uids: Sequence[int]) -> dict[int, str]:
        """Which of these UIDs the folder has, visible or vanished, and their rows."""
        found: dict[int, str] = {}
        for chunk in chunks(uids):
            under = (EmailMessage.folder_id == folder.id, EmailMessage.uid_validity == uid_validity, among(EmailMessage.uid, chunk))
            rows = self.session.execute(select(EmailMessage.uid, EmailMessage.id).where(self.owns(EmailMessage), *under))
            found |= {row.uid: row.id for row in rows}
        return found

    def revive(self, ids: Sequence[str]) -> set[str]:
        """Those that had vanished are seen again. Returns which these were."""
        back: set[str] = set()
        for chunk in chunks(ids):
            vanished = (self.owns(EmailMessage), among(EmailMessage.id, chunk), EmailMessage.vanished_at.is_not(None))
            found = list(self.session.scalars(select(EmailMessage.id).where(*vanished)))
            if found:
                self._update(self.owns(EmailMessage), among(EmailMessage.id, found), vanished_at=None)
            back |= set(found)
        return back

    def take_over(self, folder: EmailFolder, uid_validity: int, arrived: Sequence[FetchedMessage]) -> dict[int, str]:
        """New messages that are vanished mails get those rows. Returns UID to row; the others are new indeed."""
        left: dict[str, str] = {}
        by_name = self._vanished(folder.client_id, arrived, left)
        taken: dict[int, str] = {}
        used: set[str] = set()
        for message in arrived if by_name else ():
            names_here = _names(message.parsed.sha256, remote_id_of(message), message.parsed.message_id or None)
            fitting = next((each for name in names_here for each in by_name.get(name, ()) if each not in used), None)
            if fitting is not None:
                used.add(fitting)
                taken[message.uid] = fitting
                self._moved(fitting, left[fitting], folder.id)
        mail_batches.set_places(
            self.session,
            folder.tenant_id,
            [_place(taken[message.uid], folder, uid_validity, message) for message in arrived if message.uid in taken],
        )
        return taken

    def _moved(self, row_id: str, left: str, arrived: str) -> None:
        if left != arrived:
            self.moves.append(Move(row_id, left, arrived))

    def _vanished(self, client_id: str, arrived: Sequence[FetchedMessage], left: dict[str, str]) -> dict[Name, list[str]]:
        """The account's vanished rows that any of these may be, the oldest first; `left` gets the folders they were in."""
        by_name: dict[Name, list[str]] = {}
        values = {str(value) for message in arrived for value in (message.parsed.sha256, remote_id_of(message)) if value}
        columns = (EmailMessage.id, EmailMessage.folder_id, EmailMessage.sha256, EmailMessage.remote_id, EmailMessage.message_id)
        for chunk in chunks(sorted(values)):
            known_by = or_(among(EmailMessage.sha256, chunk), among(EmailMessage.remote_id, chunk))
            vanished = (self.owns(EmailMessage), EmailMessage.client_id == client_id, EmailMessage.vanished_at.is_not(None), known_by)
            for row_id, folder_id, sha256, remote_id, message_id in self.session.execute(
                select(*columns).where(*vanished).order_by(EmailMessage.id)
            ):
                left[row_id] = folder_id
                for name in _names(sha256, remote_id, message_id):
                    by_name.setdefault(name, []).append(row_id)
        return by_name

    def _vanish(self, folder: EmailFolder, gone: ColumnElement[bool]) -> int:
        seen = (self.owns(EmailMessage), gone, EmailMessage.vanished_at.is_(None))
        leaving = self.session.execute(select(*_FACTS).where(*seen).order_by(EmailMessage.id)).all()
        ids = {row.id for row in leaving}
        for chunk in chunks(leaving):
            pairs = self._already_elsewhere(folder.client_id, chunk, ids)
            if pairs:
                self._take_places(folder, pairs)
            lost = {row.id for row in chunk} - {pair["id"] for pair in pairs}
            if lost:
                self._update(self.owns(EmailMessage), among(EmailMessage.id, lost), vanished_at=db_now())
        return len(ids)

    def _take_places(self, folder: EmailFolder, pairs: Sequence[dict[str, Any]]) -> None:
        """The older row of each pair goes where the newer one is, which is no more."""
        for pair in pairs:
            self._moved(pair["id"], folder.id, pair["folder_id"])
        newer = [pair["newer"] for pair in pairs]
        self.session.execute(delete(EmailMessage).where(self.owns(EmailMessage), among(EmailMessage.id, newer)))
        places = [{name: pair[name] for name in ("id", *_PLACE)} for pair in pairs]
        mail_batches.set_places(self.session, folder.tenant_id, places)

    def _already_elsewhere(self, client_id: str, leaving: Sequence[Any], gone: set[str]) -> list[dict[str, Any]]:
        """Those of the rows whose mail also came later to another place: `id`, that place, and the row there (`newer`)."""
        by_name: dict[Name, list[RowMapping]] = {}
        named = [row.message_id for row in leaving if row.message_id is not None]
        nameless = [row.sha256 for row in leaving if row.message_id is None]
        alikes: list[ColumnElement[bool]] = [among(EmailMessage.message_id, named)] if named else []
        alikes += [and_(EmailMessage.message_id.is_(None), among(EmailMessage.sha256, nameless))] if nameless else []
        columns = (*_FACTS, *(getattr(EmailMessage, name) for name in _PLACE if name != "remote_id"))
        for alike in alikes:  # two statements, each with an index of its own, whatever the statistics say
            seen = (self.owns(EmailMessage), EmailMessage.client_id == client_id, alike, EmailMessage.vanished_at.is_(None))
            for here in self.session.execute(select(*columns).where(*seen).order_by(EmailMessage.id)).mappings():
                for name in _names(here["sha256"], here["remote_id"], here["message_id"]) if here["id"] not in gone else ():
                    by_name.setdefault(name, []).append(here)
        pairs: list[dict[str, Any]] = []
        used: set[str] = set()
        for row in leaving:
            places = (each for name in _names(row.sha256, row.remote_id, row.message_id) for each in by_name.get(name, ()))
            place = next((each for each in places if each["id"] > row.id and each["id"] not in used), None)
            if place is not None:
                used.add(place["id"])
                pairs.append({**place, "id": row.id, "newer": place["id"]})
        return pairs

    def _update(self, *conditions: ColumnElement[bool], **values: Any) -> int:
        statement = update(EmailMessage).where(*conditions).values(**values).execution_options(synchronize_session=False)
        return int(self.session.execute(statement).rowcount)  # type: ignore[attr-defined]


def _names(sha256: str, remote_id: str | None, message_id: str | None) -> list[Name]:
    """What a mail is known by anywhere. A server's own name counts with the Message-ID only: POP3 servers use theirs again."""
    return [(sha256, None), *([(remote_id, message_id)] if remote_id else [])]


def _place(row_id: str, folder: EmailFolder, uid_validity: int, message: FetchedMessage) -> dict[str, Any]:
    place = (folder.id, uid_validity, message.uid, sorted(message.flags), message.internal_date, remote_id_of(message))
    return {"id": row_id, **dict(zip(_PLACE, place, strict=True))}
