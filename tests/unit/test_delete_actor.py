"""`delete_emails`: the server and the store agree, whatever happens half-way, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

import actors.delete
import actors.sync
from core.clock import now
from core.errors import InvalidInputError, Snooze
from core.ids import new_id
from core.tenancy import Identity
from mail.deletion import FolderRenumberedError, NoTrashError
from mail.errors import ConnectionFailed, MailboxProtocolError, ServerThrottled
from mail.fake import FakeMailbox
from mail.folder_names import RemoteFolder
from runs.current import RunRevoked
from runs.limits import SoftTimeLimitExceeded
from storage.models import EmailFolder, EmailMessage, MailHost, TaskRun
from tests.unit.actor_world import Actors, acting

__all__ = ["acting"]


class Mail:
    """Ann's account with five letters in INBOX, synced."""

    def __init__(self, world: Actors, box: FakeMailbox) -> None:
        self.world = world
        self.box = box
        self.ann = world.record.people.ann
        self.client = world.account(self.ann, imap_host="imap.test")
        for number in range(5):
            box.append(letter(number))
        self.sync()

    def sync(self) -> None:
        with self.world.attempt(self.ann):
            actors.sync.sync_emails(self.client)

    def delete(self, ids: Sequence[str], *, who: Identity | None = None, permanent: bool = False) -> dict[str, Any]:
        with self.world.attempt(who or self.ann):
            return dict(actors.delete.delete_emails(list(ids), permanent=permanent))

    def rows(self) -> dict[str, EmailMessage]:
        with self.world.record.session() as session:
            return {row.subject: row for row in session.scalars(select(EmailMessage))}

    def ids(self, *numbers: int) -> list[str]:
        rows = self.rows()
        return [rows[f"letter {number}"].id for number in numbers]

    def visible(self) -> dict[str, list[str]]:
        """Folder name to subjects, as the store says."""
        with self.world.record.session() as session:
            names = {folder.id: folder.name for folder in session.scalars(select(EmailFolder))}
            counts = {folder.name: folder.message_count for folder in session.scalars(select(EmailFolder))}
        found: dict[str, list[str]] = {name: [] for name in names.values()}
        for row in self.rows().values():
            if row.vanished_at is None:
                found[names[row.folder_id]].append(row.subject)
        assert {name: len(subjects) for name, subjects in found.items()} == counts
        return {name: sorted(subjects) for name, subjects in found.items()}

    def on_server(self, folder: str) -> list[str]:
        return sorted(f"letter {raw.raw.split(b'letter ')[1][:1].decode()}" for raw in self.box._folders[folder].messages.values())


def letter(number: int) -> bytes:
    return f"From: bob@x.test\r\nSubject: letter {number}\r\nMessage-ID: <{number}@x.test>\r\n\r\nGood day\r\n".encode()


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> FakeMailbox:
    made = FakeMailbox()
    made.add_folder("Trash", role="trash")
    for module in (actors.sync, actors.delete):
        monkeypatch.setattr(module, "ImapMailbox", lambda _endpoint: made)
    return made


@pytest.fixture
def mail(acting: Actors, box: FakeMailbox) -> Mail:
    return Mail(acting, box)


def test_messages_go_to_the_trash_and_stay_who_they_are(mail: Mail) -> None:
    mail.sync()  # the trash has been seen
    ids = mail.ids(1, 3)
    assert mail.delete(ids) == {"status": "success", "deleted_count": 2, "not_found": []}
    assert mail.on_server("Trash") == ["letter 1", "letter 3"]
    mail.sync()
    assert mail.visible() == {"INBOX": ["letter 0", "letter 2", "letter 4"], "Trash": ["letter 1", "letter 3"]}
    assert mail.ids(1, 3) == ids


def test_what_was_moved_is_not_fetched_again_and_its_flags_are_followed(mail: Mail) -> None:
    mail.sync()
    mail.delete(mail.ids(1, 3))
    (moved, _) = mail.box._folders["Trash"].messages
    mail.box.set_flags(moved, "\\Flagged", folder="Trash")
    mail.box.commands.clear()
    mail.sync()
    assert "fetch" not in {command for command, _ in mail.box.commands}
    assert mail.visible()["Trash"] == ["letter 1", "letter 3"]
    assert "\\Flagged" in mail.rows()["letter 1"].flags
    mail.box.commands.clear()
    mail.sync()
    assert {command for command, _ in mail.box.commands} == {"list_folders", "states"}


