"""What a sync does about spam: new messages are judged while their bytes are at hand, and moves to and from Junk are somebody's opinion.

Nothing here stops a sync. What cannot be judged now is judged later, by a run of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from actors.junk import enqueue_junking
from actors.spam import check_arrived_spam
from actors.spam_learning import learn_from_moves
from actors.spam_rules import engines, model_version, rules_for
from core.logging import get_logger
from core.settings import get_settings
from mail.spam.verdict import Verdict
from mail.sync import FetchedMessage, SyncBatch
from runs.enqueue import enqueue
from storage.models import EmailClient
from storage.repositories.messages import Changes
from storage.repositories.spam_verdicts import NEVER_CHECKED, SpamVerdicts

if TYPE_CHECKING:
    from mail.spam.judging import Rules

log = get_logger(__name__)
SECONDS_FOR_A_BATCH = 5.0
"""A batch of 500 ordinary messages takes half a second; what is not judged by then is left to a run of its own."""


@dataclass(frozen=True, slots=True)
class ArrivalCheck:
    """The check of one account's new mail, by rules that were read once for the sync."""

    tenant_id: str
    rules: Rules
    has_engines: bool

    def judge(self, batch: SyncBatch) -> dict[int, Verdict]:
        """By UID, by the embedded check alone; before the transaction, which waits for nothing."""
        if batch.folder.role in NEVER_CHECKED:
            return {}
        from mail.spam.judging import judge  # with the first message, as in `actors.spam.judged`

        deadline, verdicts = time.monotonic() + SECONDS_FOR_A_BATCH, {}
        for message in batch.new:
            if time.monotonic() > deadline:
                break
            try:
                verdicts[message.uid] = judge(message.raw, self.rules, sender=_sender(message))
            except Exception as error:  # a message that our check cannot take must not stop its mailbox
                log.warning("spam_check_failed", error=type(error).__name__)
        return verdicts

    def store(self, session: Session, batch: SyncBatch, stored: Changes, verdicts: dict[int, Verdict]) -> None:
        """Beside the messages, in their transaction; if it cannot be done they are stored all the same."""
        try:
            with session.begin_nested():
                self._store(session, batch, stored, verdicts)
        except (OperationalError, InterfaceError):  # the database itself: the batch is stored again
            raise
        except Exception as error:
            log.warning("spam_verdicts_not_stored", error=type(error).__name__)

    def _store(self, session: Session, batch: SyncBatch, stored: Changes, verdicts: dict[int, Verdict]) -> None:
        known = {stored.added[uid]: verdict for uid, verdict in verdicts.items() if uid in stored.added}
        SpamVerdicts(session).keep_new(self.tenant_id, known, model_version())
        if stored.moves:
            learn_from_moves(session, self.tenant_id, stored.moves)
        if batch.folder.role in NEVER_CHECKED:
            return
        later = [row_id for row_id in stored.added.values() if self.has_engines or row_id not in known]
        if later:  # one run for all of them: it reads them over one connection
            enqueue(session, check_arrived_spam, email_ids=later)
        spam = [row_id for row_id, verdict in known.items() if verdict.is_spam]
        if spam and not self.has_engines:  # else it is for those to say
            enqueue_junking(session, SpamVerdicts(session).to_check(spam))


def arrival_check(session: Session, client: EmailClient) -> ArrivalCheck | None:
    """None where neither the account nor, for accounts that do not say, the operator asks for it."""
    wanted = client.checks_spam if client.checks_spam is not None else get_settings().spam_check_on_sync
    return ArrivalCheck(client.tenant_id, rules_for(session, with_engines=False), bool(engines())) if wanted else None


def _sender(message: FetchedMessage) -> str:
    return message.parsed.sender.addr if message.parsed.sender is not None else ""
