"""What a delivery report that came back (RFC 3464) changes: the recipient it is about, and whether it is written to again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sqlalchemy import ColumnElement, or_

from core.ids import is_id
from mail.bounces import BounceReport
from storage.event_types import BOUNCED
from storage.expressions import db_now
from storage.models import OutboundEmail, OutboundRecipient
from storage.repositories.base import Repository
from storage.repositories.suppressions import Suppressions
from storage.webhook_events import NewEvent, note

NOT_THE_ADDRESS = {"5.1.7", "5.1.8", "5.1.9"}
"""Of 5.1.x (RFC 3463 3.2) those that say something about the sender or the way."""
_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")


class Bounces(Repository):
    """Reports about the identity's mails; about anybody else's nothing happens."""

    def record(self, reports: Sequence[BounceReport]) -> int:
        """What one message says. Returns of how many recipients it told anything new; twice is fine."""
        about = next(filter(None, map(self._mail, _references(reports))), None)
        if about is None:
            return 0
        recipients = self._recipients(about)
        only = next(iter(recipients.values())) if len(recipients) == 1 else None  # its server knows them by another name
        found = [(report, recipients.get(report.address.lower(), only)) for report in reports]
        return sum(self._note(recipient, report.status) for report, recipient in found if recipient is not None)

    def _note(self, recipient: OutboundRecipient, status_code: str) -> bool:
        if recipient.status in {"bounced", "suppressed"} or not _STATUS.fullmatch(status_code):
            return False
        is_permanent = status_code.startswith("5")
        if status_code.startswith("2") or (recipient.bounced_at is not None and not is_permanent):
            return False
        recipient.bounced_at = db_now()  # an SQL expression
        recipient.enhanced_code = status_code
        if is_permanent:
            recipient.status, recipient.next_retry_at = "bounced", None
            recipient.error = f"The mail came back ({status_code})."
        if is_permanent and status_code.startswith("5.1.") and status_code not in NOT_THE_ADDRESS:
            Suppressions(self.session).add(recipient.tenant_id, recipient.address, "bounce", status_code)
        self.session.flush()
        facts = {"emailId": recipient.email_id, "recipientId": recipient.id, "isPermanent": is_permanent, "enhancedCode": status_code}
        note(self.session.connection(), [NewEvent(recipient.tenant_id, BOUNCED, facts)])
        return True

    def _mail(self, reference: str) -> str | None:
        """The id of the mail that is meant by its Message-ID or by the envelope id, which is its own."""
        names: list[ColumnElement[bool]] = [OutboundEmail.message_id.in_([reference, f"<{reference}>"])]
        if is_id(reference):
            names.append(OutboundEmail.id == reference)
        newest = self.scoped(OutboundEmail).with_only_columns(OutboundEmail.id).where(or_(*names))
        return self.session.scalar(newest.order_by(OutboundEmail.created_at.desc()).limit(1))

    def _recipients(self, email_id: str) -> dict[str, OutboundRecipient]:
        found = self.session.scalars(self.scoped(OutboundRecipient).where(OutboundRecipient.email_id == email_id))
        return {recipient.address.lower(): recipient for recipient in found}


def _references(reports: Sequence[BounceReport]) -> Iterator[str]:
    """All reports of a message are about one mail (RFC 3464 2.1.1): its names are in each of them."""
    for report in reports[:1]:
        yield from filter(None, (report.envelope_id, report.message_id))