def test_a_move_behind_mail_that_was_not_seen_yet_hides_none_of_it(mail: Mail) -> None:
    mail.sync()
    mail.box.append(letter(8), folder="Trash")
    mail.delete(mail.ids(1))
    mail.box.append(letter(9), folder="Trash")
    mail.sync()
    assert mail.visible()["Trash"] == ["letter 1", "letter 8", "letter 9"]


def test_deleting_again_is_no_more_than_that(mail: Mail) -> None:
    ids = mail.ids(1, 3)
    mail.delete(ids)
    assert mail.delete(ids)["deleted_count"] == 2
    assert mail.on_server("Trash") == ["letter 1", "letter 3"]


def test_for_good_only_those_that_were_named_go(mail: Mail) -> None:
    mail.box.set_flags(1, "\\Deleted")  # letter 0, marked by somebody else
    assert mail.delete(mail.ids(2), permanent=True)["deleted_count"] == 1
    assert mail.on_server("INBOX") == ["letter 0", "letter 1", "letter 3", "letter 4"]
    assert mail.on_server("Trash") == []
    assert mail.visible()["INBOX"] == ["letter 0", "letter 1", "letter 3", "letter 4"]
    assert mail.delete(mail.ids(2), permanent=True)["deleted_count"] == 1  # it is deleted


def test_what_is_in_the_trash_stays_there_unless_it_is_for_good(mail: Mail) -> None:
    ids = mail.ids(1)
    mail.delete(ids)
    mail.sync()
    assert mail.delete(ids)["deleted_count"] == 1
    assert mail.on_server("Trash") == ["letter 1"]
    mail.delete(ids, permanent=True)
    assert mail.on_server("Trash") == []


def test_gmail_deletes_from_its_trash_only(mail: Mail) -> None:
    mail.box.expunges_only_from_trash = True
    mail.delete(mail.ids(0, 4), permanent=True)
    assert (mail.on_server("Trash"), mail.on_server("INBOX")) == ([], ["letter 1", "letter 2", "letter 3"])
    assert [command for command, folder in mail.box.commands if folder == "Trash"][-2:] == ["select", "expunge"]


def test_strangers_and_unknown_ids_are_reported_and_not_touched(mail: Mail) -> None:
    ids = [*mail.ids(0), new_id(), "no id", mail.ids(0)[0]]
    assert mail.delete(ids) == {"status": "success", "deleted_count": 1, "not_found": ids[1:3]}
    people = mail.world.record.people
    for stranger in (people.gus, replace(people.ann, user_id=new_id())):
        assert mail.delete(mail.ids(1), who=stranger) == {"status": "success", "deleted_count": 0, "not_found": mail.ids(1)}
    assert mail.on_server("Trash") == ["letter 0"]


def test_a_message_that_is_gone_from_the_server_is_deleted(mail: Mail) -> None:
    ids = mail.ids(0, 1)
    mail.box.expunge(1)
    assert mail.delete(ids)["deleted_count"] == 2
    assert mail.visible()["INBOX"] == ["letter 2", "letter 3", "letter 4"]


