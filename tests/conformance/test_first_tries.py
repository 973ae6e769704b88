"""Mails that share their transactions: what is found there, what is not, and that each is its owner's alone."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

import actors.carrying
import storage.postgres
from actors.together import Together, together
from core.clock import now
from core.errors import UnavailableError
from core.settings import get_settings
from core.tenancy import Identity
from mail.addresses import unique_recipients
from mail.fake_transport import FakeTransport
from storage.drafts import Draft, accept
from storage.first_tries import Accepted, Answer, Asked, FirstTries, Found, Look, Mark
from storage.models import EmailClient, OutboundEmail, OutboundRecipient, Webhook
from storage.repositories.email_clients import EmailClients
from storage.repositories.outbound import OutboundEmails
from storage.repositories.suppressions import Suppressions
from tests.toys import Record
from tests.unit.actor_world import Actors

pytestmark = pytest.mark.parametrize("database", ["postgres"], indirect=True)  # elsewhere each mail has transactions of its own


@dataclass
class Post:
    """Ann's account, and the statement."""

    record: Record
    client_id: str
    tries: FirstTries

    def mail(self, *to: str) -> str:
        with self.record.session(self.record.people.ann) as session:
            draft = Draft(unique_recipients(list(to or ("bob@example.test",))), "Hi", "Hello")
            return accept(session, self.client_id, draft, files=Path("/nowhere"), keys=lambda: get_settings().credential_keys).id

    def one(self, asked: Asked) -> Answer:
        return self.tries.turn([asked])[0]

    def row(self, email_id: str) -> OutboundEmail:
        with self.record.session() as session:
            return session.get_one(OutboundEmail, email_id)

    def recipients(self, email_id: str) -> list[tuple[str, str, int | None, str | None]]:
        with self.record.session() as session:
            rows = session.scalars(
                select(OutboundRecipient).where(OutboundRecipient.email_id == email_id).order_by(OutboundRecipient.address)
            )
            return [(row.address, row.status, row.reply_code, row.enhanced_code) for row in rows]

    def change(self, kind: type[Any], row_id: str, **values: Any) -> None:
        with self.record.session() as session:
            row = session.get_one(kind, row_id)
            for name, value in values.items():
                setattr(row, name, value)


@pytest.fixture
def post(record: Record) -> Iterator[Post]:
    ann = record.people.ann
    with record.session(ann) as session:
        fields = {"name": "Ann", "email": "ann@acme.test", "smtp_host": "127.0.0.1", "smtp_security": "plain", "smtp_password": "hunter2"}
        client = EmailClients(session, get_settings().credential_keys).create(str(ann.user_id), {**fields, "smtp_username": "ann"})
    tries = FirstTries(record.engine)
    yield Post(record, client.id, tries)
    tries.close()


def accepted(who: Identity, email_id: str, *addresses: str) -> Accepted:
    return Accepted(who, email_id, addresses or ("bob@example.test",), 250, "2.0.0")


def test_a_mail_is_read_marked_and_settled(post: Post) -> None:
    ann, email_id = post.record.people.ann, post.mail("bob@example.test", "eve@example.test")
    found = post.one(Look(ann, email_id))
    assert isinstance(found, Found)
    row = post.row(email_id)
    assert (found.message_id, found.sender, found.source) == (row.message_id, "ann@acme.test", row.source)
    assert sorted(found.recipients) == ["bob@example.test", "eve@example.test"]
    assert (found.smtp_host, found.smtp_port, found.smtp_username, found.client_id) == ("127.0.0.1", None, "ann", post.client_id)
    assert found.smtp_password is not None
    assert b"hunter2" not in found.smtp_password
    assert [post.one(Mark(ann, email_id)), post.one(Mark(ann, email_id))] == [True, None]
    assert (post.row(email_id).status, post.row(email_id).attempts) == ("sending", 1)
    assert post.one(accepted(ann, email_id)) is None  # eve waits, too
    assert post.recipients(email_id) == [("bob@example.test", "pending", None, None), ("eve@example.test", "pending", None, None)]
    sent_at = post.one(accepted(ann, email_id, "bob@example.test", "eve@example.test"))
    assert isinstance(sent_at, datetime)
    assert (post.row(email_id).status, post.row(email_id).sent_at) == ("sent", sent_at)
    assert {(status, code, enhanced) for _, status, code, enhanced in post.recipients(email_id)} == {("sent", 250, "2.0.0")}
    assert post.one(accepted(ann, email_id)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "sending"}, {"status": "cancelled"}, {"attempts": 1}, {"scheduled_at": now() + timedelta(hours=1)},
        {"expires_at": now() - timedelta(seconds=1)}, {"saved_to_sent": "wanted"}, {"is_sealed": True}, {"client_id": None},
        {"next_retry_at": now()},
    ],
    ids=lambda changes: " ".join(map(str, changes)),
)  # fmt: skip
def test_what_is_special_goes_the_long_way(post: Post, changes: dict[str, Any]) -> None:
    email_id = post.mail()
    post.change(OutboundEmail, email_id, **changes)
    assert post.one(Look(post.record.people.ann, email_id)) is None


