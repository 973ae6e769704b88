"""What a delivery report that came back (RFC 3464) changes: the recipient it is about, and whether it is written to again."""

from __future__ import annotations

import re

from sqlalchemy import ColumnElement, func, or_

from core.ids import is_id
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

    def record(self, reference: str, address: str, status_code: str) -> bool:
        """`reference` is the Message-ID or the envelope id (the mail's own id). Returns whether anything changed; twice is fine."""
        recipient = self._recipient(reference, address)
        if recipient is None or recipient.status in {"bounced", "suppressed"} or not _STATUS.fullmatch(status_code):
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

    def _recipient(self, reference: str, address: str) -> OutboundRecipient | None:
        """By address; a report about another address is about a mail's only recipient, whose server knows them by that one."""
        names: list[ColumnElement[bool]] = [OutboundEmail.message_id.in_([reference, f"<{reference}>"])]
        if is_id(reference):
            names.append(OutboundEmail.id == reference)
        email = self.session.scalar(self.scoped(OutboundEmail).where(or_(*names)).order_by(OutboundEmail.created_at.desc()).limit(1))
        if email is None:
            return None
        all_of_it = self.scoped(OutboundRecipient).where(OutboundRecipient.email_id == email.id)
        found = self.session.scalars(all_of_it.where(func.lower(OutboundRecipient.address) == address.lower())).first()
        if found is not None:
            return found
        several = self.session.scalars(all_of_it.limit(2)).all()
        return several[0] if len(several) == 1 else None