def test_half_way_the_connection_breaks_and_the_next_attempt_goes_on(mail: Mail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mail.deletion.CHUNK", 2)
    real, calls = mail.box.move, []

    def move(uids: Sequence[int], to: RemoteFolder) -> dict[int, int | None]:
        calls.append(list(uids))
        if len(calls) == 2:
            real(uids, to)  # the server did it, and nobody heard
            raise ConnectionFailed("lost")
        return real(uids, to)

    monkeypatch.setattr(mail.box, "move", move)
    ids = mail.ids(0, 1, 2, 3, 4)
    with pytest.raises(ConnectionFailed):
        mail.delete(ids)
    assert len(mail.on_server("Trash")) == 4
    assert mail.delete(ids)["deleted_count"] == 5
    mail.sync()
    assert mail.visible() == {"INBOX": [], "Trash": [f"letter {number}" for number in range(5)]}
    assert mail.ids(0, 1, 2, 3, 4) == ids


def test_a_sync_that_sees_the_trash_first_makes_no_second_message(mail: Mail, monkeypatch: pytest.MonkeyPatch) -> None:
    mail.sync()
    real = mail.box.move

    def move(uids: Sequence[int], to: RemoteFolder) -> dict[int, int | None]:
        moved = real(uids, to)
        opened, mail.box._open = mail.box._open, None
        mail.sync()  # between the server's answer and our commit
        mail.box._open, mail.box._is_writable = opened, True
        return moved

    monkeypatch.setattr(mail.box, "move", move)
    ids = mail.ids(1)
    mail.delete(ids)
    mail.sync()
    assert mail.visible() == {"INBOX": ["letter 0", "letter 2", "letter 3", "letter 4"], "Trash": ["letter 1"]}
    assert mail.ids(1) == ids


def test_other_numbers_on_the_server_mean_a_sync_first(mail: Mail) -> None:
    ids = mail.ids(0)
    mail.box.change_uid_validity()
    with pytest.raises(FolderRenumberedError):
        mail.delete(ids)
    with mail.world.record.session() as session:
        assert [run.task for run in session.scalars(select(TaskRun))] == ["sync_emails"]
    assert mail.on_server("Trash") == []
    mail.sync()
    assert mail.delete(ids)["deleted_count"] == 1
    assert mail.on_server("Trash") == ["letter 0"]


def test_without_a_trash_nothing_moves(mail: Mail) -> None:
    mail.box.remove_folder("Trash")
    with pytest.raises(NoTrashError):
        mail.delete(mail.ids(0))
    assert len(mail.on_server("INBOX")) == 5


def test_a_server_that_expunges_all_or_nothing_expunges_nothing(mail: Mail) -> None:
    mail.box._uidplus = False
    with pytest.raises(MailboxProtocolError):
        mail.delete(mail.ids(0), permanent=True)
    assert (len(mail.on_server("INBOX")), len(mail.visible()["INBOX"])) == (5, 5)


def test_one_account_that_fails_keeps_no_other_from_its_share(mail: Mail, monkeypatch: pytest.MonkeyPatch) -> None:
    second = mail.world.account(mail.ann, imap_host="broken.test")
    with mail.world.record.session() as session:
        folder = EmailFolder(tenant_id=mail.ann.tenant_id, client_id=second, name="INBOX", uid_validity=1, uid_next=2, message_count=1)
        session.add(folder)
        session.flush()
        nothing: dict[str, Any] = {name: [] for name in ("references", "to", "cc", "flags", "headers", "defects")}
        row = EmailMessage(
            tenant_id=mail.ann.tenant_id, client_id=second, folder_id=folder.id, uid_validity=1, uid=1, size=1, sha256="0" * 64, **nothing
        )
        session.add(row)
        session.flush()
        broken = row.id

    def open_mailbox(endpoint: Any) -> Any:
        if endpoint.host == "broken.test":
            raise ConnectionFailed("The server does not answer.")
        return mail.box

    monkeypatch.setattr(actors.delete, "ImapMailbox", open_mailbox)
    with pytest.raises(ConnectionFailed):
        mail.delete([broken, *mail.ids(0)])
    assert mail.on_server("Trash") == ["letter 0"]


def test_a_revoked_run_stops_between_two_chunks_and_a_long_one_goes_on(mail: Mail, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (raised, expected) in enumerate(((RunRevoked(), RunRevoked), (SoftTimeLimitExceeded(), Snooze))):

        def progress(*_given: object, raised: Exception = raised) -> None:
            raise raised

        monkeypatch.setattr(actors.delete, "progress", progress)
        with pytest.raises(expected):
            mail.delete(mail.ids(number))


def test_a_server_that_asks_for_patience_gets_it_and_one_that_is_away_gets_a_pause(mail: Mail, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: Exception = ServerThrottled("Too many commands.", retry_after=7)

    def move(_uids: Collection[int], _to: RemoteFolder) -> dict[int, int | None]:
        raise raised

    monkeypatch.setattr(mail.box, "move", move)
    with pytest.raises(Snooze) as caught:
        mail.delete(mail.ids(0))
    assert 7 <= caught.value.delay <= 10
    raised = ConnectionFailed("lost")
    for _ in range(3):
        with pytest.raises(ConnectionFailed):
            mail.delete(mail.ids(0))
    asked = len(mail.box.commands)
    with pytest.raises(Snooze):
        mail.delete(mail.ids(0))
    assert len(mail.box.commands) == asked
    with mail.world.record.session() as session:
        host = session.scalars(select(MailHost)).one()
        assert (host.failures, host.reason) == (3, ConnectionFailed.code)
        host.closed_until = now()
    monkeypatch.undo()


def test_too_many_at_once_are_refused(mail: Mail) -> None:
    with pytest.raises(InvalidInputError):
        mail.delete([new_id()] * 10_001)
    assert mail.delete([]) == {"status": "success", "deleted_count": 0, "not_found": []}
