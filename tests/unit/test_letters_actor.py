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
from storage.models import MailSettings, OutboundEmail, OutboundRecipient, RunSecret, TaskRun, Tenant
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
        use_settings(get_settings().model_copy(update=changes))

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
