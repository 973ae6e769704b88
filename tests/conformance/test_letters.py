"""A verification mail over real brokers, databases and SMTP, and where its token is never found; the outbox set right by hand in SQL; the
walls around what letters are made of."""

from __future__ import annotations

import base64
import email
import email.policy
import io
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import select, text
from sqlalchemy.orm import Session

import actors.carrying
import actors.letters
import actors.outbound
import actors.send
from api.app import create_app
from brokers.message import MessageEncoder
from brokers.queues import Queue
from core.clock import now
from core.errors import MailroomError, NotFoundError, PermanentError, TenantError
from core.ids import new_id
from core.logging import configure_logging
from core.settings import get_settings, use_settings
from core.tenancy import SYSTEM, Identity, acting_as
from mail.addresses import Address, unique_recipients
from mail.fake import FakeTransport
from mail.templates.catalogue import KINDS, Source
from runs.task import Task, task
from storage.drafts import Draft, SystemMail, accept_system_mail
from storage.models import Base, EmailClient, MailSettings, MailTemplate, OutboundEmail, OutboundRecipient, RunSecret, TaskRun
from storage.repositories.letters import MailTemplates, TenantMail
from storage.repositories.outbound import OutboundEmails
from storage.repositories.outbox import Outbox
from storage.repositories.run_secrets import RunSecrets
from storage.repositories.sealed import SealedMails
from storage.repositories.tenants import ApiKeys
from tests.conformance.conftest import World
from tests.servers.smtp import SmtpSink
from tests.toys import Record, wait_until
from tests.unit.actor_world import Actors

TOKEN = "canary/token+8123"
SPELLINGS = [TOKEN, "canary%2Ftoken%2B8123", "canary=2Ftoken", base64.b64encode(TOKEN.encode()).decode().rstrip("=")[:20]]
GIVEN = {"to_email": "robin@x.test", "username": "Robin", "token": TOKEN}
two_brokers = pytest.mark.parametrize("wire", ["rabbitmq", "redis"], indirect=True)


def dump(record: Record) -> str:
    """Every table as text, bytes too."""
    with record.session() as session:
        rows = [[tuple(row) for row in session.execute(table.select())] for table in Base.metadata.sorted_tables]
    return repr([[tuple(bytes(value) if isinstance(value, memoryview) else value for value in row) for row in table] for table in rows])


def shows(text_: str) -> list[str]:
    return [spelling for spelling in SPELLINGS if spelling in text_]


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What would have been written to stderr, at the most talkative."""
    lines = io.StringIO()
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    monkeypatch.setattr(sys, "stderr", lines)
    configure_logging("DEBUG", "json")
    servers_own = logging.getLogger("mail.log")  # aiosmtpd's: the receiving server is in this process, too
    servers_own.setLevel("WARNING")
    yield lines
    servers_own.setLevel("NOTSET")
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every message on its way to a broker."""
    bodies: list[bytes] = []
    pack = MessageEncoder.pack

    def remembered(encoder: MessageEncoder, envelope: Any) -> bytes:
        bodies.append(pack(encoder, envelope))
        return bodies[-1]

    monkeypatch.setattr(MessageEncoder, "pack", remembered)
    return bodies


def settings_for(sink: SmtpSink) -> None:
    changes = {
        "system_smtp_url": SecretStr(sink.url),
        "system_sender": "Acme <noreply@acme.test>",
        "link_base_url": "https://app.acme.test",
    }
    use_settings(get_settings().model_copy(update=changes))


