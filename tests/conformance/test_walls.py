"""Tenants are walls: every way to a row is tried from another tenant and from another user, and PostgreSQL's own wall without us."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from core.clock import now
from core.errors import NotFoundError
from core.ids import new_id
from core.tenancy import SYSTEM_TENANT, Identity
from mail.delivery import DeliveryOutcome
from mail.folder_names import RemoteFolder
from mail.sync import FolderCursor, SyncBatch
from storage.engine import new_session
from storage.models import (
    ApiKey,
    Base,
    DashboardSession,
    DkimKey,
    EmailAttachment,
    EmailClient,
    EmailFolder,
    EmailMessage,
    EmailSource,
    OutboundEmail,
    OutboundRecipient,
    RequestKey,
    Suppression,
    TaskAttempt,
    TaskRun,
    Tenant,
    ThreadLink,
    User,
)
from storage.repositories.email_clients import EmailClients
from storage.repositories.mail_views import MailViews
from storage.repositories.many_runs import ManyRuns
from storage.repositories.messages import EmailFolders, EmailMessages
from storage.repositories.outbound import Attachments, OutboundEmails
from storage.repositories.resources import Resources
from storage.repositories.run_counts import Counts
from storage.repositories.runs import RunFilter, TaskRuns
from storage.repositories.tenants import ApiKeys, Tenants
from storage.repositories.workers import Workers
from tests.toys import Record

TENANTS_TABLES: list[type[Base]] = [
    ApiKey,
    DashboardSession,
    DkimKey,
    EmailAttachment,
    EmailClient,
    EmailFolder,
    EmailMessage,
    EmailSource,
    OutboundEmail,
    OutboundRecipient,
    RequestKey,
    Suppression,
    TaskAttempt,
    TaskRun,
    ThreadLink,
    User,
]


@dataclass
class Belongings:
    """One of everything, ann's of acme."""

    client: str
    folder: str
    message: str
    attachment: str
    outbound: str
    run: str


@pytest.fixture
def anns(record: Record) -> Belongings:
    ann = record.people.ann
    owner = {"tenant_id": ann.tenant_id}
    with record.session(ann) as session:
        client = EmailClient(**owner, user_id=ann.user_id, name="inbox", email="ann@acme.test", imap_host="imap.test")
        session.add(client)
        session.flush()
        folder = EmailFolder(**owner, client_id=client.id, name="INBOX", role="inbox", uid_validity=1, uid_next=2, message_count=1)
        session.add(folder)
        session.flush()
        nothing: dict[str, Any] = {name: [] for name in ("references", "to", "cc", "flags", "headers", "defects")}
        message = EmailMessage(
            **owner, client_id=client.id, folder_id=folder.id, uid_validity=1, uid=1, subject="Hi", size=1, sha256="0" * 64, **nothing
        )
        outbound = OutboundEmail(
            **owner, user_id=ann.user_id, client_id=client.id, run_id=new_id(), message_id="<1@x>", sender="a", source=b"x"
        )
        session.add_all([message, outbound])
        session.flush()
        session.add(OutboundRecipient(**owner, email_id=outbound.id, address="bob@example.test"))
        session.add(EmailSource(**owner, email_id=message.id, source=b"x"))
        session.add(ThreadLink(**owner, client_id=client.id, message_id="0" * 64, thread_id=new_id()))
        session.add(Suppression(**owner, address="bob@example.test", reason="manual"))
        session.add(RequestKey(**owner, idempotency_key="k", request_hash="0" * 64, answer_id=new_id()))
        session.add(DkimKey(**owner, domain="acme.test", selector="s", private_key=b"x"))
        attachment = EmailAttachment(**owner, user_id=ann.user_id, email_id=message.id, filename="f", content_type="text/plain", size=1)
        run = TaskRun(
            **owner,
            id=new_id(),
            user_id=ann.user_id,
            task="add",
            queue="default",
            args={},
            state="FAILURE",
            max_attempts=1,
            fence=1,
            attempt=1,
            dead_lettered_at=now(),
        )
        session.add_all([attachment, run])
        session.flush()
        session.add(TaskAttempt(**owner, run_id=run.id, fence=1, attempt=1, state="FAILURE"))
        made = Belongings(client.id, folder.id, message.id, attachment.id, outbound.id, run.id)
    with record.session() as session:
        keys = ApiKeys(session)
        caller = keys.authenticate(keys.create(ann.tenant_id, "ann's", user_id=ann.user_id))
        assert caller is not None
        keys.open_session(caller)
    return made


