"""What people said of messages: spam, or not. What the tenant's weights are from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, func, select, true

from core.errors import NotFoundError
from storage.expressions import db_now, db_now_plus
from storage.mail_batches import chunks
from storage.models import EmailFolder, SpamFeedback
from storage.repositories.base import Repository
from storage.repositories.places import Move
from storage.repositories.spam_choices import SpamChoices
from storage.repositories.spam_verdicts import SpamVerdicts, has_twin_in

REPLAYED = 2000
"""So many of a tenant's newest opinions are learned from."""
HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Opinions:
    """What came of some feedback. `revision` of the weights is what a run is to learn from; None when nothing is new."""

    recorded: list[str]
    over_the_limit: list[str]
    revision: int | None


class SpamFeedbacks(Repository):
    """The feedback of the identity's tenant. Whoever calls has looked the messages up, and so passed their user's wall too."""

    def record(self, tenant_id: str, labels: Mapping[str, bool], *, via: str, per_hour: int) -> Opinions:
        """What a user says of messages (by id: spam or not). The same again is nothing new; another opinion takes the place of the first.

        Of one user at most `per_hour` count. Takes the tenant's turn.
        """
        weights = SpamChoices(self.session).locked_weights(tenant_id)
        verdicts = SpamVerdicts(self.session).of(list(labels))
        known = self._of(tenant_id, list(labels))
        left = per_hour - self._said_lately(tenant_id)
        recorded, refused = [], []
        for email_id, is_spam in labels.items():
            before, verdict = known.get(email_id), verdicts.get(email_id)
            if before is not None and before.undone_at is None and before.is_spam == is_spam:
                continue
            if left <= 0:
                refused.append(email_id)
                continue
            left -= 1
            recorded.append(email_id)
            row = before or SpamFeedback(tenant_id=tenant_id, email_id=email_id)
            row.user_id, row.is_spam, row.via, row.undone_at, row.created_at = self.identity.user_id, is_spam, via, None, db_now()
            if verdict is not None:
                row.was_spam, row.hashes, row.logit = verdict.is_spam, verdict.hashes, verdict.logit
            self.session.add(row)
        if recorded:
            weights.revision += 1
        self.session.flush()
        return Opinions(recorded, refused, weights.learned_revision if recorded else None)

    def moved(self, tenant_id: str, moves: Sequence[Move], *, per_hour: int) -> Opinions:
        """Messages that were moved to Junk, and back, are somebody's opinion; those that we moved are not."""
        roles = self._roles({folder_id for move in moves for folder_id in (move.left, move.arrived)})
        labels: dict[str, bool] = {}
        for move in moves:
            was_junk, is_junk = roles.get(move.left) == "junk", roles.get(move.arrived) == "junk"
            if is_junk and not was_junk:
                labels[move.email_id] = True
            elif was_junk and roles.get(move.arrived) != "trash" and not is_junk:  # who empties the Junk folder says nothing
                labels[move.email_id] = False
        ours = {row.email_id for row in SpamVerdicts(self.session).of(list(labels)).values() if row.junked_at is not None}
        back = [email_id for email_id in ours if not labels[email_id]]
        SpamVerdicts(self.session).not_junked(back)
        labels = {email_id: is_spam for email_id, is_spam in labels.items() if not (is_spam and email_id in ours)}
        return self.record(tenant_id, labels, via="move", per_hour=per_hour) if labels else Opinions([], [], None)

    def undo(self, tenant_id: str, email_id: str) -> int:
        """As if it had never been said. Returns the revision to learn from. Raises NotFoundError when nothing was said."""
        weights = SpamChoices(self.session).locked_weights(tenant_id)
        row = self._of(tenant_id, [email_id]).get(email_id)
        if row is None or row.undone_at is not None:
            raise NotFoundError("Nobody said anything about this message.")
        row.undone_at = db_now()
        weights.revision += 1
        self.session.flush()
        return weights.learned_revision

    def of(self, email_ids: Sequence[str]) -> dict[str, SpamFeedback]:
        """What stands, by the messages' ids."""
        found: dict[str, SpamFeedback] = {}
        for chunk in chunks(email_ids):
            rows = self.session.scalars(self._stored().where(SpamFeedback.email_id.in_(chunk), SpamFeedback.undone_at.is_(None)))
            found |= {row.email_id: row for row in rows}
        return found

    def called_wanted(self, email_ids: Sequence[str]) -> list[str]:
        """Those of the messages that may leave Junk: somebody called them wanted, and no twin of them is in the inbox already."""
        found: list[str] = []
        for chunk in chunks(email_ids):
            stands = (SpamFeedback.email_id.in_(chunk), SpamFeedback.undone_at.is_(None), ~SpamFeedback.is_spam)
            mine = select(SpamFeedback.email_id).where(self._in_tenant(), *stands, ~has_twin_in("inbox", SpamFeedback))
            found += self.session.scalars(mine)
        return found

    def unread(self, tenant_id: str, limit: int = 100) -> list[str]:
        """The messages whose features are to be read before anything can be learned of them."""
        waiting = (SpamFeedback.hashes.is_(None), SpamFeedback.undone_at.is_(None))
        mine = select(SpamFeedback.email_id).where(self._in_tenant(), SpamFeedback.tenant_id == tenant_id, *waiting)
        return list(self.session.scalars(mine.order_by(SpamFeedback.created_at).limit(limit)))

    def read(self, tenant_id: str, email_ids: Sequence[str]) -> None:
        """Takes over what a check has found of these messages by now; of the others nothing can be learned."""
        verdicts = SpamVerdicts(self.session).of(email_ids)
        for email_id, row in self._of(tenant_id, email_ids).items():
            verdict = verdicts.get(email_id)
            row.hashes, row.logit = (verdict.hashes, verdict.logit) if verdict is not None else (b"", None)
        self.session.flush()

    def to_learn(self, tenant_id: str) -> list[SpamFeedback]:
        """What stands and can be learned from, in the order in which it was said."""
        useful = (SpamFeedback.undone_at.is_(None), SpamFeedback.hashes.is_not(None), SpamFeedback.logit.is_not(None))
        mine = self._stored().where(SpamFeedback.tenant_id == tenant_id, *useful)
        newest = self.session.scalars(mine.order_by(SpamFeedback.created_at.desc(), SpamFeedback.id.desc()).limit(REPLAYED)).all()
        return list(reversed(newest))

    def counts(self) -> dict[str, int]:
        """How often which opinion stands, and how often the verdict was another."""
        stands = SpamFeedback.undone_at.is_(None)
        columns = (
            func.count().filter(stands, SpamFeedback.is_spam),
            func.count().filter(stands, ~SpamFeedback.is_spam),
            func.count().filter(stands, SpamFeedback.is_spam, SpamFeedback.was_spam.is_(False)),
            func.count().filter(stands, ~SpamFeedback.is_spam, SpamFeedback.was_spam.is_(True)),
        )
        row = self.session.execute(select(*columns).select_from(SpamFeedback).where(self._in_tenant())).one()
        return {"spam": row[0], "ham": row[1], "missed": row[2], "false_positives": row[3]}

    def _of(self, tenant_id: str, email_ids: Sequence[str]) -> dict[str, SpamFeedback]:
        """What was said, taken back or not."""
        found: dict[str, SpamFeedback] = {}
        for chunk in chunks(email_ids):
            rows = self.session.scalars(self._stored().where(SpamFeedback.tenant_id == tenant_id, SpamFeedback.email_id.in_(chunk)))
            found |= {row.email_id: row for row in rows}
        return found

    def _said_lately(self, tenant_id: str) -> int:
        """How many opinions of the last hour are this user's."""
        user = SpamFeedback.user_id.is_(None) if self.identity.user_id is None else SpamFeedback.user_id == self.identity.user_id
        lately = (SpamFeedback.tenant_id == tenant_id, user, SpamFeedback.created_at > db_now_plus(-HOUR))
        return self.session.scalar(select(func.count()).select_from(SpamFeedback).where(self._in_tenant(), *lately)) or 0

    def _roles(self, folder_ids: set[str]) -> dict[str, str | None]:
        named = (self.owns(EmailFolder), EmailFolder.id.in_(sorted(folder_ids)))
        return {row.id: row.role for row in self.session.execute(select(EmailFolder.id, EmailFolder.role).where(*named))}

    def _stored(self) -> Select[SpamFeedback]:
        return select(SpamFeedback).where(self._in_tenant())

    def _in_tenant(self) -> ColumnElement[bool]:
        """The tenant's wall alone: the weights are everybody's, whoever said it."""
        return true() if self.identity.is_system else SpamFeedback.tenant_id == self.identity.tenant_id
