"""The way back: what somebody called wanted leaves Junk, once, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select

import actors.junk
from mail.fake import FakeMailbox
from storage.models import EmailFolder, EmailMessage
from storage.repositories.spam_feedback import SpamFeedbacks
from tests.unit.actor_world import Actors, acting
from tests.unit.spam_world import SPAMMER, SpamWorld, mailbox_in_memory

__all__ = ["acting"]


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMailbox]:
    with mailbox_in_memory(monkeypatch) as made:
        yield made


def in_junk(acting: Actors, box: FakeMailbox) -> SpamWorld:
    """Letter 1 was found to be spam and is in Junk."""
    mail = SpamWorld(acting, box, moves_junk=True)
    mail.deliver(1, SPAMMER)
    mail.sync()
    mail.run_waiting("move_to_junk")
    return mail


def moved_back(mail: SpamWorld) -> int:
    count: int = mail.call(actors.junk.move_out_of_junk, mail.client, [mail.id(1)])["moved_count"]
    return count


def test_what_somebody_called_wanted_leaves_junk_and_stays_who_it_is(acting: Actors, box: FakeMailbox) -> None:
    mail = in_junk(acting, box)
    wanted = mail.id(1)
    mail.say(1, is_spam=False)
    assert moved_back(mail) == 1
    assert (mail.id(1), mail.folders()) == (wanted, {"INBOX": ["letter 1"]})
    mail.sync()
    mail.run_waiting("learn_spam", "move_to_junk")
    assert (mail.folders(), mail.feedback(), mail.waiting()) == ({"INBOX": ["letter 1"]}, {"letter 1": (False, "api")}, [])
    assert moved_back(mail) == 0  # once more is nothing
    mail.move(1, "INBOX", "Junk")
    mail.sync()
    assert mail.feedback() == {"letter 1": (True, "move")}  # whoever puts it there again means it


def test_a_move_out_of_junk_is_no_second_opinion_where_the_server_does_not_say_where_it_went(
    acting: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mailbox_in_memory(monkeypatch, uidplus=False) as box:
        mail = in_junk(acting, box)
        mail.sync()
        wanted = mail.id(1)
        mail.say(1, is_spam=False)
        assert moved_back(mail) == 1
        mail.sync()
        assert (mail.id(1), mail.folders(), mail.feedback()) == (wanted, {"INBOX": ["letter 1"]}, {"letter 1": (False, "api")})


@pytest.mark.parametrize("opinion", [None, True, "taken back"])
def test_what_nobody_calls_wanted_any_more_stays_in_junk(acting: Actors, box: FakeMailbox, opinion: bool | str | None) -> None:
    mail = in_junk(acting, box)
    if opinion is not None:
        mail.say(1, is_spam=opinion is True)
    if opinion == "taken back":
        with acting.record.session(mail.ann) as session:
            SpamFeedbacks(session).undo(mail.ann.tenant_id, mail.id(1))
    assert (moved_back(mail), mail.folders()) == (0, {"Junk": ["letter 1"]})


def test_a_letter_of_which_a_twin_is_in_the_inbox_stays_in_junk(acting: Actors, box: FakeMailbox) -> None:
    mail = SpamWorld(acting, box)
    for folder in ("Junk", "INBOX"):
        mail.deliver(1, folder=folder)
    mail.sync()
    with acting.record.session(mail.ann) as session:
        junk = select(EmailMessage.id).join(EmailFolder, EmailFolder.id == EmailMessage.folder_id).where(EmailFolder.role == "junk")
        twin = session.scalars(junk).one()
        SpamFeedbacks(session).record(mail.ann.tenant_id, {twin: False}, via="api", per_hour=100)
    assert mail.call(actors.junk.move_out_of_junk, mail.client, [twin])["moved_count"] == 0
    assert [len(box._folders[folder].messages) for folder in ("INBOX", "Junk")] == [1, 1]


def test_only_junk_is_left_and_only_ones_own(acting: Actors, box: FakeMailbox) -> None:
    mail = SpamWorld(acting, box)
    mail.deliver(1, folder="Trash")
    mail.sync()
    mail.say(1, is_spam=False)
    assert (moved_back(mail), mail.folders()) == (0, {"Trash": ["letter 1"]})
    mail.move(1, "Trash", "Junk")
    mail.sync()
    mail.say(1, is_spam=False)
    for stranger in (acting.record.people.globex, acting.record.people.bob):
        result = mail.call(actors.junk.move_out_of_junk, mail.client, [mail.id(1)], who=stranger)
        assert (result["moved_count"], mail.folders()) == (0, {"Junk": ["letter 1"]})
    assert moved_back(mail) == 1
