"""What the spam check said of stored messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, exists, func, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import aliased, defer

from mail.spam.verdict import Verdict
from storage import mail_batches
from storage.expressions import db_now
from storage.mail_batches import chunks
from storage.models import EmailFolder, EmailMessage, SpamFeedback, SpamVerdict
from storage.repositories.base import Repository
from storage.repositories.email_clients import EmailClients
from storage.repositories.mail_views import RECEIVED, Before

NEVER_CHECKED = ("sent", "drafts")
"""Roles of folders that hold the user's own mail."""
KEYS = ("tenant_id", "email_id")


@dataclass(frozen=True, slots=True)
class Unchecked:
    """A message that is to be checked, and where its source is."""

    id: str
    client_id: str
    folder_id: str
    folder_name: str
    raw_folder_name: str
    role: str | None
    uid_validity: int
    uid: int
    size: int
    sender: str
    position: tuple[Any, str]  # when it came, and its id: where a list goes on


class SpamVerdicts(Repository):
    """The verdicts on the identity's messages. Whoever calls has looked messages up, and so passed their user's wall too."""

    def keep_new(self, tenant_id: str, verdicts: Mapping[str, Verdict], model: str | None) -> None:
        """Verdicts on messages that are stored in this transaction, by their ids; one that has a verdict keeps it."""
        self.require_tenant(tenant_id)
        mail_batches.add_rows(self.session, SpamVerdict, [_row(tenant_id, email_id, each, model) for email_id, each in verdicts.items()])

    def put(self, verdicts: Mapping[str, Verdict], model: str | None) -> set[str]:
        """Verdicts on stored messages, in the place of earlier ones. Returns the ids of the messages that are still there."""
        there: dict[str, str] = {}
        for chunk in chunks(sorted(verdicts)):
            named = select(EmailMessage.id, EmailMessage.tenant_id).where(self.owns(EmailMessage), EmailMessage.id.in_(chunk))
            there |= {row.id: row.tenant_id for row in self.session.execute(named.with_for_update(read=True, key_share=True))}
        rows = [_row(tenant_id, email_id, verdicts[email_id], model) for email_id, tenant_id in there.items()]
        insert = postgresql.insert if mail_batches.is_postgres(self.session) else sqlite.insert
        for some in chunks(rows, 100):
            statement: Any = insert(SpamVerdict).values(some)
            changed = {name: statement.excluded[name] for name in some[0] if name not in KEYS} | {"created_at": db_now()}
            self.session.execute(statement.on_conflict_do_update(index_elements=KEYS, set_=changed))
        return set(there)

    def of(self, email_ids: Sequence[str]) -> dict[str, SpamVerdict]:
        """By the messages' ids; those that were not checked are left out."""
        found: dict[str, SpamVerdict] = {}
        for chunk in chunks(email_ids):
            rows = self.session.scalars(self.scoped(SpamVerdict).where(SpamVerdict.email_id.in_(chunk)))
            found |= {row.email_id: row for row in rows}
        return found

    def shown(self, email_ids: Sequence[str]) -> dict[str, SpamVerdict]:
        """As `of`, without what only learning needs."""
        statement = self.scoped(SpamVerdict).options(defer(SpamVerdict.hashes), defer(SpamVerdict.contributions))
        return (
            {row.email_id: row for row in self.session.scalars(statement.where(SpamVerdict.email_id.in_(email_ids)))} if email_ids else {}
        )

    def unchecked(self, client_id: str, folder_id: str | None, *, before: Before = None, limit: int = 100) -> list[Unchecked]:
        """Messages of an account without a verdict, the newest first. Raises NotFoundError for a foreign account."""
        conditions = [self._without_verdict(client_id, folder_id)]
        if before is not None:
            conditions.append(tuple_(RECEIVED, EmailMessage.id) < before)
        return self._listed(*conditions, limit=limit)

    def count_unchecked(self, client_id: str, folder_id: str | None) -> int:
        """How many messages of an account are without a verdict."""
        statement = select(func.count()).select_from(EmailMessage).join(EmailFolder, _IN_FOLDER)
        return self.session.scalar(statement.where(self._without_verdict(client_id, folder_id))) or 0

    def to_check(self, email_ids: Sequence[str]) -> list[Unchecked]:
        """These messages wherever they are now, whether or not they have a verdict; vanished and foreign ones are left out."""
        found = []
        for chunk in chunks(email_ids):
            found += self._listed(self.owns(EmailMessage), EmailMessage.id.in_(chunk), EmailMessage.vanished_at.is_(None))
        mine = {client_id for client_id in {each.client_id for each in found} if EmailClients(self.session).has(client_id)}
        return [each for each in found if each.client_id in mine]

    def junking(self, email_ids: Sequence[str]) -> list[str]:
        """Those of the messages that we are to move to Junk are marked before it is done. Returns the ids of those that may be moved.

        Not one that somebody called wanted, and not one of which a twin is in Junk: somebody may just have taken it out of there.
        """
        marked: list[str] = []
        wanted = exists().where(
            SpamFeedback.tenant_id == SpamVerdict.tenant_id,
            SpamFeedback.email_id == SpamVerdict.email_id,
            ~SpamFeedback.is_spam,
            SpamFeedback.undone_at.is_(None),
        )
        for chunk in chunks(email_ids):
            spam = (
                self.owns(SpamVerdict),
                SpamVerdict.email_id.in_(chunk),
                SpamVerdict.is_spam,
                ~wanted,
                ~has_twin_in("junk", SpamVerdict),
            )
            statement = update(SpamVerdict).where(*spam).values(junked_at=db_now()).returning(SpamVerdict.email_id)
            marked += self.session.scalars(statement.execution_options(synchronize_session=False))
        return marked

    def not_junked(self, email_ids: Sequence[str]) -> None:
        """They stay where they are, or somebody took them out again: the next move to Junk is an opinion."""
        for chunk in chunks(email_ids):
            ours = update(SpamVerdict).where(self.owns(SpamVerdict), SpamVerdict.email_id.in_(chunk))
            self.session.execute(ours.values(junked_at=None).execution_options(synchronize_session=False))

    def counts(self) -> dict[str, int]:
        """How many messages were checked, how many of them are spam, and how many we moved to Junk."""
        spam = func.count().filter(SpamVerdict.is_spam)
        junked = func.count().filter(SpamVerdict.junked_at.is_not(None))
        row = self.session.execute(select(func.count(), spam, junked).select_from(SpamVerdict).where(self.owns(SpamVerdict))).one()
        return {"checked": row[0], "spam": row[1], "junked": row[2]}

    def _without_verdict(self, client_id: str, folder_id: str | None) -> ColumnElement[bool]:
        client = EmailClients(self.session).one(client_id)
        checked = exists().where(SpamVerdict.tenant_id == EmailMessage.tenant_id, SpamVerdict.email_id == EmailMessage.id)
        condition = self.owns(EmailMessage) & (EmailMessage.client_id == client.id) & EmailMessage.vanished_at.is_(None) & ~checked
        if folder_id is not None:
            return condition & (EmailMessage.folder_id == folder_id)
        return condition & func.coalesce(EmailFolder.role, "").not_in(NEVER_CHECKED)

    def _listed(self, *conditions: ColumnElement[bool], limit: int | None = None) -> list[Unchecked]:
        columns = (EmailMessage.id, EmailMessage.client_id, EmailMessage.uid_validity, EmailMessage.uid, EmailMessage.size)
        place = (EmailFolder.id, EmailFolder.name, EmailFolder.raw_name, EmailFolder.role)
        statement = select(*columns, EmailMessage.sender, *place, RECEIVED).join(EmailFolder, _IN_FOLDER).where(*conditions)
        rows = self.session.execute(statement.order_by(RECEIVED.desc(), EmailMessage.id.desc()).limit(limit))
        return [
            Unchecked(
                email_id,
                client_id,
                *(folder_id, name, raw_name or name, role),
                *(uid_validity, uid, size),
                sender=address_of(sender),
                position=(received, email_id),
            )
            for email_id, client_id, uid_validity, uid, size, sender, folder_id, name, raw_name, role, received in rows
        ]


