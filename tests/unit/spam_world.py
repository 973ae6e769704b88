"""Ann's account over a mailbox in memory, with spam checks on, and short ways to look at what came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import select

import actors.junk
import actors.sources
import actors.spam
import actors.spam_learning
import actors.sync
from core.clock import now
from core.tenancy import Identity
from mail.fake import FakeMailbox
from storage.models import EmailFolder, EmailMessage, SpamFeedback, SpamVerdict, SpamWeights, TaskRun
from storage.repositories.spam_choices import SpamChoices
from storage.repositories.spam_feedback import SpamFeedbacks
from tests.unit.actor_world import Actors

SPAMMER = "crook@spam.test"


class SpamWorld:
    """Mail from SPAMMER is spam, whatever a model says: the tenant has blocked it."""

    def __init__(self, world: Actors, box: FakeMailbox, **fields: Any) -> None:
        self.world, self.box = world, box
        self.ann = world.record.people.ann
        self.client = world.account(self.ann, imap_host="imap.test", **{"checks_spam": True, **fields})
        with world.record.session(self.ann) as session:
            SpamChoices(session).add_entry(self.ann.tenant_id, "block", SPAMMER)

    def deliver(self, number: int, sender: str = "bob@x.test", folder: str = "INBOX") -> int:
        return self.box.append(letter(number, sender), folder=folder, received_at=now())

    def sync(self) -> None:
        with self.world.attempt(self.ann):
            actors.sync.sync_emails(self.client)

    def call(self, function: Callable[..., Any], *args: Any, who: Identity | None = None) -> Any:
        with self.world.attempt(who or self.ann):
            return function(*args)

    def say(self, number: int, *, is_spam: bool) -> None:
        """As the API does."""
        with self.world.record.session(self.ann) as session:
            said = SpamFeedbacks(session).record(self.ann.tenant_id, {self.id(number): is_spam}, via="api", per_hour=100)
            actors.spam_learning.follow_up(session, said)

    def run_waiting(self, *names: str) -> list[str]:
        """Runs what was enqueued of these tasks as a worker would, until nothing more comes. Returns what ran."""
        ran: list[str] = []
        while True:
            with self.world.record.session() as session:
                waiting = [
                    run
                    for run in session.scalars(select(TaskRun).where(TaskRun.state == "PENDING").order_by(TaskRun.id))
                    if run.task in names
                ]
                for run in waiting:
                    run.state = "SUCCESS"
                calls = [(run.task, dict(run.args), Identity(run.tenant_id, run.user_id)) for run in waiting]
            if not calls:
                return ran
            for name, arguments, who in calls:
                ran.append(name)
                with self.world.attempt(who):
                    self.world.broker.get_actor(name)(**arguments)

    def waiting(self) -> list[str]:
        with self.world.record.session() as session:
            return [run.task for run in session.scalars(select(TaskRun).where(TaskRun.state == "PENDING").order_by(TaskRun.id))]

    def rows(self) -> dict[str, EmailMessage]:
        with self.world.record.session() as session:
            return {row.subject: row for row in session.scalars(select(EmailMessage))}

    def id(self, number: int) -> str:
        return self.rows()[f"letter {number}"].id

    def verdict(self, number: int) -> SpamVerdict | None:
        with self.world.record.session() as session:
            return session.get(SpamVerdict, (self.ann.tenant_id, self.id(number)))

    def feedback(self) -> dict[str, tuple[bool, str]]:
        """Of each message, by its subject: the opinion that stands and how it was given."""
        subjects = {row.id: row.subject for row in self.rows().values()}
        with self.world.record.session() as session:
            rows = session.scalars(select(SpamFeedback).where(SpamFeedback.undone_at.is_(None)))
            return {subjects[row.email_id]: (row.is_spam, row.via) for row in rows}

    def weights(self) -> SpamWeights | None:
        with self.world.record.session() as session:
            return session.get(SpamWeights, self.ann.tenant_id)

    def folders(self) -> dict[str, list[str]]:
        """Folder name to subjects, as the store says."""
        with self.world.record.session() as session:
            names = {folder.id: folder.name for folder in session.scalars(select(EmailFolder))}
        found: dict[str, list[str]] = {name: [] for name in names.values()}
        for row in self.rows().values():
            if row.vanished_at is None:
                found[names[row.folder_id]].append(row.subject)
        return {name: sorted(subjects) for name, subjects in found.items() if subjects}

    def move(self, number: int, source: str, target: str) -> None:
        """As a person does with another mail program."""
        texts = {letter(number), letter(number, SPAMMER)}
        found = {uid: message for uid, message in self.box._folders[source].messages.items() if message.raw in texts}
        message = list(found.values())[-1]
        self.box.append(message.raw, folder=target, received_at=message.received_at)
        self.box.expunge(*found, folder=source)


def letter(number: int, sender: str = "bob@x.test") -> bytes:
    return f"From: {sender}\r\nTo: ann@acme.test\r\nSubject: letter {number}\r\nMessage-ID: <{number}@x.test>\r\n\r\nGood day\r\n".encode()


@contextmanager
def mailbox_in_memory(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[FakeMailbox]:
    """Every actor that opens Ann's mailbox opens this one."""
    made = FakeMailbox(**options)
    made.add_folder("Junk", role="junk")
    made.add_folder("Trash", role="trash")
    made.add_folder("Sent", role="sent")
    for module in (actors.sync, actors.junk, actors.sources):
        monkeypatch.setattr(module, "ImapMailbox", lambda _endpoint: made)
    yield made
