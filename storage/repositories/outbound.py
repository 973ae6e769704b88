"""The outbox: mails on their way out, what each recipient's server said, and the files that go with them."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import defer

from core.errors import ConflictError, InvalidInputError, NotFoundError
from core.ids import is_id
from mail.bounces import BounceReport
from mail.delivery import DeliveryOutcome, Refusal
from storage import sending
from storage.expressions import db_now, db_now_plus
from storage.first_tries import Mail
from storage.models import EmailAttachment, OutboundEmail, OutboundRecipient
from storage.repositories.base import Repository
from storage.repositories.bounces import Bounces
from storage.repositories.sealed import SealedMails
from storage.repositories.suppressions import Suppressions
from storage.states import OutboundStatus
from storage.webhook_events import may_be_heard, note_mail

FIRST_WAIT, LONGEST_WAIT = 300.0, 4 * 3600.0
"""Seconds before a recipient is tried again whose server named no time; doubled from try to try."""
UNKNOWN = "There is no outbound e-mail with this id."
EXPIRED = "It could not be sent before it expired."
NOBODY = "It has no recipient."
ERASED = "Its content was secret and has been erased; ask for a new mail."
MOST_SHOWN = 20
ALL_SUPPRESSED = "Everybody it was for is on the list of suppressed addresses."
MAY_STILL_BE_RECORDED = (OutboundStatus.SENDING, OutboundStatus.UNCERTAIN)


@dataclass(frozen=True, slots=True)
class Envelope:
    """Who a mail is to be offered for now, and the seconds until somebody else is due (None: nobody waits)."""

    recipients: list[str]
    wait: float | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a mail stands after a try: its status, how many have it in all, and the seconds until the next try."""

    status: str
    sent: int
    sent_at: datetime | None
    error: str | None
    wait: float | None


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
        email.to_addresses = _shown(recipients)
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

    def envelope(self, email: OutboundEmail) -> Envelope:
        """Who is due. Suppressed addresses are taken out here, so that one that was suppressed after the mail was accepted counts too."""
        waiting = sending.waiting_recipients(self.session.connection(), self.identity, email.id)
        listed = Suppressions(self.session).among(email.tenant_id, [each.address for each in waiting])
        suppressed = {each.address for each in waiting if each.address.lower() in listed}
        if suppressed:
            self._suppress(email.id, suppressed)
        left = [(each.address, _seconds(each.now, each.next_retry_at)) for each in waiting if each.address not in suppressed]
        return Envelope([address for address, wait in left if wait <= 0], min((wait for _, wait in left if wait > 0), default=None))

    def mark_sending(self, email_id: str, attempts: int | None = None, offered: Sequence[str] = ()) -> None:
        """The mark before the final dot. Raises ConflictError when the mail is not waiting to be sent: then nothing may be sent.

        `attempts` are those the mail had when its envelope was read: another run that tried it since has changed who is still to get it.
        The wait of those who are `offered` it is over: if nobody ever knows what became of the mail, they may have it.
        """
        connection = self.session.connection()
        if not sending.mark_sending(connection, self.identity, email_id, attempts):
            raise ConflictError("The mail is not waiting to be sent any more.")
        if attempts and offered:
            sending.end_waits(connection, self.identity, email_id, offered)

    def record(self, email_id: str, outcome: DeliveryOutcome, error: str | None = None, *, attempts: int | None = None) -> Standing:
        """Writes what the server said of each recipient. The mail is `sent` when nobody is left to try again, `failed` when that
        leaves nobody who got it, else `pending` until `next_retry_at`.

        `attempts` as for `mark_sending`. Raises ConflictError when another run has gone on with the mail meanwhile.
        """
        if attempts is not None and not outcome.refused and (sent_at := self._all_accepted(email_id, outcome, attempts)) is not None:
            if may_be_heard(self.session.connection(), self.identity.tenant_id):
                self._tell(email_id, OutboundStatus.SENT)
            sent = self.sent_count(email_id) if attempts else len(outcome.accepted)
            return Standing(OutboundStatus.SENT, sent, sent_at, None, None)
        email = self._locked(email_id)
        if email.status not in MAY_STILL_BE_RECORDED and email.attempts - 1 == attempts:
            return self.standing(email)  # it was recorded, and only the answer to the commit was lost
        if email.status == OutboundStatus.PENDING:
            email.attempts += 1  # it was put off before the mark
        elif email.status not in MAY_STILL_BE_RECORDED:
            raise ConflictError(f"The mail is {email.status}; what became of this try does not change that.")
        if attempts is not None and email.attempts != attempts + 1:
            raise ConflictError("Another run has gone on with the mail.")
        recipients = self.recipients(email_id)
        self._write_replies(recipients, outcome)
        email.max_attempts += any(refusal.is_left for refusal in outcome.refused)  # there is no end to be feared: others got it
        self._close_or_wait(email, recipients, error or (outcome.refused[0].reason if outcome.refused else None), outcome.retry_after)
        self.session.flush()
        return self.standing(email)

    def not_sent(self, email_id: str, error: str, *, is_final: bool) -> None:
        """A try ended without the mail being accepted: it waits for the next, or has failed for good."""
        self._set(email_id, status=OutboundStatus.FAILED if is_final else OutboundStatus.PENDING, last_error=error)
        if is_final:
            self._tell(email_id, OutboundStatus.FAILED)

    def put_off(self, email_id: str, addresses: Sequence[str], error: str, *, attempts: int, hint: float | None = None) -> Standing:
        """The server took nobody for now, or could not be asked: these are tried again, the mail's attempts allowing it."""
        refused = [Refusal(address, 0, permanent=False, reason=error, hint=hint) for address in addresses]
        return self.record(email_id, DeliveryOutcome([], refused, hint, None), error, attempts=attempts)

    def uncertain(self, email_id: str, error: str, refused: Sequence[Refusal] = ()) -> None:
        """Nobody can know whether the server has it: it is never sent again by itself. The `refused` surely have not got it."""
        self._set(email_id, status=OutboundStatus.UNCERTAIN, last_error=error)
        self._tell(email_id, OutboundStatus.UNCERTAIN)
        if refused:
            self._write_replies(self.recipients(email_id), DeliveryOutcome([], list(refused), None, None))

    def expired(self, email: OutboundEmail) -> bool:
        """Ends a waiting mail whose time is over. Returns whether it was."""
        if email.expires_at is None:
            return False
        over = update(OutboundEmail).where(self.owns(OutboundEmail), OutboundEmail.id == email.id, sending.is_expired())
        values = {"status": OutboundStatus.CANCELLED, "last_error": EXPIRED, "next_retry_at": None}
        waiting = over.where(OutboundEmail.status == OutboundStatus.PENDING).values(**values).returning(OutboundEmail.id)
        is_over = self.session.execute(waiting).scalar() is not None
        if is_over:
            self.session.refresh(email)
        return is_over

    def nobody_left(self, email: OutboundEmail) -> Standing:
        """Ends a mail that waits for nobody: the last ones were suppressed, or it never had any."""
        recipients = self.recipients(email.id)
        self._close_or_wait(email, recipients, ALL_SUPPRESSED if recipients else NOBODY, None)
        self.session.flush()
        return self.standing(email)

    def standing(self, email: OutboundEmail) -> Standing:
        """How the mail stands now."""
        self.session.refresh(email, ["status", "sent_at", "next_retry_at", "last_error"])
        wait = _seconds(self._time(), email.next_retry_at) if email.status == OutboundStatus.PENDING and email.next_retry_at else None
        return Standing(email.status, self.sent_count(email.id), email.sent_at, email.last_error, wait)

    def wait(self, email: OutboundEmail) -> float:
        """Seconds until the time that the mail is scheduled for; 0 when that has come."""
        return _seconds(self._time(), email.scheduled_at) if email.scheduled_at is not None else 0.0

    def sent_count(self, email_id: str) -> int:
        """How many recipients were accepted, some of whom may have bounced later."""
        accepted = or_(OutboundRecipient.status == OutboundStatus.SENT, OutboundRecipient.bounced_at.is_not(None))
        counted = select(func.count()).select_from(OutboundRecipient).where(self.owns(OutboundRecipient))
        return self.session.scalar(counted.where(OutboundRecipient.email_id == email_id, accepted)) or 0

    def reopen(self, email_id: str) -> OutboundEmail:
        """A mail that has failed or was cancelled is to be tried anew, for everybody who has not got it. Of others only the wait ends.

        Its attempts go on counting: they also tell the tries of different runs apart. Raises ConflictError for one whose content is erased.
        """
        email = self._locked(email_id)
        recipients = self.recipients(email_id)
        if email.status in {OutboundStatus.FAILED, OutboundStatus.CANCELLED}:
            self._may_go_again(email)
            email.status = OutboundStatus.PENDING
            for recipient in recipients:
                if recipient.status == "failed":
                    recipient.status, recipient.error, recipient.attempts = "pending", None, 0
        if email.status == OutboundStatus.PENDING:
            email.next_retry_at = email.scheduled_at = None
            for recipient in recipients:
                recipient.next_retry_at = None
        self.session.flush()
        return email

    def came_back(self, reports: Sequence[BounceReport]) -> int:
        """A delivery report came back. Returns of how many recipients it told anything new about a mail of ours."""
        return Bounces(self.session).record(reports)

    def erase(self, email: Mail) -> None:
        """To be called with whatever may have settled a mail: a secret content is not kept longer than it is needed."""
        if email.is_sealed:
            SealedMails(self.session).erase_settled(email.id)

    def cannot_be_sent(self, email: OutboundEmail) -> None:
        """Ends a waiting mail whose content is erased."""
        self._set(email.id, status=OutboundStatus.FAILED, last_error=ERASED, next_retry_at=None)

    @staticmethod
    def _may_go_again(email: OutboundEmail, *, keeps_expiry: bool = False) -> None:
        """Ten more attempts. A secret mail keeps its end: its token is void then, whoever sends it."""
        if email.erased_at is not None:
            raise ConflictError(ERASED)
        email.max_attempts = max(email.max_attempts, email.attempts + 10)
        if not (email.is_sealed or keeps_expiry):
            email.expires_at = None

    def _all_accepted(self, email_id: str, outcome: DeliveryOutcome, attempts: int) -> datetime | None:
        """The usual end in two statements, and when it was; None (and nothing is written) when it is not that."""
        if not outcome.accepted:
            return None
        self.session.flush()
        return sending.all_accepted(self.session.connection(), self.identity, email_id, outcome, attempts)

    def _suppress(self, email_id: str, addresses: Container[str]) -> None:
        for recipient in self.recipients(email_id):
            if recipient.address in addresses:
                recipient.status, recipient.error = "suppressed", "The address is on the list of suppressed addresses."
        self.session.flush()

    def _write_replies(self, recipients: Sequence[OutboundRecipient], outcome: DeliveryOutcome) -> None:
        by_address = {recipient.address: recipient for recipient in recipients}
        for address in outcome.accepted:
            for name, value in _accepted(outcome).items():
                setattr(by_address[address], name, value)
        for refusal in outcome.refused:
            recipient = by_address[refusal.address]
            recipient.attempts += not refusal.is_left
            recipient.status = "failed" if refusal.permanent else "pending"
            recipient.reply_code, recipient.enhanced_code, recipient.error = refusal.code or None, refusal.enhanced or None, refusal.reason
            wait = refusal.hint or min(LONGEST_WAIT, FIRST_WAIT * 2 ** (recipient.attempts - 1))
            recipient.next_retry_at = None if refusal.permanent else db_now_plus(wait)
        self.session.flush()

    def _close_or_wait(self, email: OutboundEmail, recipients: Sequence[OutboundRecipient], error: str | None, wait: float | None) -> None:
        """The mail's own status, from those of its recipients."""
        is_open = any(recipient.status == "pending" for recipient in recipients)
        got_it = any(recipient.status == "sent" for recipient in recipients)
        email.last_error = error
        if is_open and email.attempts < email.max_attempts:
            email.status = OutboundStatus.PENDING
            soonest = select(func.min(OutboundRecipient.next_retry_at)).where(
                OutboundRecipient.email_id == email.id, OutboundRecipient.status == "pending", self.owns(OutboundRecipient)
            )
            email.next_retry_at = func.coalesce(soonest.scalar_subquery(), db_now_plus(wait or FIRST_WAIT))
            return
        for recipient in recipients:
            if recipient.status == "pending":
                recipient.status = "failed"
        email.status = OutboundStatus.SENT if got_it else OutboundStatus.FAILED
        email.next_retry_at = None
        email.sent_at = (email.sent_at or db_now()) if got_it else None
        self._tell(email.id, OutboundStatus(email.status))

    def _locked(self, email_id: str) -> OutboundEmail:
        """The row without its bytes, nobody else's until the end of the transaction. Raises NotFoundError."""
        if not is_id(email_id):
            raise NotFoundError(UNKNOWN)
        statement = self.scoped(OutboundEmail).where(OutboundEmail.id == email_id).options(defer(OutboundEmail.source))
        email = self.session.scalar(statement.with_for_update().execution_options(populate_existing=True))
        if email is None:
            raise NotFoundError(UNKNOWN)
        return email

    def _set(self, email_id: str, **values: Any) -> None:
        self.session.execute(update(OutboundEmail).where(self.owns(OutboundEmail), OutboundEmail.id == email_id).values(**values))

    def _tell(self, email_id: str, status: OutboundStatus) -> None:
        """Whoever wants to be told that a mail has come to this."""
        wanted = select(OutboundEmail.tenant_id, OutboundEmail.run_id).where(self.owns(OutboundEmail), OutboundEmail.id == email_id)
        mail = self.session.execute(wanted).one_or_none()
        if mail is not None:
            note_mail(self.session.connection(), mail.tenant_id, email_id, status, mail.run_id)

    def _time(self) -> datetime:
        """The database's."""
        return self.session.execute(select(db_now())).scalar_one()


def _shown(recipients: Sequence[str]) -> str:
    """For people who look at the table; the recipients' own rows are what counts."""
    more = f" and {len(recipients) - MOST_SHOWN} more" if len(recipients) > MOST_SHOWN else ""
    return ", ".join(recipients[:MOST_SHOWN]) + more


def _accepted(outcome: DeliveryOutcome) -> dict[str, Any]:
    told = {"reply_code": outcome.reply_code, "enhanced_code": outcome.enhanced or None}
    return {"status": OutboundStatus.SENT, "error": None, "next_retry_at": None, **told}


def _seconds(moment: datetime | None, until: datetime | None) -> float:
    return 0.0 if until is None or moment is None else (until - moment).total_seconds()


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