def test_so_does_a_mail_of_a_special_account_or_to_somebody_special(post: Post) -> None:
    ann, email_id = post.record.people.ann, post.mail("bob@example.test", "EVE@example.test")
    assert isinstance(post.one(Look(ann, email_id)), Found)
    post.change(EmailClient, post.client_id, oauth_token_url="https://id.test/token")
    assert post.one(Look(ann, email_id)) is None
    post.change(EmailClient, post.client_id, oauth_token_url=None)
    with post.record.session(ann) as session:
        Suppressions(session).add(ann.tenant_id, "eve@example.test", "manual")
    assert post.one(Look(ann, email_id)) is None
    assert isinstance(post.one(Look(ann, post.mail("bob@example.test"))), Found)
    assert post.one(Look(ann, post.mail("böb@example.test"))) is None  # the database has its own idea of small letters


def test_so_does_one_that_others_would_wait_for(post: Post) -> None:
    ann = post.record.people.ann
    crowd, large = post.mail(*(f"p{number}@example.test" for number in range(101))), post.mail()
    post.change(OutboundEmail, large, source=b"x" * (2**20 + 1))
    assert post.tries.turn([Look(ann, crowd), Look(ann, large)]) == [None, None]


def test_a_mail_costs_the_same_however_many_wait_or_are_suppressed(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, email_id = post.record.people.ann, post.mail()
    post.tries.turn([Look(ann, email_id)])  # made while hardly anything waits, and kept for a while
    columns = "tenant_id, client_id, message_id, subject, sender, source, status, priority, attempts, max_attempts, created_at"
    with post.record.session() as session:
        many = f"SELECT gen_random_uuid(), {columns} FROM outbound_emails, generate_series(1, 3000) WHERE outbound_emails.id = :id"
        session.execute(text(f"INSERT INTO outbound_emails (id, {columns}) {many}"), {"id": email_id})
    monkeypatch.setattr(storage.postgres, "PLAN_SECONDS", 0)
    post.tries.turn([Look(ann, email_id)])
    with post.tries._prepared.cursor() as cursor:
        cursor.execute("EXPLAIN EXECUTE mailroom_first_try_mark_accepted_look ('[]', '[]', '[]')")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert set(re.findall(r"using (\w+) on outbound_emails", plan)) == {"pk_outbound_emails"}
    assert len(re.findall(r"Index Cond: \(id = asked(_\d+)?\.id\)", plan)) == 3
    assert "Index Cond: ((tenant_id = mail.tenant_id) AND (address = lowered.address))" in plan
    assert "Index Cond: (id = mail.client_id)" in plan


def test_an_expired_or_cancelled_mail_is_not_marked(post: Post) -> None:
    ann, late, cancelled = post.record.people.ann, post.mail(), post.mail()
    post.change(OutboundEmail, late, expires_at=now() - timedelta(seconds=1))
    post.change(OutboundEmail, cancelled, status="cancelled")
    assert post.tries.turn([Mark(ann, late), Mark(ann, cancelled)]) == [None, None]
    assert post.row(late).attempts == 0


def test_nobody_else_reads_marks_or_settles_it(post: Post) -> None:
    people = post.record.people
    email_id = post.mail()
    for stranger in (people.globex, people.gus, people.bob):
        assert post.tries.turn([Look(stranger, email_id)]) == [None]
        assert post.tries.turn([Mark(stranger, email_id)]) == [None]
    assert post.row(email_id).status == "pending"
    assert isinstance(post.one(Look(people.acme, email_id)), Found)  # the tenant's own key, without a user
    assert post.one(Mark(people.ann, email_id)) is True
    for stranger in (people.globex, people.gus, people.bob):
        assert post.one(accepted(stranger, email_id)) is None
    assert post.row(email_id).status == "sending"


def test_of_two_that_want_the_same_mail_one_gets_it(post: Post) -> None:
    ann, mine, other = post.record.people.ann, post.mail(), post.mail()
    assert post.tries.turn([Mark(ann, mine), Mark(ann, mine), Mark(ann, other)]) == [True, None, True]


def test_all_kinds_in_one_turn(post: Post) -> None:
    ann = post.record.people.ann
    read, marked, settled = post.mail(), post.mail(), post.mail()
    post.one(Mark(ann, settled))
    found, mark, sent_at = post.tries.turn([Look(ann, read), Mark(ann, marked), accepted(ann, settled)])
    assert isinstance(found, Found)
    assert mark is True
    assert isinstance(sent_at, datetime)


def test_many_threads_share_turns_and_each_gets_its_own_answer(post: Post) -> None:
    ann, shared = post.record.people.ann, Together(post.record.engine)
    ids = [post.mail() for _ in range(24)]
    found: dict[str, Answer] = {}

    def ask(email_id: str) -> None:
        found[email_id] = shared.ask(Look(ann, email_id))

    threads = [threading.Thread(target=ask, args=(email_id,)) for email_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    shared.close()
    for email_id in ids:
        answer = found[email_id]
        assert isinstance(answer, Found)
        assert answer.message_id == post.row(email_id).message_id


def test_a_database_that_is_away_is_told_to_all_who_ask_and_found_again(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, email_id, shared = post.record.people.ann, post.mail(), Together(post.record.engine)
    assert isinstance(shared.ask(Look(ann, email_id)), Found)
    with shared._tries._prepared.cursor() as cursor, post.record.engine.connect() as other:
        cursor.execute("SELECT pg_backend_pid()")
        other.exec_driver_sql(f"SELECT pg_terminate_backend({cursor.fetchone()[0]})")
    with pytest.raises(UnavailableError):
        shared.ask(Look(ann, email_id))
    assert isinstance(shared.ask(Look(ann, email_id)), Found)
    shared.close()


@pytest.fixture
def carrying(post: Post, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, FakeTransport], Any]:
    """Carries a mail of Ann's over a transport; the long way is closed."""
    acting = Actors(post.record, monkeypatch)

    def no_way(*_: object) -> None:
        raise AssertionError("It went the long way.")

    def carry(email_id: str, transport: FakeTransport) -> Any:
        monkeypatch.setattr(actors.carrying, "transport_to", lambda *_: transport)
        with acting.attempt(post.record.people.ann):
            return actors.carrying.carry(email_id)

    monkeypatch.setattr(actors.carrying, "_prepared", no_way)
    return carry


def test_a_mail_is_carried_without_a_transaction_of_its_own(
    post: Post, carrying: Callable[[str, FakeTransport], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OutboundEmails, "record", None)
    email_id, transport = post.mail("bob@example.test", "eve@example.test"), FakeTransport()
    result = carrying(email_id, transport)
    row = post.row(email_id)
    assert row.sent_at is not None
    assert result == {
        "status": "success", "message_id": row.message_id, "recipients_sent": 2, "sent_timestamp": int(row.sent_at.timestamp() * 1000),
    }  # fmt: skip
    assert sorted(transport.delivered_to) == ["bob@example.test", "eve@example.test"]
    assert transport.delivered[0].raw == row.source


def test_a_mail_that_is_cancelled_just_before_the_mark_is_not_sent(post: Post, carrying: Callable[[str, FakeTransport], Any]) -> None:
    from tests.unit.outbox_world import Meanwhile

    email_id = post.mail()
    transport = Meanwhile(lambda: post.change(OutboundEmail, email_id, status="cancelled"))
    assert carrying(email_id, transport)["status"] == "cancelled"
    assert transport.delivered == []


def test_who_is_refused_is_written_the_long_way(post: Post, carrying: Callable[[str, FakeTransport], Any]) -> None:
    email_id = post.mail("bob@example.test", "eve@example.test")
    assert carrying(email_id, FakeTransport(refuses=["eve@example.test"]))["recipients_sent"] == 1
    assert [(status, code) for _, status, code, _ in post.recipients(email_id)] == [("sent", 250), ("failed", 550)]


def test_an_answer_that_is_lost_is_looked_up(
    post: Post, carrying: Callable[[str, FakeTransport], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Together.ask

    def answer_lost(self: Together, asked: Asked) -> Answer:
        answer = ask(self, asked)
        if isinstance(asked, Accepted):
            raise UnavailableError("The answer was lost.")
        return answer

    monkeypatch.setattr(Together, "ask", answer_lost)
    email_id = post.mail()
    assert carrying(email_id, FakeTransport())["recipients_sent"] == 1
    assert post.row(email_id).status == "sent"


def test_a_process_has_one_for_its_database(post: Post) -> None:
    first = together()
    assert first is not None
    assert together() is first
    assert first.engine is post.record.engine


def test_a_mail_that_a_webhook_is_told_of_is_settled_the_long_way(post: Post) -> None:
    ann, email_id = post.record.people.ann, post.mail()
    with post.record.session() as session:
        session.add(Webhook(tenant_id=ann.tenant_id, url="https://hook.test/", secret=b"x", events=["email.sent"]))
    assert post.one(Mark(ann, email_id)) is True
    assert post.one(accepted(ann, email_id)) is None
    assert post.row(email_id).status == "sending"
