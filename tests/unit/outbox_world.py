"""What the outbox's tests stand on: an account with an outbox, a transport that lets others in, and a mailbox with a Sent folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import select, update

import actors.carrying
import actors.outbound
import actors.sent_copies
from core.settings import get_settings
from core.tenancy import SYSTEM, acting_as
from mail.addresses import unique_recipients
from mail.delivery import SendReport
from mail.errors import ConnectionFailed
from mail.fake import FakeTransport
from mail.folder_names import RemoteFolder
from runs.enqueue import enqueue
from storage.drafts import Draft, accept
from storage.models import OutboundEmail, OutboundRecipient, TaskRun
from storage.repositories.outbound import OutboundEmails
from storage.repositories.outbox import send_key
from tests.unit.actor_world import Actors


class Meanwhile(FakeTransport):
    """Takes the mail, and does something just before the mark: what somebody else does in that moment."""

    def __init__(self, act: Callable[[], object], **options: Any) -> None:
        super().__init__(**options)
        self._act = act

    def send(self, sender: str, recipients: Sequence[str], raw: bytes, before_final_dot: Callable[[], None]) -> SendReport:
        def mark() -> None:
            self._act()
            before_final_dot()

        return super().send(sender, recipients, raw, mark)


class SentFolder:
    """An account's mailbox with a Sent folder, as far as sending looks at it."""

    def __init__(self, *message_ids: str, has_sent: bool = True, fails: bool = False) -> None:
        self.message_ids = list(message_ids)
        self.appended: list[bytes] = []
        self.has_sent, self.fails = has_sent, fails
        self.selected: list[str] = []

    def __enter__(self) -> SentFolder:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def list_folders(self) -> list[RemoteFolder]:
        names = {"INBOX": "inbox", "Gesendet": "sent"} if self.has_sent else {"INBOX": "inbox"}
        return [RemoteFolder(name, name, "/", role) for name, role in names.items()]

    def select(self, folder: RemoteFolder) -> None:
        self.selected.append(folder.name)

    def find_message_id(self, message_id: str) -> list[int]:
        if self.fails:
            raise ConnectionFailed("The connection was lost.")
        return [7] if message_id in self.message_ids else []

    def append(self, folder: RemoteFolder, raw: bytes, flags: Collection[str], received_at: datetime | None) -> int | None:
        assert folder.role == "sent"
        assert r"\Seen" in flags
        self.appended.append(raw)
        return None


class Box:
    """An account of ann's and her outbox."""

    def __init__(self, world: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.ann = world.record.people.ann
        self.patch = monkeypatch
        self.client = world.account(self.ann, smtp_username="ann", smtp_password="s", imap_host="127.0.0.1")

    def accept(self, *to: str, **draft: Any) -> str:
        settings = get_settings()
        with self.world.record.session(self.ann) as session:
            made = Draft(unique_recipients(to or ["bob@x.test"]), "Hi", "Hello", **draft)
            return accept(session, self.client, made, files=settings.files, keys=lambda: settings.credential_keys).id

    def run(self, email_id: str, via: Any = None, *, task: Any = None, run_id: str = "", number: int = 1) -> Any:
        self.patch.setattr(actors.carrying, "transport_to", lambda _email, _endpoint: via or FakeTransport())
        with self.world.attempt(self.ann, run_id=run_id, number=number):
            return (task or actors.outbound.send_outbound_email)(email_id)

    def mailbox(self, mailbox: SentFolder) -> SentFolder:
        self.patch.setattr(actors.sent_copies, "ImapMailbox", lambda _endpoint: mailbox)
        return mailbox

    def set(self, email_id: str, **values: Any) -> None:
        with self.world.record.session() as session:
            session.execute(update(OutboundEmail).where(OutboundEmail.id == email_id).values(**values))

    def row(self, email_id: str) -> OutboundEmail:
        with self.world.record.session() as session:
            return session.get_one(OutboundEmail, email_id)

    def people(self, email_id: str) -> dict[str, OutboundRecipient]:
        with self.world.record.session() as session:
            return {each.address: each for each in OutboundEmails(session).recipients(email_id)}

    def runs(self, task: str) -> list[TaskRun]:
        with self.world.record.session() as session:
            return list(session.scalars(select(TaskRun).where(TaskRun.task == task)))

    def enqueue(self, email_id: str, *, state: str = "PENDING", is_carrier: bool = True) -> str:
        with self.world.record.session(self.ann) as session:
            run_id = enqueue(session, actors.outbound.send_outbound_email.options(unique_key=send_key(email_id)), email_id=email_id)
            session.get_one(TaskRun, run_id).state = state
            if is_carrier:
                OutboundEmails(session).one(email_id).run_id = run_id
        return run_id

    def process_pending(self) -> Any:
        with acting_as(SYSTEM):
            return actors.outbound.process_pending_emails()