@two_brokers
def test_a_verification_mail_arrives_and_its_token_is_nowhere_else(
    world: World, smtp_sink: SmtpSink, wired: list[bytes], logged: io.StringIO
) -> None:
    settings_for(smtp_sink)
    verify: Task[..., Any] = task(queue=Queue.HIGH_PRIORITY)(actors.letters.send_verification_email.fn)
    with world.session() as session:
        keys = [
            ApiKeys(session).create(world.people.acme.tenant_id, "acme's"),
            ApiKeys(session).create(SYSTEM.tenant_id, "a", is_admin=True),
        ]
    with TestClient(create_app(get_settings(), world.engine)) as http:
        answer = http.post("/api/tasks", json={"task": verify.actor_name, "args": GIVEN}, headers={"Authorization": f"Bearer {keys[0]}"})
        assert answer.status_code == 202, answer.text
        run_id = answer.json()["taskId"]
        assert shows(dump(world)) == []
        smtp_sink.refuse["robin@x.test"] = "451 4.7.1 Greylisted, try again in 1 seconds"
        world.start_worker()
        wait_until(lambda: smtp_refused(world), 30)
        assert shows(dump(world)) == []
        smtp_sink.refuse.clear()
        (received,) = smtp_sink.wait_for(1, 30)
        assert world.wait_for(run_id, timeout=30).state == "SUCCESS"
        message = email.message_from_bytes(received.raw, policy=email.policy.default)
        for kind in ("plain", "html"):
            part = message.get_body((kind,))
            assert part is not None
            assert "https://app.acme.test/verify-email?token=canary%2Ftoken%2B8123" in part.get_content()
        wait_until(lambda: world.count(RunSecret) == 0, 30)
        with world.session() as session:
            row = session.scalars(select(OutboundEmail)).one()
            assert (row.status, bytes(row.source), row.is_sealed, row.run_id) == ("sent", b"", False, run_id)
        assert shows(dump(world)) == []
        for key in keys:
            for path in (
                f"/api/tasks/{run_id}",
                "/api/tasks",
                "/api/outbound-emails",
                f"/api/outbound-emails/{row.id}",
                "/api/dead-letters",
            ):
                seen = http.get(path, headers={"Authorization": f"Bearer {key}"})
                assert (seen.status_code, shows(seen.text)) == (200, []), path
    world.stop_worker()
    assert wired
    assert shows(b"".join(wired).decode()) == []
    assert "run_succeeded" in logged.getvalue()
    assert shows(logged.getvalue()) == []


def smtp_refused(world: World) -> bool:
    with world.session() as session:
        return session.scalars(select(OutboundEmail.attempts)).first() == 1


# -- the outbox, set right by hand -------------------------------------------------------------------------------------------------


