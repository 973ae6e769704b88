"""The walls around stored mail: every query of the store, of conversations, of words and of sources is tried from another tenant."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import NoResultFound, ProgrammingError
from sqlalchemy.orm import Session

from core.clock import now
from core.errors import NotFoundError
from core.ids import new_id
from core.tenancy import Identity
from mail.mime import parse_message
from mail.sync import FetchedMessage, FolderCursor, SyncBatch
from storage.models import EmailAttachment, EmailClient, EmailFolder, EmailMessage, EmailSearch, EmailSource, ThreadLink
from storage.repositories.mail_views import MailViews
from storage.repositories.messages import EmailFolders, EmailMessages
from storage.repositories.places import Places
from storage.repositories.sources import EmailSources
from tests.conformance.test_mail_store import Account, letter, remote
from tests.toys import Record

TABLES = (EmailFolder, EmailMessage, EmailAttachment, EmailSource, ThreadLink)
only_postgres = pytest.mark.parametrize("database", ["postgres"], indirect=True)


class Anns(Account):
    """Two messages, one of them vanished, with a source and a conversation."""

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self.raw = letter("secret", number=1001)
        self.store({1: self.raw, 2: letter("gone", number=1002, refers_to="<1001@x>")}, keep_source=True)
        self.message, self.inbox = self.rows()[1], self.folder()
        self.vanished = self.ids()[2]
        self.store(gone=[2])


@pytest.fixture
def anns(record: Record) -> Anns:
    return Anns(record)


def snapshot(record: Record) -> list[Any]:
    with record.session() as session:
        return [tuple(row) for model in TABLES for row in session.execute(select(model.__table__))]


def everybody_else(record: Record) -> list[Identity]:
    return [record.people.globex, record.people.gus]


Attempt = Callable[[Session, Anns], object]
LISTS: dict[str, Attempt] = {
    "flags_by_uid": lambda s, a: EmailMessages(s).flags_by_uid(a.message.folder_id, 1),
    "uids_among": lambda s, a: EmailMessages(s).uids_among(a.message.folder_id, 1, [1, 2]),
    "identities": lambda s, a: EmailMessages(s).identities(a.message.folder_id, 1),
    "count": lambda s, a: EmailMessages(s).count(a.id),
    "source": lambda s, a: EmailMessages(s).source(a.message.id),
    "one source": lambda s, a: EmailSources(s).one(a.message.id),
    "stored": lambda s, a: Places(s).stored(a.inbox, 1, [1, 2]),
    "search": lambda s, a: MailViews(s).messages(None, None, "secret"),
    "conversation": lambda s, a: MailViews(s).messages(None, None, None, thread_id=a.message.thread_id),
}
OF_USERS = ("search", "conversation")
WRITES: dict[str, Attempt] = {
    "forget_vanished": lambda s, a: EmailMessages(s).forget_vanished(a.id, now() + timedelta(hours=1)),
    "forget_sources": lambda s, a: EmailMessages(s).forget_sources(now() + timedelta(hours=1), 10),
    "leave": lambda s, a: Places(s).leave(a.inbox, [1]),
    "leave_folder": lambda s, a: Places(s).leave_folder(a.inbox),
    "revive": lambda s, a: Places(s).revive([a.vanished]),
    "take_over": lambda s, a: Places(s).take_over(a.inbox, 1, [fetched(letter("gone", number=1002, refers_to="<1001@x>"), 7)]),
}


def fetched(raw: bytes, uid: int = 1) -> FetchedMessage:
    return FetchedMessage(uid, frozenset(), now(), len(raw), parse_message(raw), raw)


def test_ann_finds_what_the_others_are_tried_with(record: Record, anns: Anns) -> None:
    with record.session(record.people.ann) as session:
        for name, attempt in LISTS.items():
            assert attempt(session, anns), name


@pytest.mark.parametrize("name", LISTS)
def test_nothing_of_anns_is_found(record: Record, anns: Anns, name: str) -> None:
    for stranger in [*everybody_else(record), *([record.people.bob] if name in OF_USERS else [])]:
        with record.session(stranger) as session:
            assert not LISTS[name](session, anns), stranger


@pytest.mark.parametrize("name", WRITES)
def test_nothing_of_anns_is_changed(record: Record, anns: Anns, name: str) -> None:
    before = snapshot(record)
    for stranger in everybody_else(record):
        with record.session(stranger) as session:
            assert not WRITES[name](session, anns), stranger
    assert snapshot(record) == before
    with record.session(record.people.ann) as session:
        assert WRITES[name](session, anns), "the attempt is none"


def test_a_file_and_a_vanished_message_are_unknown(record: Record, anns: Anns) -> None:
    for identity, row_id in (
        (record.people.gus, anns.message.id),
        (record.people.bob, anns.message.id),
        (record.people.ann, anns.vanished),
    ):
        with record.session(identity) as session, pytest.raises(NotFoundError):
            MailViews(session).message(row_id)
    with record.session(record.people.ann) as session, pytest.raises(NotFoundError):
        MailViews(session).attachment(anns.message.id, new_id())


@pytest.mark.parametrize("is_reset", [False, True])
def test_a_batch_for_a_foreign_folder_is_refused(record: Record, anns: Anns, is_reset: bool) -> None:
    before = snapshot(record)
    batch = SyncBatch(remote(), 1, is_reset, [fetched(anns.raw, 3)], [], [1], FolderCursor(1, 9, None), 1, 1)
    for stranger in everybody_else(record):
        with pytest.raises(NoResultFound), record.session(stranger) as session:
            EmailMessages(session).store(anns.id, batch, keep_source=True)
        with pytest.raises(NotFoundError), record.session(stranger) as session:
            EmailFolders(session).match(anns.id, [])
    assert snapshot(record) == before


def test_the_same_mail_of_two_tenants_stays_two_mails_and_two_conversations(record: Record, anns: Anns) -> None:
    gus = record.people.gus
    with record.session(gus) as session:
        client = EmailClient(tenant_id=gus.tenant_id, user_id=gus.user_id, name="g", email="g@globex.test", imap_host="imap.test")
        session.add(client)
        session.flush()
        EmailFolders(session).match(client.id, [remote()])
        new = [fetched(anns.raw, 1), fetched(letter("gone", number=1002, refers_to="<1001@x>"), 2)]
        batch = SyncBatch(remote(), 1, False, new, [], [], FolderCursor(1, 9, None), 2, 2)
        assert EmailMessages(session).store(client.id, batch).synced == 2
        found = MailViews(session).messages(None, None, "secret")
        assert [each.message.client_id for each in found] == [client.id]
        assert found[0].message.thread_id != anns.message.thread_id
    assert anns.found("secret") == ["secret"]


# What PostgreSQL refuses even to a query that has forgotten its tenant.


@only_postgres
def test_words_are_walled_by_the_database_too(record: Record, anns: Anns) -> None:
    def seen(identity: Identity, words: str) -> int:
        with record.session(identity) as session:
            session.execute(text("SELECT set_config('mailroom.search', :words, true)"), {"words": words})
            return len(session.scalars(select(EmailSearch.email_id)).all())

    assert seen(record.people.ann, "'secret'") == 1
    assert seen(record.people.globex, "'secret'") == 0
    assert seen(record.people.ann, "") == 0
    assert seen(record.people.globex, f"'tenant {anns.ann.tenant_id}'") == 0
    with record.session(record.people.ann) as session:  # the next transaction on the same connection
        assert session.scalars(select(EmailSearch.email_id)).all() == []
    with pytest.raises(ProgrammingError, match="row-level security"), record.session(record.people.globex) as session:
        session.execute(
            text("INSERT INTO email_search (tenant_id, email_id, words) VALUES (:tenant, :id, to_tsvector('x'))"),
            {"tenant": anns.ann.tenant_id, "id": anns.message.id},
        )


@only_postgres
def test_a_search_is_answered_from_the_index_of_words(record: Record, anns: Anns) -> None:
    with record.session(record.people.ann) as session:
        session.execute(text("SELECT set_config('mailroom.search', '''secret''', true), set_config('enable_seqscan', 'off', true)"))
        session.execute(text("SELECT set_config('enable_indexscan', 'off', true)"))
        plan = "\n".join(session.scalars(text("EXPLAIN SELECT email_id FROM email_search")).all())
    assert "ix_email_search_words" in plan
    assert "Index Cond: (words @@" in plan