Attempt = Callable[[Session, Belongings], object]

LOOK_UPS: dict[str, Attempt] = {
    "EmailClients.one": lambda s, b: EmailClients(s).one(b.client),
    "EmailClients.change": lambda s, b: EmailClients(s).change(b.client, {"name": "mine now"}),
    "EmailClients.delete": lambda s, b: EmailClients(s).delete(b.client),
    "EmailClients.login_refused": lambda s, b: EmailClients(s).login_refused(b.client, "no"),
    "EmailFolders.one": lambda s, b: EmailFolders(s).one(b.folder, b.client),
    "EmailFolders.of": lambda s, b: EmailFolders(s).of(b.client),
    "EmailFolders.match": lambda s, b: EmailFolders(s).match(b.client, [RemoteFolder("X", b"X", "/", None, True)]),  # type: ignore[arg-type]
    "MailViews.message": lambda s, b: MailViews(s).message(b.message),
    "MailViews.messages of the account": lambda s, b: MailViews(s).messages(b.client, None, None),
    "OutboundEmails.one": lambda s, b: OutboundEmails(s).one(b.outbound),
    "OutboundEmails.record": lambda s, b: OutboundEmails(s).record(b.outbound, DeliveryOutcome([], [], None, None)),
    "Attachments.uploaded": lambda s, b: Attachments(s).uploaded([b.attachment]),
    "Resources.require client": lambda s, b: Resources(s).require("client", "email_client", b.client),
    "Resources.require attachment": lambda s, b: Resources(s).require("file", "email_attachment", b.attachment),
    "Resources.require outbound": lambda s, b: Resources(s).require("email", "outbound_email", b.outbound),
    "TaskRuns.one": lambda s, b: TaskRuns(s).one(b.run),
    "TaskRuns.revoke": lambda s, b: TaskRuns(s).revoke(b.run),
    "TaskRuns.replay": lambda s, b: TaskRuns(s).replay(b.run),
    "Resources.require folder": lambda s, b: Resources(s).require("folder", "email_folder", b.folder),
    "Resources.require message": lambda s, b: Resources(s).require("message", "email_message", b.message),
}
LISTS: dict[str, Attempt] = {
    "EmailClients.all": lambda s, b: EmailClients(s).all(),
    "EmailClients.due_for_sync": lambda s, b: EmailClients(s).due_for_sync(),
    "EmailClients.begin_sync": lambda s, b: EmailClients(s).begin_sync(b.client, new_id()),
    "MailViews.messages": lambda s, b: MailViews(s).messages(None, None, None),
    "MailViews.messages of the folder": lambda s, b: MailViews(s).messages(None, b.folder, None),
    "MailViews.message_counts": lambda s, b: MailViews(s).message_counts(),
    "MailViews.outbound": lambda s, b: MailViews(s).outbound(None),
    "OutboundEmails.of_run": lambda s, b: [e for e in [OutboundEmails(s).of_run(_run_of(s, b))] if e],
    "TaskRuns.page": lambda s, b: TaskRuns(s).page(RunFilter()),
    "TaskRuns.page of the tenant": lambda s, b: TaskRuns(s).page(RunFilter(text=b.run[:8])),
    "TaskRuns.count": lambda s, b: TaskRuns(s).count(RunFilter()),
    "TaskRuns.page of dead letters": lambda s, b: TaskRuns(s).page(RunFilter(dead_letters_only=True)),
    "TaskRuns.page of ids": lambda s, b: TaskRuns(s).page(RunFilter(ids=[b.run])),
    "Counts.by_queue, live": lambda s, b: [each for each in Counts(s).by_queue(["default"]).live.values() if each],
    "Counts.by_queue, recent": lambda s, b: Counts(s).by_queue(["default"]).recent,
    "Counts.oldest_waiting": lambda s, b: Counts(s).oldest_waiting(["default"]),
    "ManyRuns.count_exactly": lambda s, b: ManyRuns(s).count_exactly(RunFilter(), _now(s)),
    "ManyRuns.count_exactly of the tenant": lambda s, b: ManyRuns(s).count_exactly(RunFilter(ids=[b.run]), _now(s)),
    "Workers.busy_threads": lambda s, b: Workers(s).busy_threads(),
}
TENANT_ONLY_LISTS: dict[str, Attempt] = {
    "EmailMessages.flags_by_uid": lambda s, b: EmailMessages(s).flags_by_uid(b.folder, 1),
    "EmailMessages.count": lambda s, b: EmailMessages(s).count(b.client),
    "MailViews.attachments": lambda s, b: MailViews(s).attachments(b.message),
    "OutboundEmails.recipients": lambda s, b: OutboundEmails(s).recipients(b.outbound),
    "TaskRuns.attempts": lambda s, b: TaskRuns(s).attempts(b.run),
}
SILENT_WRITES: dict[str, Attempt] = {  # statements that find nothing and say nothing
    "EmailClients.synced": lambda s, b: EmailClients(s).synced(b.client, b.run),
    "EmailClients.sync_failed": lambda s, b: EmailClients(s).sync_failed(b.client, "no"),
    "EmailClients.end_sync": lambda s, b: EmailClients(s).end_sync(b.client, new_id()),
    "OutboundEmails.not_sent": lambda s, b: OutboundEmails(s).not_sent(b.outbound, "no", is_final=True),
    "OutboundEmails.uncertain": lambda s, b: OutboundEmails(s).uncertain(b.outbound, "no"),
    "ManyRuns.revoke_waiting": lambda s, b: ManyRuns(s).revoke_waiting(RunFilter(ids=[b.run]), _now(s)),
    "ManyRuns.mark_running": lambda s, b: ManyRuns(s).mark_running(RunFilter(), _now(s), terminate=True),
    "ManyRuns.replay_dead": lambda s, b: ManyRuns(s).replay_dead(RunFilter(), _now(s)),
    "ManyRuns.purge_dead": lambda s, b: ManyRuns(s).purge_dead(RunFilter(ids=[b.run]), _now(s)),
    "TaskRuns.set_progress": lambda s, b: TaskRuns(s).set_progress(b.run, {"done": 1}),
}


