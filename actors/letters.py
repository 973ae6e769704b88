"""The mails of the system itself: what a template says, into the outbox once, and from there as any other mail."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypedDict

from periodiq import cron
from sqlalchemy.orm import Session

from actors.carrying import SendResult, carry
from actors.endpoints import NO_SERVER, NoMailServerError
from brokers.queues import Queue
from core.clock import now
from core.ids import new_id
from core.settings import get_settings
from core.tenancy import Identity, acting_as, current_identity
from mail.addresses import unique_recipients
from mail.mime_build import AUTOMATIC
from mail.templates.catalogue import KINDS, Kind
from mail.templates.letters import House, Letter, compose, is_document, letter_values, one_line, system_values
from runs.current import current_run
from runs.registry import SecretText
from runs.secrets import erase_ended
from runs.task import task
from storage.drafts import Draft, SystemMail, accept_system_mail
from storage.engine import session_scope
from storage.repositories.letters import MailTemplates, TenantMail, sender_of
from storage.repositories.outbound import OutboundEmails
from storage.repositories.outbox import Outbox
from storage.repositories.runs import TaskRuns
from storage.repositories.sealed import SealedMails


class CleanUpResult(TypedDict):
    """Mails that were cancelled because their time is over, mails whose content was erased, and runs whose secrets were."""

    status: str
    cancelled_count: int
    erased_count: int
    secrets_erased_count: int


def _server(session: Session, _arguments: dict[str, Any]) -> str | None:
    return TenantMail(session).server(get_settings())


@task(queue=Queue.HIGH_PRIORITY, mail_host=_server)
def send_system_email(to_email: str, subject: str, html_content: str, text_content: str | None = None) -> SendResult:
    """Send a notice of the system; a piece of HTML gets the tenant's frame, a whole document goes as it is."""
    return _send(KINDS["system"], to_email, {"subject": subject, "html": html_content, "text": text_content})


@task(queue=Queue.HIGH_PRIORITY, mail_host=_server)
def send_verification_email(to_email: str, username: str, token: SecretText) -> SendResult:
    """Send the link that proves an address; cancelled once the token is void."""
    return _send(KINDS["verification"], to_email, {"username": username, "token": token})


@task(queue=Queue.HIGH_PRIORITY, mail_host=_server)
def send_password_reset_email(to_email: str, username: str, token: SecretText) -> SendResult:
    """Send the link to a new password; cancelled once the token is void."""
    return _send(KINDS["password_reset"], to_email, {"username": username, "token": token})


@task(queue=Queue.HIGH_PRIORITY, mail_host=_server)
def send_welcome_email(to_email: str, username: str) -> SendResult:
    """Greet a new user."""
    return _send(KINDS["welcome"], to_email, {"username": username})


@task(queue=Queue.PERIODIC, periodic=cron("7 * * * *"))
def cleanup_expired_emails() -> CleanUpResult:
    """Cancel mails whose time is over, and erase secrets that nobody can need any more."""
    with session_scope(system=True) as session:
        cancelled = Outbox(session).cancel_expired()
        erased, secrets = SealedMails(session).erase_settled(), erase_ended(session)
    return CleanUpResult(status="success", cancelled_count=cancelled, erased_count=erased, secrets_erased_count=secrets)


def _send(kind: Kind, to_email: str, given: dict[str, Any]) -> SendResult:
    """As the tenant: such a mail belongs to none of its users, whoever asked for it."""
    with acting_as(Identity(current_identity().tenant_id)):
        return carry(_accepted(kind, to_email, given))


def _accepted(kind: Kind, to_email: str, given: dict[str, Any]) -> str:
    """The id of the run's mail in the outbox: of the one an earlier attempt accepted, or of a new one."""
    run, settings = current_run(), get_settings()
    run_id = run.run_id if run is not None else new_id()
    recipients = unique_recipients([to_email])
    with session_scope() as session:
        accepted = OutboundEmails(session).of_run(run_id)
        if accepted is not None:
            return accepted.id
        house = TenantMail(session).house(settings)
        letter = _letter(session, house, kind, recipients.all[0], given)
        client = TenantMail(session).client()
        if client is None and settings.system_smtp is None:
            raise NoMailServerError(NO_SERVER)
        draft = Draft(
            recipients, letter.subject, letter.text, letter.html, headers=[AUTOMATIC], expires_at=_ends_at(session, house, kind, run_id)
        )
        mail = SystemMail(kind.name, sender_of(house), draft, client.id if client is not None else None, kind.is_secret)
        return accept_system_mail(session, mail, keys=lambda: settings.credential_keys, run_id=run_id).id


def _letter(session: Session, house: House, kind: Kind, to_email: str, given: dict[str, Any]) -> Letter:
    if kind.name != "system":
        template = MailTemplates(session).find(kind.name, house.locale)
        return compose(
            template, letter_values(kind, replace(house, locale=template.locale), to_email, given["username"], given.get("token"))
        )
    template = MailTemplates(session).find(kind.name, house.locale)
    values = system_values(replace(house, locale=template.locale), to_email, given["subject"], given["html"], given["text"])
    if is_document(given["html"]):
        return Letter(one_line(given["subject"]), values["text"], given["html"])
    return compose(template, values)


def _ends_at(session: Session, house: House, kind: Kind, run_id: str) -> datetime | None:
    """When the mail is void: its token counts from the moment that it was handed to us, and nothing outlives the run's own end."""
    minutes = house.minutes_for(kind.name)
    run = TaskRuns(session).find(run_id)
    created_at = run.created_at if run is not None else now()
    ends = [created_at + timedelta(minutes=minutes)] if minutes is not None else []
    if run is not None and run.expires_at is not None:
        ends.append(run.expires_at)
    return min(ends, default=None)