class Hand:
    """Somebody with a database prompt."""

    def __init__(self, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
        self.record = record
        self.world = Actors(record, monkeypatch)
        self.patch = monkeypatch
        self.client = self.world.account(record.people.ann)

    def failed(self, *to: str, via: FakeTransport | None = None) -> str:
        ann = self.record.people.ann
        with self.world.attempt(ann), acting_as(ann):
            self.patch.setattr(actors.carrying, "transport_to", lambda *_: via or FakeTransport(refuses=set(to)))
            with pytest.raises(MailroomError):
                actors.send.send_email(self.client, list(to), subject="Hi", body_text="Hello")
        return str(self.rows("SELECT id FROM outbound_emails ORDER BY created_at DESC, id DESC")[0][0])

    def rows(self, statement: str, **values: Any) -> list[Any]:
        with self.record.session() as session:
            result = session.execute(text(statement), values)
            if not statement.startswith("SELECT"):
                return []
            return [tuple(str(value) if value is not None else None for value in row) for row in result]

    def process(self) -> Any:
        with acting_as(SYSTEM):
            return actors.outbound.process_pending_emails()

    def carry(self, email_id: str, via: FakeTransport) -> Any:
        self.patch.setattr(actors.carrying, "transport_to", lambda *_: via)
        with self.world.attempt(self.record.people.ann):
            return actors.outbound.send_outbound_email(email_id)

    def status(self, email_id: str) -> str:
        return str(self.rows("SELECT status FROM outbound_emails WHERE id = :id", id=email_id)[0][0])


@pytest.fixture
def hand(record: Record, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hand]:
    made = Hand(record, monkeypatch)
    yield made
    made.world.broker.close()


def test_the_sql_an_operator_knows_says_who_and_why(hand: Hand) -> None:
    hand.failed("gone@x.test", "away@x.test")
    ((to, why, attempts),) = hand.rows("SELECT to_addresses, last_error, attempts FROM outbound_emails WHERE status = 'failed'")
    assert (to, attempts) == ("gone@x.test, away@x.test", "1")
    assert "refused" in str(why)


def test_a_failed_mail_set_to_pending_by_hand_is_sent(hand: Hand) -> None:
    email_id = hand.failed("gone@x.test", "away@x.test")
    hand.rows("UPDATE outbound_emails SET status = 'pending', attempts = max_attempts WHERE id = :id", id=email_id)
    (run_id,) = hand.process()["task_ids"]
    run = hand.record.run(run_id)
    assert (run.task, run.args, run.user_id) == ("send_outbound_email", {"email_id": email_id}, hand.record.people.ann.user_id)
    assert hand.process()["task_ids"] == []
    via = FakeTransport()
    assert hand.carry(email_id, via)["recipients_sent"] == 2
    assert sorted(via.delivered_to) == ["away@x.test", "gone@x.test"]
    assert hand.status(email_id) == "sent"


def test_a_mail_set_to_pending_by_hand_gets_its_attempts_and_waits_again(hand: Hand) -> None:
    email_id = hand.failed("gone@x.test")
    hand.rows("UPDATE outbound_emails SET status = 'pending', attempts = 10 WHERE id = :id", id=email_id)
    with pytest.raises(MailroomError):
        hand.carry(email_id, FakeTransport(defers={"gone@x.test"}))
    ((status, attempts, most, waits),) = hand.rows(
        "SELECT status, attempts, max_attempts, next_retry_at FROM outbound_emails WHERE id = :id", id=email_id
    )
    assert (status, attempts, most) == ("pending", "11", "20")
    assert waits is not None
    assert hand.process()["task_ids"] == []  # not before its time


def test_who_has_a_mail_does_not_get_it_again_by_hand(hand: Hand) -> None:
    email_id = hand.failed("gone@x.test")
    with hand.record.session() as session:
        row = session.get_one(OutboundEmail, email_id)
        session.add(OutboundRecipient(tenant_id=row.tenant_id, email_id=email_id, address="has@x.test", status="sent"))
    hand.rows("UPDATE outbound_emails SET status = 'pending' WHERE id = :id", id=email_id)
    via = FakeTransport()
    hand.carry(email_id, via)
    assert via.delivered_to == ["gone@x.test"]


def test_a_cancelled_mail_set_to_pending_by_hand_is_not_cancelled_again(hand: Hand) -> None:
    email_id = hand.failed("gone@x.test")
    hand.rows("UPDATE outbound_emails SET status = 'pending' WHERE id = :id", id=email_id)
    (run_id,) = hand.process()["task_ids"]
    with hand.record.session() as session:
        session.get_one(OutboundEmail, email_id).run_id = run_id
        session.get_one(TaskRun, run_id).state = "REVOKED"
    assert hand.process()["cancelled_count"] == 1
    assert hand.rows("SELECT last_error FROM outbound_emails") == [("Its run was revoked.",)]
    hand.rows("UPDATE outbound_emails SET status = 'pending' WHERE id = :id", id=email_id)
    result = hand.process()
    assert (result["cancelled_count"], len(result["task_ids"])) == (0, 1)


def test_a_row_without_recipients_says_so(hand: Hand) -> None:
    email_id = hand.failed("gone@x.test")
    hand.rows("DELETE FROM outbound_recipients")
    hand.rows("UPDATE outbound_emails SET status = 'pending' WHERE id = :id", id=email_id)
    with pytest.raises(PermanentError, match="no recipient"):
        hand.carry(email_id, FakeTransport())
    assert hand.status(email_id) == "failed"


# -- walls -----------------------------------------------------------------------------------------------------------------------------


class Anns:
    """acme's template, settings, account, secret and sealed mail."""

    def __init__(self, record: Record) -> None:
        acme, settings = record.people.acme, get_settings()
        self.tenant_id, self.run_id = acme.tenant_id, new_id()
        with record.session(record.people.ann) as session:
            client = EmailClient(
                tenant_id=acme.tenant_id, user_id=record.people.ann.user_id, name="Ann", email="ann@acme.test", smtp_host="s.test"
            )
            session.add(client)
            session.flush()
            self.client = client.id
        with record.session(acme) as session:
            MailTemplates(session).put(KINDS["welcome"], "en", Source("Acme only", "acme's", ""))
            TenantMail(session).put({"client_id": self.client, "app_name": "Acme only"}, may_choose_sender=False)
            RunSecrets(session, settings.credential_keys).keep(acme.tenant_id, {self.run_id: {"token": "acme only"}})
            draft = Draft(unique_recipients(["bob@x.test"]), "Acme only", "text", expires_at=now() + timedelta(hours=1))
            mail = SystemMail("verification", Address("", "a@acme.test"), draft, is_secret=True)
            self.mail = accept_system_mail(session, mail, keys=lambda: settings.credential_keys, run_id=self.run_id).id


Attempt = Callable[[Session, Anns], object]
SEES: dict[str, Attempt] = {
    "templates": lambda s, _: list(MailTemplates(s).all()),
    "find": lambda s, _: MailTemplates(s).find("welcome", "en").is_own,
    "row": lambda s, _: TenantMail(s).row(),
    "house": lambda s, _: "Acme" in TenantMail(s).house(get_settings()).app_name,
    "server": lambda s, _: TenantMail(s).server(get_settings()),
    "client": lambda s, _: TenantMail(s).client(),
    "of_run": lambda s, a: RunSecrets(s, get_settings().credential_keys).of_run(a.tenant_id, a.run_id),
    "is_kept": lambda s, a: RunSecrets(s).is_kept(a.tenant_id, a.run_id),
}
CHANGES: dict[str, Attempt] = {
    "erase": lambda s, a: RunSecrets(s).erase(a.tenant_id, [a.run_id]),
    "erase_ended": lambda s, _: RunSecrets(s).erase_ended(),
    "erase_settled": lambda s, a: SealedMails(s).erase_settled(a.mail),
    "take_up": lambda s, a: Outbox(s).take_up(s.get(OutboundEmail, a.mail) or OutboundEmail(id=a.mail)),
    "cannot_be_sent": lambda s, a: OutboundEmails(s).cannot_be_sent(OutboundEmail(id=a.mail)),
}


def strangers(record: Record) -> list[Identity]:
    return [record.people.globex, record.people.gus]


def kept(record: Record) -> list[Any]:
    with record.session() as session:
        tables = (MailTemplate, MailSettings, RunSecret, OutboundEmail, OutboundRecipient)
        return [tuple(row) for model in tables for row in session.execute(select(model.__table__))]


def test_nothing_that_letters_are_made_of_is_seen_or_changed_by_others(record: Record) -> None:
    anns = Anns(record)
    with record.session() as session:
        session.get_one(OutboundEmail, anns.mail).status = "cancelled"
    before = kept(record)
    for name, attempt in SEES.items():
        with record.session(record.people.acme) as session:
            assert attempt(session, anns), name
        for stranger in strangers(record):
            with record.session(stranger) as session:
                assert not attempt(session, anns), (name, stranger)
    for name, attempt in CHANGES.items():
        for stranger in strangers(record):
            with record.session(stranger) as session:
                attempt(session, anns)
            assert kept(record) == before, name
    for stranger in strangers(record):
        with record.session(stranger) as session, pytest.raises(NotFoundError):
            MailTemplates(session).remove("welcome", "en")
        with record.session(stranger) as session, pytest.raises(NotFoundError):
            TenantMail(session).put({"client_id": anns.client}, may_choose_sender=True)
    with record.session() as session:  # the system belongs to no tenant, and so sees what ships
        assert (list(MailTemplates(session).all()), TenantMail(session).row()) == ([], None)
        for put in (
            lambda: MailTemplates(session).put(KINDS["welcome"], "en", Source("x", "x", "")),
            lambda: TenantMail(session).put({}, may_choose_sender=True),
        ):
            with pytest.raises(TenantError):
                put()
    assert kept(record) == before
    with record.session(record.people.acme) as session:
        assert SealedMails(session).erase_settled() == 1
        assert RunSecrets(session).erase_ended() == 1
        MailTemplates(session).remove("welcome", "en")


def test_a_sender_over_the_systems_server_needs_somebody_who_may(record: Record) -> None:
    with record.session(record.people.acme) as session:
        mail = TenantMail(session)
        with pytest.raises(TenantError, match="only an admin key may set senderAddress"):
            mail.put({"sender_address": "boss@other.test"}, may_choose_sender=False)
        mail.put({"sender_address": "boss@acme.test"}, may_choose_sender=True)
        assert mail.put({"sender_address": "boss@acme.test", "app_name": "A"}, may_choose_sender=False).app_name == "A"
        with pytest.raises(TenantError):
            mail.put({"sender_address": "boss@other.test"}, may_choose_sender=False)