def _now(session: Session) -> datetime:
    return ManyRuns(session).database_time()


def _run_of(session: Session, belongings: Belongings) -> str:
    email = session.get(OutboundEmail, belongings.outbound)
    return str(email.run_id) if email is not None else new_id()


def snapshot(record: Record) -> list[Any]:
    with record.session() as session:
        return [tuple(row) for model in TENANTS_TABLES for row in session.execute(select(model.__table__))]


def strangers(record: Record, *, with_user: bool = True) -> list[Identity]:
    return [record.people.globex, record.people.gus, *([record.people.bob] if with_user else [])]


def test_ann_finds_everything_that_is_hers(record: Record, anns: Belongings) -> None:
    for identity in (record.people.ann, record.people.acme):
        with record.session(identity) as session:
            for name in ("EmailClients.one", "EmailFolders.one", "MailViews.message", "OutboundEmails.one", "TaskRuns.one"):
                assert LOOK_UPS[name](session, anns), name
            found = {**LISTS, **TENANT_ONLY_LISTS}
            for name in found.keys() - {"EmailClients.begin_sync", "Counts.oldest_waiting", "Workers.busy_threads"}:
                assert found[name](session, anns), name


@pytest.mark.parametrize("name", LOOK_UPS)
def test_a_foreign_row_is_as_unknown_as_none(record: Record, anns: Belongings, name: str) -> None:
    before = snapshot(record)
    attempt = LOOK_UPS[name]
    for stranger in strangers(record):
        with pytest.raises(NotFoundError) as foreign, record.session(stranger) as session:
            attempt(session, anns)
        nothing = Belongings(*[new_id()] * 6)
        with pytest.raises(NotFoundError) as unknown, record.session(stranger) as session:
            attempt(session, nothing)
        assert str(foreign.value) == str(unknown.value)
    assert snapshot(record) == before


