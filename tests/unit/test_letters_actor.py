"""The system's own mails: what is sent to whom, once, from whom, over which server; and that a token is gone when its mail is."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from email.message import EmailMessage
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

import actors.carrying
import actors.letters
from core.clock import now
from core.errors import ConflictError, InvalidInputError, PermanentError, Snooze
from core.ids import new_id
from core.settings import get_settings, use_settings
from core.tenancy import SYSTEM, Identity, acting_as
from mail.fake import FakeTransport
from mail.templates.catalogue import KINDS, Source
from runs.current import MASK, set_current_run
from runs.enqueue import enqueue, enqueue_many
from runs.secrets import SecretErasedError
from runs.task import Task
from storage.models import MailSettings, OutboundEmail, OutboundRecipient, RunSecret, TaskRun
from storage.outcomes import Claim
from storage.repositories.letters import MailTemplates, TenantMail
from storage.repositories.outbound import OutboundEmails
from storage.repositories.outbox import Outbox
from tests.unit.actor_world import Actors, acting

__all__ = ["acting"]
TOKEN = "tok-9Zx-secret-5831"
TO = "robin@x.test"


class Desk:
    """acme's system mails, with a server and a place for links."""

    def __init__(self, world: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world, self.record = world, world.record
        self.ann = world.record.people.ann
        self.patch = monkeypatch
        self.sent_over: list[Any] = []
        self.settings(system_smtp_url=SecretStr("smtp+starttls://robot%40acme.test:pw@smtp.test"), link_base_url="https://app.acme.test/")

    def settings(self, **changes: Any) -> None:
        settings = get_settings().model_copy(update=changes)
        settings.__dict__.pop("system_smtp", None)  # it was read already
        use_settings(settings)

    def call(
        self, task: Task[..., Any], *, via: Any = None, run_id: str = "", number: int = 1, who: Identity | None = None, **given: Any
    ) -> Any:
        """One attempt of a run that is recorded as any other."""
        who = who or self.ann
        run_id = run_id or self.enqueue(task, who, **given)
        via = via or FakeTransport()

        def transport(_email: OutboundEmail, endpoint: Any) -> Any:
            self.sent_over.append(endpoint)
            return via

        self.patch.setattr(actors.carrying, "transport_to", transport)
        args = self.run(run_id).args
        set_current_run(
            Claim(run_id, who.tenant_id, who.user_id, task.actor_name, "high_priority", args, number, 6, number, None, None, None)
        )
        try:
            with acting_as(who):
                return task(**args)
        finally:
            set_current_run(None)

    def enqueue(self, task: Task[..., Any], who: Identity | None = None, **given: Any) -> str:
        with self.record.session(who or self.ann) as session:
            return enqueue(session, task, **given)

    def verify(self, **options: Any) -> Any:
        return self.call(actors.letters.send_verification_email, to_email=TO, username="Robin", token=TOKEN, **options)

    def run(self, run_id: str) -> TaskRun:
        return self.record.run(run_id)

    def rows(self) -> list[OutboundEmail]:
        with self.record.session() as session:
            return list(session.scalars(select(OutboundEmail).order_by(OutboundEmail.id)))

    def set(self, **values: Any) -> None:
        with self.record.session() as session:
            session.execute(update(OutboundEmail).values(**values))

    def secrets(self) -> int:
        return self.record.count(RunSecret)

    def tenant(self, **fields: Any) -> None:
        with self.record.session(self.record.people.acme) as session:
            TenantMail(session).put(fields, may_choose_sender=True)

    @contextmanager
    def as_acme(self) -> Iterator[Any]:
        with self.record.session(self.record.people.acme) as session:
            yield session


@pytest.fixture
def desk(acting: Actors, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(acting, monkeypatch)


def message(via: FakeTransport) -> EmailMessage:
    (delivered,) = via.delivered
    found = email.message_from_bytes(delivered.raw, policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    return found


def body(found: EmailMessage, kind: str) -> str:
    part = found.get_body((kind,))
    assert part is not None
    return str(part.get_content())


def test_a_verification_mail_has_the_link_in_text_and_html(desk: Desk) -> None:
    via = FakeTransport()
    result = desk.verify(via=via)
    found = message(via)
    assert (result["status"], result["recipients_sent"], result["message_id"]) == ("success", 1, found["Message-ID"])
    assert (found["To"], found["From"], found["Subject"]) == (TO, "acme <robot@acme.test>", "Verify your e-mail address for acme")
    assert found["Auto-Submitted"] == "auto-generated"
    link = f"https://app.acme.test/verify-email?token={TOKEN}"
    assert link in body(found, "plain")
    assert f'href="{link}"' in body(found, "html")
    assert "24 hours" in body(found, "plain")
    (endpoint,) = desk.sent_over
    assert (endpoint.host, endpoint.port, endpoint.security, endpoint.username) == ("smtp.test", 587, "starttls", "robot@acme.test")


def test_the_token_is_erased_with_the_sent_mail_and_never_stood_in_the_record(desk: Desk) -> None:
    run_id = desk.enqueue(actors.letters.send_verification_email, to_email=TO, username="Robin", token=TOKEN)
    assert desk.run(run_id).args == {"to_email": TO, "username": "Robin", "token": MASK}
    assert desk.secrets() == 1
    seen: list[tuple[bytes, bool]] = []

    class Looking(FakeTransport):
        def send(self, *args: Any) -> Any:
            (row,) = desk.rows()
            seen.append((row.source, row.is_sealed))
            return super().send(*args)

    via = Looking()
    desk.verify(run_id=run_id, via=via)
    ((stored, was_sealed),) = seen
    assert was_sealed
    assert TOKEN.encode() in message(via).as_bytes().replace(b"=\n", b"")
    assert TOKEN.encode() not in stored
    (row,) = desk.rows()
    assert (row.status, row.source, row.is_sealed, row.erased_at is not None) == ("sent", b"", False, True)
    assert TOKEN not in row.subject


def test_a_second_attempt_sends_the_same_mail_and_a_third_none(desk: Desk) -> None:
    run_id = desk.enqueue(actors.letters.send_verification_email, to_email=TO, username="Robin", token=TOKEN)
    with pytest.raises(Snooze):
        desk.verify(run_id=run_id, via=FakeTransport(defers={TO}))
    (row,) = desk.rows()
    assert (row.status, row.is_sealed) == ("pending", True)
    with desk.record.session() as session:
        session.execute(update(OutboundRecipient).values(next_retry_at=None))
    via = FakeTransport()
    desk.verify(run_id=run_id, via=via, number=2)
    assert message(via)["Message-ID"] == row.message_id
    assert desk.verify(run_id=run_id, via=FakeTransport(), number=3)["recipients_sent"] == 1
    assert len(desk.rows()) == 1


def test_a_mail_that_is_too_late_is_cancelled_and_its_token_erased(desk: Desk) -> None:
    run_id = desk.enqueue(actors.letters.send_password_reset_email, to_email=TO, username="Robin", token=TOKEN)
    desk.record.set_run(run_id, created_at=now() - timedelta(minutes=61))
    via = FakeTransport()
    result = desk.call(actors.letters.send_password_reset_email, run_id=run_id, via=via)
    (row,) = desk.rows()
    assert (result["status"], via.delivered) == ("cancelled", [])
    assert (row.status, row.source, row.last_error) == ("cancelled", b"", "It could not be sent before it expired.")


def test_a_mail_ends_with_its_run_if_that_ends_sooner(desk: Desk) -> None:
    ends = now() + timedelta(minutes=5)
    run_id = desk.enqueue(actors.letters.send_verification_email, to_email=TO, username="Robin", token=TOKEN)
    desk.record.set_run(run_id, expires_at=ends)
    desk.verify(run_id=run_id)
    assert desk.rows()[0].expires_at == ends


def test_how_long_a_token_is_good_is_the_tenants_to_say(desk: Desk) -> None:
    desk.tenant(verification_expires_hours=2, locale="de_AT", app_name="Brieftaube", sender_name="Die Taube")
    via = FakeTransport()
    desk.verify(via=via)
    found = message(via)
    assert "Der Link gilt 2 Stunden." in body(found, "plain")
    assert (found["Subject"], found["From"]) == ("Bestätigen Sie Ihre E-Mail-Adresse für Brieftaube", "Die Taube <robot@acme.test>")
    (row,) = desk.rows()
    assert row.expires_at is not None
    assert timedelta(minutes=119) < row.expires_at - row.created_at <= timedelta(hours=2)


def test_a_welcome_mail_has_no_secret_and_no_end(desk: Desk) -> None:
    via = FakeTransport()
    assert desk.call(actors.letters.send_welcome_email, to_email=TO, username="Robin", via=via)["status"] == "success"
    (row,) = desk.rows()
    assert (row.kind, row.is_sealed, row.erased_at, row.expires_at) == ("welcome", False, None, None)
    assert row.to_addresses == TO
    assert "https://app.acme.test" in body(message(via), "html")


def test_a_system_mail_is_framed_or_goes_as_it_is(desk: Desk) -> None:
    framed, whole = FakeTransport(), FakeTransport()
    desk.call(actors.letters.send_system_email, to_email=TO, subject="News", html_content="<p>We move</p>", via=framed)
    document = "<!doctype html><html><body><p>We move</p></body></html>"
    desk.call(actors.letters.send_system_email, to_email=TO, subject="News", html_content=document, text_content="We move!", via=whole)
    assert (body(message(framed), "plain").strip(), "account at acme" in body(message(framed), "html")) == ("We move", True)
    assert (body(message(whole), "plain").strip(), body(message(whole), "html").strip()) == ("We move!", document)


def test_a_tenants_own_words_and_account_are_used(desk: Desk) -> None:
    client = desk.world.account(
        desk.ann, smtp_host="smtp.acme.test", smtp_username="u", smtp_password="p", saves_sent=True, imap_host="i.test"
    )
    desk.tenant(client_id=client, locale="en")
    with desk.as_acme() as session:
        MailTemplates(session).put(KINDS["verification"], "en", Source("Code for {{ username }}", "{{ token }}", ""))
    via = FakeTransport()
    desk.verify(via=via, who=desk.record.people.bob)
    found = message(via)
    assert (found["Subject"], found["From"], found.get_content_type()) == ("Code for Robin", "acme <ann@acme.test>", "text/plain")
    assert desk.sent_over[0].host == "smtp.acme.test"
    (row,) = desk.rows()
    assert (row.client_id, row.user_id, row.saved_to_sent) == (client, None, None)


def test_what_is_missing_is_one_sentence_that_names_the_setting(desk: Desk) -> None:
    desk.settings(link_base_url=None)
    with pytest.raises(PermanentError, match=r"Template verification \(en\), text: it needs the variable link, .* LINK_BASE_URL\."):
        desk.verify()
    desk.settings(link_base_url="https://x.test", system_smtp_url=None)
    with pytest.raises(PermanentError, match="set SYSTEM_SMTP_URL, or an account of the tenant"):
        desk.verify()
    desk.settings(system_smtp_url=SecretStr("smtp://smtp.test"))
    with pytest.raises(PermanentError, match="set SYSTEM_SENDER, or the tenant's own"):
        desk.verify()
    desk.settings(system_sender="Mailroom <no-reply@acme.test>")
    with pytest.raises(InvalidInputError, match=r"to\[0\] is not a valid e-mail address"):
        desk.call(actors.letters.send_welcome_email, to_email="robin", username="Robin")
    with pytest.raises(InvalidInputError, match="line breaks"):
        desk.call(actors.letters.send_welcome_email, to_email="r@x.test\r\nBcc: eve@x.test", username="Robin")
    desk.tenant(client_id=None)
    with desk.record.session() as session:
        session.execute(update(MailSettings).values(client_id=new_id()))
    with pytest.raises(PermanentError, match="does not exist any more; choose another"):
        desk.verify()
    assert desk.rows() == []


def test_a_mail_whose_server_was_taken_away_has_failed_and_says_so(desk: Desk) -> None:
    run_id = desk.enqueue(actors.letters.send_verification_email, to_email=TO, username="Robin", token=TOKEN)
    with pytest.raises(Snooze):
        desk.verify(run_id=run_id, via=FakeTransport(defers={TO}))
    with desk.record.session() as session:
        session.execute(update(OutboundRecipient).values(next_retry_at=None))
    desk.settings(system_smtp_url=None)
    with pytest.raises(PermanentError, match="SYSTEM_SMTP_URL"):
        desk.verify(run_id=run_id, number=2)
    (row,) = desk.rows()
    assert (row.status, "SYSTEM_SMTP_URL" in str(row.last_error), row.is_sealed) == ("failed", True, True)


def test_a_failed_secret_mail_can_be_tried_again_until_it_expires(desk: Desk) -> None:
    with pytest.raises(PermanentError):
        desk.verify(via=FakeTransport(refuses={TO}))
    (row,) = desk.rows()
    assert (row.status, row.is_sealed) == ("failed", True)
    with desk.as_acme() as session:
        reopened = OutboundEmails(session).reopen(row.id)
        assert (reopened.status, reopened.expires_at) == ("pending", row.expires_at)
    desk.set(status="failed", expires_at=now() - timedelta(seconds=1))
    with acting_as(SYSTEM):
        assert actors.letters.cleanup_expired_emails()["erased_count"] == 1
    with desk.as_acme() as session, pytest.raises(ConflictError, match="has been erased"):
        OutboundEmails(session).reopen(row.id)


def test_the_clean_up_cancels_what_is_too_late_and_erases_what_nobody_needs(desk: Desk) -> None:
    run_id = desk.enqueue(actors.letters.send_verification_email, to_email=TO, username="Robin", token=TOKEN)
    with pytest.raises(Snooze):
        desk.verify(run_id=run_id, via=FakeTransport(defers={TO}))
    with acting_as(SYSTEM):
        assert actors.letters.cleanup_expired_emails()["cancelled_count"] == 0
    desk.set(expires_at=now() - timedelta(seconds=1))
    desk.record.set_run(run_id, state="REVOKED")
    with acting_as(SYSTEM):
        result = actors.letters.cleanup_expired_emails()
    assert result == {"status": "success", "cancelled_count": 1, "erased_count": 1, "secrets_erased_count": 1}
    (row,) = desk.rows()
    assert (row.status, row.source, desk.secrets()) == ("cancelled", b"", 0)


def test_a_cancelled_secret_mail_is_erased_at_once_and_never_comes_back(desk: Desk) -> None:
    with pytest.raises(Snooze):
        desk.verify(via=FakeTransport(defers={TO}))
    (row,) = desk.rows()
    with desk.as_acme() as session:
        Outbox(session).cancel(row.id)
    (row,) = desk.rows()
    assert (row.source, row.erased_at is not None, row.last_error) == (b"", True, "It was cancelled.")
    desk.set(status="pending")  # by hand
    with pytest.raises(PermanentError, match="has been erased"):
        desk.verify(run_id=str(row.run_id), number=2)
    (row,) = desk.rows()
    assert (row.status, row.last_error) == ("failed", "Its content was secret and has been erased; ask for a new mail.")


def test_a_sealed_source_copied_to_another_mail_does_not_open(desk: Desk) -> None:
    for _ in range(2):
        with pytest.raises(Snooze):
            desk.verify(via=FakeTransport(defers={TO}))
    first, second = desk.rows()
    with desk.record.session() as session:
        session.execute(update(OutboundEmail).where(OutboundEmail.id == second.id).values(source=first.source))
        session.execute(update(OutboundRecipient).values(next_retry_at=None))
    with pytest.raises(PermanentError, match="damaged"):
        desk.verify(run_id=str(second.run_id), number=2)


def test_a_run_whose_secret_is_gone_says_what_to_do(desk: Desk) -> None:
    run_id = desk.enqueue(actors.letters.send_verification_email, to_email=TO, username="Robin", token=TOKEN)
    with desk.record.session() as session:
        session.query(RunSecret).delete()
    with pytest.raises(SecretErasedError, match="The secret argument token was erased"):
        desk.verify(run_id=run_id)


def test_many_runs_at_once_keep_their_secrets_apart(desk: Desk) -> None:
    given = [{"to_email": TO, "username": "Robin", "token": f"{TOKEN}-{number}"} for number in range(3)]
    with desk.record.session(desk.ann) as session:
        run_ids = enqueue_many(session, actors.letters.send_verification_email, given)
    for number, run_id in enumerate(run_ids):
        via = FakeTransport()
        desk.verify(run_id=run_id, via=via)
        assert f"{TOKEN}-{number}" in body(message(via), "plain")


def test_called_as_a_function_it_takes_the_token_as_given(desk: Desk) -> None:
    via = FakeTransport()
    desk.patch.setattr(actors.carrying, "transport_to", lambda *_: via)
    with acting_as(desk.ann):
        actors.letters.send_verification_email(TO, "Robin", TOKEN)
    assert TOKEN in body(message(via), "plain")


def test_the_limits_of_the_server_hold_for_these_mails_too(desk: Desk) -> None:
    run_id = desk.enqueue(actors.letters.send_welcome_email, to_email=TO, username="Robin")
    assert desk.run(run_id).mail_host == "smtp.test"
    client = desk.world.account(desk.ann, smtp_host="SMTP.acme.test")
    desk.tenant(client_id=client)
    assert desk.run(desk.enqueue(actors.letters.send_welcome_email, to_email=TO, username="Robin")).mail_host == "smtp.acme.test"
