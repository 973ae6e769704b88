"""From what a caller wants to send to a row of the outbox: Message-ID, Date, bytes and signature are fixed here, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from core.clock import now
from core.errors import InvalidInputError, NotFoundError
from core.ids import new_id
from core.settings import KeyRing
from mail.addresses import Address, Recipients, domain_of, parse_address
from mail.mime_build import OutgoingAttachment, OutgoingMail, build_message, new_message_id
from storage.credentials import CredentialBox
from storage.engine import identity_of
from storage.first_tries import Mail
from storage.models import EmailAttachment, EmailClient, OutboundEmail
from storage.repositories.email_clients import EmailClients
from storage.repositories.outbound import Attachments, OutboundEmails
from storage.repositories.suppressions import DkimKeys

MOST_RECIPIENTS = 1000
"""Over to, cc and bcc: a mail is handed over in one piece, and servers take no more (Postfix) or less at a time."""
MOST_ATTACHMENTS = 100
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
    _check_size(draft)
    client = sending_account(session, email_client_id)
    sender = parse_address(client.email, field="the account's address")
    mail = _mail(
        draft, Address(sender.name or client.name, sender.addr), _files(Attachments(session).uploaded(draft.attachment_ids), files)
    )
    email = OutboundEmail(
        tenant_id=client.tenant_id,
        user_id=client.user_id,
        client_id=client.id,
        run_id=run_id,
        source=_signed(session, client.tenant_id, mail, keys),
        saved_to_sent="wanted" if client.saves_sent and client.imap_host else None,
        **_columns(draft, mail),
    )
    return OutboundEmails(session).add(email, draft.recipients.all)


@dataclass(frozen=True, slots=True)
class SystemMail:
    """A mail that nobody's hand wrote: its `kind`, from whom, over which account (None: the system's own server), and whether its
    content lets somebody in."""

    kind: str
    sender: Address
    draft: Draft
    client_id: str | None = None
    is_secret: bool = False


def accept_system_mail(session: Session, mail: SystemMail, *, keys: Callable[[], KeyRing], run_id: str) -> OutboundEmail:
    """A new row of the outbox, for the tenant as a whole. A secret source is encrypted from the first moment.

    Raises InvalidInputError for what cannot be sent.
    """
    tenant_id, email_id = identity_of(session).tenant_id, new_id()
    outgoing = _mail(mail.draft, mail.sender, [])
    source = _signed(session, tenant_id, outgoing, keys)
    email = OutboundEmail(
        id=email_id,
        tenant_id=tenant_id,
        client_id=mail.client_id,
        run_id=run_id,
        kind=mail.kind,
        is_sealed=mail.is_secret,
        source=sealed_source(source, tenant_id, email_id, keys()) if mail.is_secret else source,
        **_columns(mail.draft, outgoing),
    )
    return OutboundEmails(session).add(email, mail.draft.recipients.all)


def _check_size(draft: Draft) -> None:
    recipients = len(draft.recipients.all)
    if not recipients:
        raise InvalidInputError("A mail needs at least one recipient; give one in to, cc or bcc.")
    if recipients > MOST_RECIPIENTS:
        raise InvalidInputError(f"A mail may have at most {MOST_RECIPIENTS:,} recipients in to, cc and bcc together; send several mails.")
    if len(draft.attachment_ids) > MOST_ATTACHMENTS:
        raise InvalidInputError(f"A mail may have at most {MOST_ATTACHMENTS} attachments.")


def sending_account(session: Session, email_client_id: str) -> EmailClient:
    """Raises NotFoundError, and InvalidInputError for one that cannot send."""
    client = EmailClients(session).one(email_client_id)
    if not client.smtp_host:
        raise InvalidInputError("This e-mail client has no SMTP server; set smtp_host.")
    return client


def sealed_source(source: bytes, tenant_id: str, email_id: str, keys: KeyRing) -> bytes:
    """A mail's bytes as they are kept while they are secret."""
    return CredentialBox(keys).seal(source, tenant_id=tenant_id, account_id=email_id, kind="source")


def source_of(email: Mail, keys: Callable[[], KeyRing]) -> bytes:
    """The bytes to send. Raises CredentialError when they cannot be read."""
    if not email.is_sealed:
        return email.source
    return CredentialBox(keys()).open(email.source, tenant_id=email.tenant_id, account_id=email.id, kind="source")


def _mail(draft: Draft, sender: Address, attachments: Sequence[OutgoingAttachment]) -> OutgoingMail:
    return OutgoingMail(
        message_id=new_message_id(domain_of(sender.addr)),
        date=now(),
        sender=sender,
        to=draft.recipients.to,
        cc=draft.recipients.cc,
        bcc=draft.recipients.bcc,
        subject=draft.subject,
        text=draft.text,
        html=draft.html,
        attachments=attachments,
        reply_to=draft.reply_to,
        headers=draft.headers,
    )


def _columns(draft: Draft, mail: OutgoingMail) -> dict[str, Any]:
    return {
        "message_id": mail.message_id,
        "subject": draft.subject,
        "sender": mail.sender.addr,
        "priority": draft.priority,
        "scheduled_at": draft.scheduled_at,
        "expires_at": draft.expires_at,
    }


def _signed(session: Session, tenant_id: str, mail: OutgoingMail, keys: Callable[[], KeyRing]) -> bytes:
    """The mail's bytes, with a DKIM signature when the tenant has a key for the sender's domain."""
    source = build_message(mail)
    key = DkimKeys(session).of_domain(tenant_id, domain_of(mail.sender.addr))
    return source if key is None else DkimKeys(session, keys()).signer(key).signed(source, mail.date)


def _files(found: Sequence[EmailAttachment], directory: Path) -> list[OutgoingAttachment]:
    if sum(file.size for file in found) > LARGEST_ATTACHMENTS:
        raise InvalidInputError(f"The attachments of a mail may have {LARGEST_ATTACHMENTS // 2**20} MiB together.")
    return [OutgoingAttachment(file.filename, file.content_type, _content(directory, file)) for file in found]


def _content(directory: Path, file: EmailAttachment) -> bytes:
    try:
        content = (directory / file.tenant_id / str(file.stored_filename)).read_bytes()
    except FileNotFoundError:
        raise NotFoundError("An attachment is not kept any more; upload it again.") from None
    if len(content) != file.size:
        raise InvalidInputError("An attachment is not what was uploaded any more; upload it again.")
    return content