@pytest.mark.parametrize("name", [*LISTS, *TENANT_ONLY_LISTS])
def test_a_list_has_no_foreign_row(record: Record, anns: Belongings, name: str) -> None:
    attempt = LISTS.get(name) or TENANT_ONLY_LISTS[name]
    for stranger in strangers(record, with_user=name in LISTS):
        with record.session(stranger) as session:
            assert not attempt(session, anns), stranger


@pytest.mark.parametrize("name", SILENT_WRITES)
def test_a_write_to_a_foreign_row_changes_nothing(record: Record, anns: Belongings, name: str) -> None:
    before = snapshot(record)
    for stranger in strangers(record):
        with record.session(stranger) as session:
            SILENT_WRITES[name](session, anns)
    assert snapshot(record) == before


def test_a_foreign_mail_is_not_marked_as_being_sent(record: Record, anns: Belongings) -> None:
    for stranger in strangers(record):
        with pytest.raises(Exception, match="not waiting"), record.session(stranger) as session:
            OutboundEmails(session).mark_sending(anns.outbound)
    with record.session() as session:
        assert session.get_one(OutboundEmail, anns.outbound).status == "pending"


def test_a_batch_is_not_stored_into_a_foreign_folder(record: Record, anns: Belongings) -> None:
    folder = RemoteFolder("INBOX", b"INBOX", "/", "inbox", True)  # type: ignore[arg-type]
    batch = SyncBatch(folder, 1, False, [], [], [1], FolderCursor(1, 9, None), 1, 1)
    for stranger in strangers(record, with_user=False):
        with pytest.raises(Exception, match="No row"), record.session(stranger) as session:
            EmailMessages(session).store(anns.client, batch)
    assert record.count(EmailMessage) == 1


def test_a_tenant_sees_its_own_name_only(record: Record) -> None:
    with record.session(record.people.acme) as session:
        assert Tenants(session).names() == {record.people.acme.tenant_id: "acme"}
    with record.session() as session:
        assert set(Tenants(session).names().values()) == {"acme", "globex", "system"}


def test_references_cannot_leave_the_tenant(record: Record, anns: Belongings) -> None:
    gus = record.people.gus
    with pytest.raises(Exception, match=r"(?i)foreign key"), record.session() as session:
        session.add(EmailFolder(tenant_id=gus.tenant_id, client_id=anns.client, name="INBOX"))


# What PostgreSQL refuses even to a query that has forgotten its tenant.


only_postgres = pytest.mark.parametrize("database", ["postgres"], indirect=True)


@pytest.fixture
def raw(record: Record) -> Engine:
    return record.engine


@only_postgres
def test_without_a_bound_identity_there_is_no_row(raw: Engine, anns: Belongings) -> None:
    with raw.begin() as connection:
        for model in (*TENANTS_TABLES, cast("type[Base]", Tenant)):
            assert connection.scalar(select(func.count()).select_from(model)) == 0, model