_IN_FOLDER = (EmailFolder.tenant_id == EmailMessage.tenant_id) & (EmailFolder.id == EmailMessage.folder_id)


def has_twin_in(role: str, row: type[SpamVerdict | SpamFeedback]) -> ColumnElement[bool]:
    """Whether a folder of that role holds another copy of the message of a row."""
    twin, folder = aliased(EmailMessage), aliased(EmailFolder)
    named = (twin.message_id == EmailMessage.message_id) | (twin.message_id.is_(None) & (twin.sha256 == EmailMessage.sha256))
    same = (twin.tenant_id == EmailMessage.tenant_id) & (twin.client_id == EmailMessage.client_id) & (twin.id != EmailMessage.id) & named
    inside = (folder.tenant_id == twin.tenant_id) & (folder.id == twin.folder_id) & (folder.role == role) & twin.vanished_at.is_(None)
    mine = (EmailMessage.tenant_id == row.tenant_id) & (EmailMessage.id == row.email_id)
    return exists().where(mine, same, inside).correlate(row)


def address_of(sender: Mapping[str, Any] | None) -> str:
    """A stored sender's address, "" when there is none."""
    return str((sender or {}).get("address") or "")


def _row(tenant_id: str, email_id: str, verdict: Verdict, model: str | None) -> dict[str, Any]:
    return {
        "tenant_id": tenant_id,
        "email_id": email_id,
        "score": verdict.score,
        "is_spam": verdict.is_spam,
        "threshold": verdict.threshold,
        "logit": verdict.logit,
        "indicators": [asdict(each) for each in verdict.indicators],
        "contributions": [asdict(each) for each in verdict.contributions],
        "engines": [asdict(each) for each in verdict.engines],
        "notes": list(verdict.notes),
        "hashes": verdict.hashes,
        "model": model,
        "source": "engines" if verdict.engines else "embedded",
    }
