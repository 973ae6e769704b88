"""The outbox: mails on their way out, what each recipient's server said, and the files that go with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import update

from core.errors import ConflictError, InvalidInputError
from mail.delivery import DeliveryOutcome
from storage.expressions import db_now, db_now_plus
from storage.models import EmailAttachment, OutboundEmail, OutboundRecipient
from storage.repositories.base import Repository
from storage.states import OutboundStatus


class OutboundEmails(Repository):
    """The outbox of the identity."""

    def one(self, email_id: str) -> OutboundEmail:
        """Raises NotFoundError."""
        return self.get(OutboundEmail, email_id, "outbound e-mail")

    def of_run(self, run_id: str) -> OutboundEmail | None:
        """The mail that a run has put into the outbox, if it came that far."""
        return self.session.scalar(self.scoped(OutboundEmail).where(OutboundEmail.run_id == run_id))

    def add(self, email: OutboundEmail, recipients: Sequence[str]) -> OutboundEmail:
        """Accepts a mail; from now on its bytes do not change."""
        self.session.add(email)
        self.session.flush()
        self.session.add_all(OutboundRecipient(tenant_id=email.tenant_id, email_id=email.id, address=address) for address in recipients)
        self.session.flush()
        return email

    def recipients(self, email_id: str) -> list[OutboundRecipient]:
        """Everybody the mail is for, in the order of the envelope."""
        return list(
            self.session.scalars(
                self.scoped(OutboundRecipient).where(OutboundRecipient.email_id == email_id).order_by(OutboundRecipient.id)
            )
        )

    def mark_sending(self, email_id: str) -> None:
        """The mark before the final dot. Raises ConflictError when the mail is not waiting to be sent: then nothing may be sent."""
        marked = self.session.execute(
            update(OutboundEmail)
            .where(self.owns(OutboundEmail), OutboundEmail.id == email_id, OutboundEmail.status == OutboundStatus.PENDING)
            .values(status=OutboundStatus.SENDING, attempts=OutboundEmail.attempts + 1)
            .returning(OutboundEmail.id)
        ).scalar()
        if marked is None:
            raise ConflictError("The mail is not waiting to be sent any more.")

    def record(self, email_id: str, outcome: DeliveryOutcome, error: str | None = None) -> OutboundEmail:
        """Writes what the server said of each recipient. The mail is `sent` when nobody is left to try again, `failed` when that
        leaves nobody who got it, else `pending` until `next_retry_at`."""
        email = self.one(email_id)
        if email.status == OutboundStatus.PENDING:
            email.attempts += 1  # it was put off before the mark
        by_address = {recipient.address: recipient for recipient in self.recipients(email_id)}
        for address in outcome.accepted:
            by_address[address].status, by_address[address].reply_code = "sent", outcome.reply_code
        for refusal in outcome.refused:
            recipient = by_address[refusal.address]
            recipient.status = "failed" if refusal.permanent else "pending"
            recipient.reply_code, recipient.error = refusal.code, refusal.reason
        is_open = any(recipient.status == "pending" for recipient in by_address.values())
        got_it = any(recipient.status == "sent" for recipient in by_address.values())
        email.last_error = outcome.refused[0].reason if outcome.refused else error
        if is_open and email.attempts < email.max_attempts:
            email.status = OutboundStatus.PENDING
            email.next_retry_at = db_now_plus(outcome.retry_after or 60.0)
        else:
            email.status = OutboundStatus.SENT if got_it else OutboundStatus.FAILED
            email.next_retry_at = None
            email.sent_at = db_now() if got_it else None
        self.session.flush()
        self.session.refresh(email)
        return email

    def not_sent(self, email_id: str, error: str, *, is_final: bool) -> None:
        """A try ended without the mail being accepted: it waits for the next, or has failed for good."""
        self._set(email_id, status=OutboundStatus.FAILED if is_final else OutboundStatus.PENDING, last_error=error)

    def reopen(self, email_id: str) -> OutboundEmail:
        """A mail that has failed is to be tried anew, for everybody who has not got it."""
        email = self.one(email_id)
        email.status, email.attempts, email.next_retry_at = OutboundStatus.PENDING, 0, None
        for recipient in self.recipients(email_id):
            if recipient.status == "failed":
                recipient.status, recipient.error = "pending", None
        self.session.flush()
        return email

    def uncertain(self, email_id: str, error: str) -> None:
        """Nobody can know whether the server has it: it is never sent again by itself."""
        self._set(email_id, status=OutboundStatus.UNCERTAIN, last_error=error)

    def _set(self, email_id: str, **values: Any) -> None:
        self.session.execute(update(OutboundEmail).where(self.owns(OutboundEmail), OutboundEmail.id == email_id).values(**values))


class Attachments(Repository):
    """Uploaded files waiting to be sent."""

    def add(self, *, filename: str, content_type: str, size: int, stored_filename: str) -> EmailAttachment:
        """Records an uploaded file."""
        attachment = EmailAttachment(
            tenant_id=self.identity.tenant_id,
            user_id=self.identity.user_id,
            filename=filename,
            content_type=content_type,
            size=size,
            stored_filename=stored_filename,
        )
        self.session.add(attachment)
        self.session.flush()
        return attachment

    def uploaded(self, attachment_ids: Sequence[str]) -> list[EmailAttachment]:
        """The uploads with these ids, in that order. Raises NotFoundError, InvalidInputError for one that was never uploaded."""
        found = [self.get(EmailAttachment, attachment_id, "attachment") for attachment_id in attachment_ids]
        if any(attachment.stored_filename is None for attachment in found):
            raise InvalidInputError("An attachment of a stored message cannot be sent; upload the file with POST /api/email/attachments.")
        return found