@only_postgres
def test_with_a_bound_identity_there_are_its_rows_only(raw: Engine, record: Record, anns: Belongings) -> None:
    def counts(identity: Identity) -> dict[str, int]:
        with record.session(identity) as session:  # no repository, and so no condition
            return {model.__tablename__: session.scalar(select(func.count()).select_from(model)) or 0 for model in TENANTS_TABLES}

    acme = counts(record.people.acme)
    assert all(acme.values()), acme
    assert counts(record.people.globex) == {**dict.fromkeys(acme, 0), "users": 1}


@only_postgres
def test_a_row_for_another_tenant_is_refused(raw: Engine, record: Record) -> None:
    with pytest.raises(ProgrammingError, match="row-level security"), record.session(record.people.acme) as session:
        session.add(User(tenant_id=record.people.globex.tenant_id, name="spy"))
    with record.session(record.people.acme) as session:
        moved = session.execute(text("UPDATE users SET name = 'x' WHERE tenant_id = :other"), {"other": record.people.globex.tenant_id})
        assert moved.rowcount == 0  # type: ignore[attr-defined]
    with pytest.raises(ProgrammingError, match="row-level security"), record.session(record.people.acme) as session:
        session.execute(text("UPDATE users SET tenant_id = :other"), {"other": SYSTEM_TENANT})


@only_postgres
def test_every_table_of_tenants_has_the_wall_and_the_role_does_not_walk_through_it(raw: Engine) -> None:
    with raw.begin() as connection:
        tables = connection.execute(
            text(
                "SELECT c.relname, c.relrowsecurity AND c.relforcerowsecurity FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
                " WHERE c.relkind IN ('r', 'p') AND a.attname = 'tenant_id' AND NOT a.attisdropped"
                " AND c.relnamespace = 'public'::regnamespace"
            )
        ).all()
        bypasses = connection.scalar(text("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user"))
    assert {row[0] for row in tables} >= {model.__tablename__ for model in TENANTS_TABLES}
    assert [row[0] for row in tables if not row[1]] == []
    assert bypasses is False


@only_postgres
def test_a_pooled_connection_forgets_its_tenant(raw: Engine, record: Record, anns: Belongings) -> None:
    with record.session(record.people.acme) as session:
        before = session.connection().connection.driver_connection
        assert session.scalar(select(func.count()).select_from(EmailClient)) == 1
    with raw.begin() as connection:
        assert connection.connection.driver_connection is before
        assert connection.scalar(select(func.count()).select_from(EmailClient)) == 0


def test_a_session_that_commits_in_between_keeps_its_tenant(record: Record, anns: Belongings) -> None:
    with record.session(record.people.acme) as session:
        session.connection()
    with new_session(record.people.acme, record.engine) as session:
        for _ in range(2):
            assert session.scalar(select(func.count()).select_from(EmailClient)) == 1
            session.commit()


@pytest.mark.parametrize("state", ["PENDING", "STARTED"])
def test_a_foreign_live_run_is_neither_revoked_nor_marked(record: Record, anns: Belongings, state: str) -> None:
    record.set_run(anns.run, state=state, waiting_for="queue" if state == "PENDING" else None, dead_lettered_at=None)
    before = snapshot(record)
    for stranger in strangers(record):
        with record.session(stranger) as session:
            many = ManyRuns(session)
            assert many.revoke_waiting(RunFilter(), _now(session)) == []
            assert many.mark_running(RunFilter(), _now(session), terminate=True) == []
            assert not Counts(session).by_queue(["default"]).live.get("default")
            assert Counts(session).oldest_waiting(["default"]) == {}
            with pytest.raises(NotFoundError):
                many.revoke(anns.run, terminate=True)
    assert snapshot(record) == before
    with record.session(record.people.ann) as session:
        changed = ManyRuns(session).revoke_waiting(RunFilter(), _now(session)) or ManyRuns(session).mark_running(
            RunFilter(), _now(session), terminate=True
        )
        assert changed == [anns.run]
