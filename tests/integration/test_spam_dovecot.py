"""Spam on a real Dovecot: what goes to Junk is there, and what a person moves is learned."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from sqlalchemy import select

import actors.junk
import actors.spam
import actors.sync
from core.tenancy import Identity
from storage.models import EmailFolder, EmailMessage, SpamFeedback, SpamVerdict, SpamWeights, TaskRun
from storage.repositories.spam_choices import SpamChoices
from storage.repositories.spam_feedback import SpamFeedbacks
from tests.servers.dovecot import Dovecot
from tests.unit.actor_world import Actors, acting
from tests.unit.conftest import _migrated, record
from tests.unit.spam_world import SPAMMER, letter

__all__ = ["_migrated", "acting", "record"]
pytestmark = pytest.mark.integration
PASSWORD = "spam-and-ham"
_users = (f"judged{number}" for number in itertools.count())


class Account:
    """Ann's account on Dovecot; the tenant has blocked SPAMMER."""

    def __init__(self, world: Actors, dovecot: Dovecot) -> None:
        self.world, self.dovecot, self.user, self.ann = world, dovecot, next(_users), world.record.people.ann
        dovecot.add_user(self.user, PASSWORD)
        login = {"imap_host": dovecot.host, "imap_port": dovecot.imap_port, "imap_username": self.user, "imap_password": PASSWORD}
        self.client = world.account(self.ann, **login, checks_spam=True, moves_junk=True)
        with world.record.session(self.ann) as session:
            SpamChoices(session).add_entry(self.ann.tenant_id, "block", SPAMMER)

    def sync(self) -> None:
        with self.world.attempt(self.ann):
            actors.sync.sync_emails(self.client)

    def run_waiting(self) -> list[str]:
        with self.world.record.session() as session:
            waiting = list(session.scalars(select(TaskRun).where(TaskRun.state == "PENDING").order_by(TaskRun.id)))
            calls = [(run.task, dict(run.args), Identity(run.tenant_id, run.user_id)) for run in waiting]
            for run in waiting:
                run.state = "SUCCESS"
        for name, arguments, who in calls:
            with self.world.attempt(who):
                self.world.broker.get_actor(name)(**arguments)
        return [name for name, _, _ in calls]

    def on_server(self, folder: str) -> list[str]:
        with self.dovecot.imap_client(self.user, PASSWORD) as client:
            client.select(folder, readonly=True)
            found: Any = client.fetch("1:*", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")[1]
            return sorted(each[1].decode().split(":")[1].strip() for each in found if isinstance(each, tuple))

    def move(self, subject: str, source: str, target: str) -> None:
        with self.dovecot.imap_client(self.user, PASSWORD) as client:
            client.select(source)
            uid = client.uid("SEARCH", "SUBJECT", f'"{subject}"')[1][0].decode()
            assert client.uid("MOVE", uid, target)[0] == "OK"

    def ids(self) -> dict[str, str]:
        with self.world.record.session() as session:
            return {row.subject: row.id for row in session.scalars(select(EmailMessage))}

    def stored(self) -> dict[str, str]:
        """Subject to folder."""
        with self.world.record.session() as session:
            names = {folder.id: folder.name for folder in session.scalars(select(EmailFolder))}
            rows = session.scalars(select(EmailMessage).where(EmailMessage.vanished_at.is_(None)))
            return {row.subject: names[row.folder_id] for row in rows}


@pytest.fixture
def account(acting: Actors, dovecot: Dovecot) -> Account:
    made = Account(acting, dovecot)
    made.sync()
    return made


def test_spam_is_moved_to_junk_and_keeps_its_identity(account: Account) -> None:
    account.dovecot.deliver(account.user, letter(1))
    account.dovecot.deliver(account.user, letter(2, SPAMMER))
    account.sync()
    before = account.ids()
    assert account.run_waiting() == ["move_to_junk"]
    assert (account.on_server("INBOX"), account.on_server("Junk")) == (["letter 1"], ["letter 2"])
    assert account.stored() == {"letter 1": "INBOX", "letter 2": "Junk"}
    account.sync()
    assert (account.ids(), account.stored(), account.run_waiting()) == (before, {"letter 1": "INBOX", "letter 2": "Junk"}, [])
    with account.world.record.session() as session:
        assert session.scalars(select(SpamFeedback)).all() == []


def test_a_persons_move_is_an_opinion_and_is_learned(account: Account) -> None:
    account.dovecot.deliver(account.user, letter(1))
    account.dovecot.deliver(account.user, letter(2, SPAMMER))
    account.sync()
    account.run_waiting()
    account.move("letter 1", "INBOX", "Junk")
    account.move("letter 2", "Junk", "INBOX")
    account.sync()
    account.run_waiting()
    account.sync()  # what left the place where we had put it is noticed by the second at the latest
    account.run_waiting()
    names = {row_id: subject for subject, row_id in account.ids().items()}
    with account.world.record.session() as session:
        said = {names[row.email_id]: (row.is_spam, row.was_spam, row.via) for row in session.scalars(select(SpamFeedback))}
        weights = session.scalars(select(SpamWeights)).one()
    assert said == {"letter 1": (True, False, "move"), "letter 2": (False, True, "move")}
    assert (weights.spam_count, weights.ham_count, weights.learned_revision) == (1, 1, weights.revision)
    assert account.stored() == {"letter 1": "Junk", "letter 2": "INBOX"}  # nobody's word is overruled


def test_what_is_called_wanted_goes_back_to_the_inbox_and_keeps_its_identity(account: Account) -> None:
    account.dovecot.deliver(account.user, letter(2, SPAMMER))
    account.sync()
    account.run_waiting()
    before = account.ids()
    with account.world.record.session(account.ann) as session:
        SpamFeedbacks(session).record(account.ann.tenant_id, {before["letter 2"]: False}, via="api", per_hour=10)
    with account.world.attempt(account.ann):
        assert actors.junk.move_out_of_junk(account.client, [before["letter 2"]])["moved_count"] == 1
    assert account.on_server("INBOX") == ["letter 2"]
    account.sync()
    assert (account.ids(), account.stored(), account.run_waiting()) == (before, {"letter 2": "INBOX"}, [])


def test_a_mailbox_that_was_never_checked_is_read_over_one_connection(account: Account) -> None:
    for number in range(1, 6):
        account.dovecot.deliver(account.user, letter(number))
    account.dovecot.deliver(account.user, letter(9, SPAMMER), "Junk")
    account.sync()
    with account.world.record.session() as session:
        for row in session.scalars(select(SpamVerdict)):
            session.delete(row)
    with account.world.attempt(account.ann):
        answer = actors.spam.check_mailbox_spam(account.client)
        assert (answer["checked_count"], answer["spam_count"], answer["skipped_count"]) == (6, 1, 0)
        assert actors.spam.check_spam(account.ids()["letter 9"])["is_spam"] is True
