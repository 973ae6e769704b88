"""The spam check in the product: at sync, on demand, over a mailbox; what it moves, and what it never does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select

import actors.spam
import actors.spam_arrivals
import actors.sync
from core.errors import NotFoundError, PermanentError, Snooze
from core.ids import new_id
from mail.fake import FakeMailbox
from mail.spam.engines.engine import EngineUnavailable, Envelope
from mail.spam.judging import GuardedEngine
from mail.spam.verdict import EngineScore
from runs.limits import SoftTimeLimitExceeded
from storage.models import EmailFolder, SpamVerdict
from storage.repositories.spam_choices import SpamChoices
from tests.unit.actor_world import Actors, acting
from tests.unit.spam_world import SPAMMER, SpamWorld, letter, mailbox_in_memory

__all__ = ["acting"]


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMailbox]:
    with mailbox_in_memory(monkeypatch) as made:
        yield made


@pytest.fixture
def mail(acting: Actors, box: FakeMailbox) -> SpamWorld:
    return SpamWorld(acting, box)


class StubEngine:
    """Says what it was told to."""

    name = "rspamd"

    def __init__(self, said: EngineScore | None) -> None:
        self.said, self.asked, self.taught = said, 0, list[bool]()

    def scan(self, source: bytes, envelope: Envelope) -> EngineScore:
        self.asked += 1
        if self.said is None:
            raise EngineUnavailable("rspamd did not answer: ConnectError.")
        return self.said

    def learn(self, source: bytes, envelope: Envelope, *, is_spam: bool) -> None:
        self.taught.append(is_spam)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> StubEngine:
    made = StubEngine(EngineScore("rspamd", 12.0, 15.0, ("FORGED_SENDER", "UNHEARD_OF")))
    guarded = (GuardedEngine(made),)
    for module in (actors.spam_arrivals, actors.spam_rules, actors.spam_learning):
        monkeypatch.setattr(module, "engines", lambda: guarded)
    return made


def test_new_mail_is_judged_with_the_sync_and_nothing_is_fetched_again(mail: SpamWorld) -> None:
    mail.deliver(1)
    mail.deliver(2, SPAMMER)
    mail.sync()
    wanted, spam = mail.verdict(1), mail.verdict(2)
    assert wanted is not None
    assert spam is not None
    assert (wanted.source, spam.is_spam, spam.score) == ("embedded", True, 1.0)
    assert spam.indicators[0]["code"] == "sender_blocked"
    assert mail.waiting() == []


def test_an_account_that_does_not_ask_is_not_checked(acting: Actors, box: FakeMailbox) -> None:
    mail = SpamWorld(acting, box, checks_spam=None)
    mail.deliver(1, SPAMMER)
    mail.sync()
    mail.move(1, "INBOX", "Junk")
    mail.sync()
    assert (acting.record.count(SpamVerdict), mail.feedback(), mail.waiting()) == (0, {}, [])


def test_what_the_user_wrote_is_not_checked(mail: SpamWorld) -> None:
    mail.deliver(1, SPAMMER, folder="Sent")
    mail.sync()
    assert mail.verdict(1) is None


def test_a_second_sync_judges_nothing_again_and_a_move_keeps_the_verdict(mail: SpamWorld) -> None:
    mail.deliver(1)
    mail.sync()
    before = mail.verdict(1)
    mail.move(1, "INBOX", "Trash")
    mail.sync()
    after = mail.verdict(1)
    assert before is not None
    assert after is not None
    assert (after.email_id, after.created_at) == (before.email_id, before.created_at)


def test_a_check_that_breaks_leaves_the_message_to_a_run_of_its_own(mail: SpamWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object, **_options: object) -> None:
        raise ValueError("cannot")

    mail.deliver(1)
    with monkeypatch.context() as patch:
        patch.setattr("mail.spam.judging.judge", broken)
        mail.sync()
    assert (list(mail.rows()), mail.verdict(1)) == (["letter 1"], None)
    assert mail.run_waiting("check_arrived_spam") == ["check_arrived_spam"]
    assert mail.verdict(1) is not None


def test_verdicts_that_cannot_be_stored_do_not_cost_the_messages(mail: SpamWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors.spam_arrivals, "model_version", object)
    mail.deliver(1)
    mail.sync()
    assert (list(mail.rows()), mail.verdict(1)) == (["letter 1"], None)


def test_a_batch_takes_only_so_long(mail: SpamWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors.spam_arrivals, "SECONDS_FOR_A_BATCH", -1.0)
    mail.deliver(1)
    mail.sync()
    assert (mail.verdict(1), mail.waiting()) == (None, ["check_arrived_spam"])


def test_spam_goes_to_junk_where_it_is_wanted_and_stays_who_it_is(acting: Actors, box: FakeMailbox) -> None:
    mail = SpamWorld(acting, box, moves_junk=True)
    mail.sync()
    mail.deliver(1)
    mail.deliver(2, SPAMMER)
    mail.sync()
    spam = mail.id(2)
    assert mail.run_waiting("move_to_junk") == ["move_to_junk"]
    assert mail.folders() == {"INBOX": ["letter 1"], "Junk": ["letter 2"]}
    mail.sync()
    assert (mail.id(2), mail.feedback(), mail.waiting()) == (spam, {}, [])


def test_our_own_move_is_nobodys_opinion_also_where_the_server_does_not_say_where_it_went(
    acting: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mailbox_in_memory(monkeypatch, uidplus=False) as box:
        mail = SpamWorld(acting, box, moves_junk=True)
        mail.deliver(2, SPAMMER)
        mail.sync()
        spam = mail.id(2)
        mail.run_waiting("move_to_junk")
        mail.sync()
        assert (mail.id(2), mail.folders(), mail.feedback()) == (spam, {"Junk": ["letter 2"]}, {})
        mail.move(2, "Junk", "INBOX")
        mail.sync()
        assert mail.feedback() == {"letter 2": (False, "move")}
        mail.move(2, "INBOX", "Junk")
        mail.sync()
        assert mail.feedback() == {"letter 2": (True, "move")}


def test_the_tenant_may_want_it_for_all_accounts(mail: SpamWorld) -> None:
    with mail.world.record.session(mail.ann) as session:
        SpamChoices(session).change(mail.ann.tenant_id, {"moves_junk": True})
    mail.deliver(1, SPAMMER)
    mail.sync()
    assert mail.waiting() == ["move_to_junk"]


def test_mail_from_before_the_account_was_added_and_mail_elsewhere_stays(acting: Actors, box: FakeMailbox) -> None:
    mail = SpamWorld(acting, box, moves_junk=True)
    box.append(letter(1, SPAMMER))  # of 2024
    mail.deliver(2, SPAMMER, folder="Trash")
    mail.sync()
    first, second = mail.verdict(1), mail.verdict(2)
    assert first is not None
    assert second is not None
    assert (first.is_spam, second.is_spam, mail.waiting()) == (True, True, [])


def test_an_account_without_a_junk_folder_says_so(acting: Actors, box: FakeMailbox) -> None:
    box.remove_folder("Junk")
    mail = SpamWorld(acting, box, moves_junk=True)
    mail.deliver(1, SPAMMER)
    mail.sync()
    with pytest.raises(PermanentError, match="no Junk folder"):
        mail.run_waiting("move_to_junk")
    spam = mail.verdict(1)
    assert spam is not None
    assert (spam.junked_at, mail.folders()) == (None, {"INBOX": ["letter 1"]})


def test_what_somebody_called_wanted_is_not_moved(acting: Actors, box: FakeMailbox) -> None:
    mail = SpamWorld(acting, box, moves_junk=True)
    mail.deliver(1, SPAMMER)
    mail.sync()
    mail.say(1, is_spam=False)
    mail.run_waiting("move_to_junk")
    assert mail.folders() == {"INBOX": ["letter 1"]}


def test_what_somebody_just_took_out_of_junk_is_not_put_back_before_the_sync_is_through(acting: Actors, box: FakeMailbox) -> None:
    mail = SpamWorld(acting, box, moves_junk=True)
    mail.deliver(1, SPAMMER, folder="Junk")
    mail.sync()
    mail.move(1, "Junk", "INBOX")
    with acting.record.session() as session:
        inbox = session.scalars(select(EmailFolder).where(EmailFolder.role == "inbox")).one().id
    mail.call(actors.sync.sync_emails, mail.client, inbox)  # Junk is not looked at yet
    assert mail.run_waiting("move_to_junk") == ["move_to_junk"]
    mail.sync()
    assert (mail.folders(), mail.feedback()) == ({"INBOX": ["letter 1"]}, {"letter 1": (False, "move")})
    assert mail.run_waiting("move_to_junk") == []


def test_check_spam_answers_as_the_contract_says(acting: Actors, box: FakeMailbox) -> None:
    mail = SpamWorld(acting, box, checks_spam=False)
    mail.deliver(1, SPAMMER)
    mail.sync()
    assert mail.verdict(1) is None
    answer = mail.call(actors.spam.check_spam, mail.id(1))
    assert set(answer) == {"status", "is_spam", "spam_score", "indicators"}
    assert (answer["status"], answer["is_spam"], answer["spam_score"]) == ("success", True, 1.0)
    assert answer["indicators"][0] == "sender_blocked"
    stored = mail.verdict(1)
    assert stored is not None
    assert [each["code"] for each in stored.indicators if each["code"] not in answer["indicators"]] == []


def test_a_message_that_is_gone_and_one_of_somebody_else_fail_with_a_sentence(mail: SpamWorld) -> None:
    uid = mail.deliver(1)
    mail.sync()
    mail.box.expunge(uid, folder="INBOX")
    with pytest.raises(PermanentError, match="no longer on its mail server"):
        mail.call(actors.spam.check_spam, mail.id(1))
    for who in (mail.world.record.people.gus, mail.world.record.people.bob):
        with pytest.raises(PermanentError):
            mail.call(actors.spam.check_spam, mail.id(1), who=who)


def test_engines_are_asked_once_the_messages_are_stored(mail: SpamWorld, engine: StubEngine) -> None:
    mail.deliver(1)
    mail.sync()
    first = mail.verdict(1)
    assert first is not None
    assert (first.source, engine.asked) == ("embedded", 0)
    mail.run_waiting("check_arrived_spam")
    fused = mail.verdict(1)
    assert fused is not None
    assert (fused.source, engine.asked, fused.engines[0]["score"]) == ("engines", 1, 12.0)
    assert fused.score > first.score
    assert {"return_path_mismatch", "engine_symbol"} <= {each["code"] for each in fused.indicators}


def test_an_engine_that_is_down_is_a_note_and_raises_nothing(mail: SpamWorld, engine: StubEngine) -> None:
    mail.deliver(1)
    mail.sync()
    before = mail.verdict(1)
    engine.said = None
    for _ in range(5):
        mail.call(actors.spam.check_spam, mail.id(1))
    after = mail.verdict(1)
    assert before is not None
    assert after is not None
    assert (after.is_spam, after.score, after.source) == (before.is_spam, before.score, "embedded")
    assert "engine_unavailable:rspamd" in after.notes
    assert engine.asked == 3  # then its breaker is open


def test_a_mailbox_is_checked_with_progress_and_once(acting: Actors, box: FakeMailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors.spam, "AT_A_TIME", 2)
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(actors.spam, "progress", lambda done, total, note: told.append((done, total)))
    mail = SpamWorld(acting, box, checks_spam=False)
    for number in range(5):
        mail.deliver(number)
    mail.sync()
    gone = mail.deliver(9)
    mail.sync()
    box.expunge(gone, folder="INBOX")
    answer = mail.call(actors.spam.check_mailbox_spam, mail.client)
    assert (answer["checked_count"], answer["spam_count"], answer["skipped_count"]) == (5, 0, 1)
    assert told == [(2, 6), (4, 6), (6, 6)]
    assert mail.call(actors.spam.check_mailbox_spam, mail.client)["checked_count"] == 0


def test_a_mailbox_that_takes_too_long_goes_on_where_it_stopped(acting: Actors, box: FakeMailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors.spam, "AT_A_TIME", 2)
    mail = SpamWorld(acting, box, checks_spam=False)
    for number in range(5):
        mail.deliver(number)
    mail.sync()

    def too_long(done: int, total: int, note: str) -> None:
        raise SoftTimeLimitExceeded

    with monkeypatch.context() as patch:
        patch.setattr(actors.spam, "progress", too_long)
        with pytest.raises(Snooze):
            mail.call(actors.spam.check_mailbox_spam, mail.client)
    assert acting.record.count(SpamVerdict) == 2
    assert mail.call(actors.spam.check_mailbox_spam, mail.client)["checked_count"] == 3


def test_a_mailbox_of_somebody_else_is_unknown(mail: SpamWorld) -> None:
    for who in (mail.world.record.people.gus, mail.world.record.people.bob):
        with pytest.raises(NotFoundError):
            mail.call(actors.spam.check_mailbox_spam, mail.client, who=who)
    with pytest.raises(NotFoundError):
        mail.call(actors.spam.check_mailbox_spam, mail.client, new_id())
