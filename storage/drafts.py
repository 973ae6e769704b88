"""From what a caller wants to send to a row of the outbox: Message-ID, Date, bytes and signature are fixed here, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from sqlalchemy.orm import Session

from core.clock import now
from core.errors import InvalidInputError, NotFoundError
from core.settings import KeyRing
from mail.addresses import Address, Recipients, domain_of, parse_address
from mail.mime_build import OutgoingAttachment, OutgoingMail, build_message, new_message_id
from storage.models import EmailAttachment, EmailClient, OutboundEmail
from storage.repositories.email_clients import EmailClients
from storage.repositories.outbound import Attachments, OutboundEmails
from storage.repositories.suppressions import DkimKeys

LARGEST_ATTACHMENTS = 25 * 2**20
"""Bytes of all files of a mail together; base64 makes a third more of it, and few servers take more."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A mail as its caller describes it. `headers` are extra ones (`mime_build.bulk_headers`)."""

    recipients: Recipients
    subject: str = ""
    text: str = ""
    html: str | None = None
    attachment_ids: Sequence[str] = ()
    reply_to: Address | None = None
    headers: Sequence[tuple[str, str]] = field(default=())
    priority: int = 1
    scheduled_at: datetime | None = None
    expires_at: datetime | None = None


def accept(
    session: Session, email_client_id: str, draft: Draft, *, files: Path, keys: Callable[[], KeyRing], run_id: str | None = None
) -> OutboundEmail:
    """A new row of the outbox. `files` is the directory of uploads, `keys` is asked only when the mail is to be signed.

    Raises NotFoundError for an account or a file of somebody else, InvalidInputError for what cannot be sent.
    """
    if not draft.recipients.all:
        raise InvalidInputError("A mail needs at least one recipient; give one in to, cc or bcc.")
    client = EmailClients(session).one(email_client_id)
    if not client.smtp_host:
        raise InvalidInputError("This e-mail client has no SMTP server; set smtp_host.")
    sender = parse_address(client.email, field="the account's address")
    mail = OutgoingMail(
        message_id=new_message_id(domain_of(sender.addr)),
        date=now(),
        sender=Address(sender.name or client.name, sender.addr),
        to=draft.recipients.to,
        cc=draft.recipients.cc,
        bcc=draft.recipients.bcc,
        subject=draft.subject,
        text=draft.text,
        html=draft.html,
        attachments=_files(Attachments(session).uploaded(draft.attachment_ids), files),
        reply_to=draft.reply_to,
        headers=draft.headers,
    )
    email = OutboundEmail(
        tenant_id=client.tenant_id,
        user_id=client.user_id,
        client_id=client.id,
        run_id=run_id,
        message_id=mail.message_id,
        subject=draft.subject,
        sender=sender.addr,
        source=_signed(session, client, mail, keys),
        priority=draft.priority,
        scheduled_at=draft.scheduled_at,
        expires_at=draft.expires_at,
        saved_to_sent="wanted" if client.saves_sent and client.imap_host else None,
    )
    return OutboundEmails(session).add(email, draft.recipients.all)


def _signed(session: Session, client: EmailClient, mail: OutgoingMail, keys: Callable[[], KeyRing]) -> bytes:
    """The mail's bytes, with a DKIM signature when the tenant has a key for the sender's domain."""
    source = build_message(mail)
    key = DkimKeys(session).of_domain(client.tenant_id, domain_of(mail.sender.addr))
    return source if key is None else DkimKeys(session, keys()).signer(key).signed(source, mail.date)


def _files(found: Sequence[EmailAttachment], directory: Path) -> list[OutgoingAttachment]:
    if sum(file.size for file in found) > LARGEST_ATTACHMENTS:
        raise InvalidInputError(f"The attachments of a mail may have {LARGEST_ATTACHMENTS // 2**20} MiB together.")
    return [OutgoingAttachment(file.filename, file.content_type, _content(directory, file)) for file in found]


def _content(directory: Path, file: EmailAttachment) -> bytes:
    try:
        return (directory / file.tenant_id / str(file.stored_filename)).read_bytes()
    except FileNotFoundError:
        raise NotFoundError("An attachment is not kept any more; upload it again.") from None
