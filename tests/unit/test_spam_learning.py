"""What people say of messages: by the API and by moving them; how it is learned, taken back, and kept from those who say too much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

import actors.spam_learning
import actors.spam_rules
from core.errors import NotFoundError, TransientError
from core.settings import get_settings, use_settings
from core.tenancy import Identity
from mail.errors import ServerUnavailable
from mail.fake import FakeMailbox
from mail.spam.learning import LEARNED_FROM
from mail.spam.trial import ENOUGH, Opinion, Trial, learn_from
from storage.models import SpamFeedback, SpamVerdict, SpamWeights
from storage.repositories.spam_choices import SpamChoices
from storage.repositories.spam_feedback import SpamFeedbacks
from tests.unit.actor_world import Actors, acting
from tests.unit.spam_world import SpamWorld, mailbox_in_memory
from tests.unit.test_spam_actor import StubEngine, engine

__all__ = ["acting", "engine"]


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMailbox]:
    with mailbox_in_memory(monkeypatch) as made:
        yield made


@pytest.fixture
def mail(acting: Actors, box: FakeMailbox) -> SpamWorld:
    return SpamWorld(acting, box)


LEARNED = LEARNED_FROM << 29  # of a group of features that tenants learn from

# What counts as an opinion.


@pytest.mark.parametrize("target", ["Junk", "Trash"])
def test_only_a_move_to_junk_says_spam(mail: SpamWorld, target: str) -> None:
    mail.deliver(1)
    mail.sync()
    mail.move(1, "INBOX", target)
    mail.sync()
    assert mail.feedback() == ({"letter 1": (True, "move")} if target == "Junk" else {})
    assert mail.waiting() == (["learn_spam"] if target == "Junk" else [])


def test_a_move_out_of_junk_says_wanted_and_emptying_it_says_nothing(mail: SpamWorld) -> None:
    mail.deliver(1, folder="Junk")
    mail.deliver(2, folder="Junk")
    mail.sync()
    mail.move(1, "Junk", "INBOX")
    mail.move(2, "Junk", "Trash")
    mail.sync()
    assert mail.feedback() == {"letter 1": (False, "move")}


def test_a_move_is_seen_in_whichever_order_the_folders_are_synced(acting: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    with mailbox_in_memory(monkeypatch) as box:
        box._folders = dict(reversed(box._folders.items()))
        mail = SpamWorld(acting, box)
        mail.deliver(1)
        mail.sync()
        first = mail.id(1)
        mail.move(1, "INBOX", "Junk")  # Junk comes first now: the mail is in two places before it leaves one
        mail.sync()
        assert (mail.feedback(), mail.id(1)) == ({"letter 1": (True, "move")}, first)
        assert mail.verdict(1) is not None


def test_mail_that_arrives_in_junk_is_nobodys_opinion(mail: SpamWorld) -> None:
    mail.deliver(1, folder="Junk")
    mail.sync()
    assert mail.feedback() == {}


def test_of_too_many_moves_at_once_only_so_many_count(mail: SpamWorld) -> None:
    use_settings(get_settings().model_copy(update={"spam_feedback_per_hour": 3}))
    for number in range(5):
        mail.deliver(number)
    mail.sync()
    for number in range(5):
        mail.move(number, "INBOX", "Junk")
    mail.sync()
    assert len(mail.feedback()) == 3
    assert mail.folders() == {"Junk": [f"letter {number}" for number in range(5)]}


# What is learned of it.


def test_feedback_becomes_weights_and_taken_back_it_never_was(mail: SpamWorld) -> None:
    mail.deliver(1)
    mail.deliver(2)
    mail.sync()
    mail.say(1, is_spam=True)
    mail.run_waiting("learn_spam")
    alone = mail.weights()
    mail.say(2, is_spam=False)
    mail.run_waiting("learn_spam")
    both = mail.weights()
    with mail.world.record.session(mail.ann) as session:
        revision = SpamFeedbacks(session).undo(mail.ann.tenant_id, mail.id(2))
        actors.spam_learning.learn_soon(session, revision)
    mail.run_waiting("learn_spam")
    after = mail.weights()
    assert alone is not None
    assert both is not None
    assert after is not None
    assert (alone.spam_count, alone.ham_count, both.ham_count, after.ham_count) == (1, 0, 1, 0)
    assert both.weights != alone.weights == after.weights
    assert (after.revision, after.learned_revision, after.is_active) == (3, 3, False)


def test_weights_of_few_opinions_do_not_count(mail: SpamWorld) -> None:
    mail.deliver(1)
    mail.sync()
    mail.say(1, is_spam=True)
    mail.run_waiting("learn_spam")
    with mail.world.record.session(mail.ann) as session:
        assert actors.spam_rules.rules_for(session, with_engines=False).context.delta is None


def test_weights_that_won_count_for_the_tenant_alone_and_only_while_it_wants_them(mail: SpamWorld) -> None:
    mail.deliver(1)
    mail.sync()
    mail.say(1, is_spam=True)
    mail.run_waiting("learn_spam")
    with mail.world.record.session() as session:
        session.get_one(SpamWeights, mail.ann.tenant_id).is_active = True

    def has_weights(who: Identity) -> bool:
        with mail.world.record.session(who) as session:
            return actors.spam_rules.rules_for(session, with_engines=False).context.delta is not None

    people = mail.world.record.people
    assert (has_weights(people.ann), has_weights(people.bob), has_weights(people.gus)) == (True, True, False)
    with mail.world.record.session(mail.ann) as session:
        SpamChoices(session).change(mail.ann.tenant_id, {"is_learning": False})
    assert not has_weights(people.ann)


def test_weights_that_cannot_be_read_do_not_count(mail: SpamWorld) -> None:
    with mail.world.record.session() as session:
        session.add(SpamWeights(tenant_id=mail.ann.tenant_id, weights=b"\0garbage", is_active=True, trial={}))
    with mail.world.record.session(mail.ann) as session:
        assert actors.spam_rules.rules_for(session, with_engines=False).context.delta is None


def test_a_message_that_was_never_checked_is_read_before_it_is_learned(acting: Actors, box: FakeMailbox) -> None:
    mail = SpamWorld(acting, box, checks_spam=False)
    mail.deliver(1)
    gone = mail.deliver(2)
    mail.sync()
    mail.say(1, is_spam=True)
    mail.say(2, is_spam=True)
    box.expunge(gone, folder="INBOX")
    mail.run_waiting("learn_spam")
    weights = mail.weights()
    assert weights is not None
    assert (weights.spam_count, mail.verdict(1) is not None, mail.verdict(2)) == (1, True, None)
    with acting.record.session() as session:
        assert session.query(SpamFeedback).filter(SpamFeedback.hashes.is_(None)).count() == 0


def test_a_server_that_cannot_be_asked_now_keeps_back_its_messages_only(
    acting: Actors, box: FakeMailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail = SpamWorld(acting, box)
    mail.deliver(1)
    mail.deliver(2)
    mail.sync()
    with acting.record.session() as session:
        session.delete(session.get_one(SpamVerdict, (mail.ann.tenant_id, mail.id(2))))
    mail.say(1, is_spam=True)
    mail.say(2, is_spam=False)

    def down(*_arguments: object) -> None:
        raise ServerUnavailable("It cannot be asked.")

    with monkeypatch.context() as patch:
        patch.setattr(actors.spam, "fetch_sources", down)
        with pytest.raises(TransientError):
            mail.run_waiting("learn_spam")
    first = mail.weights()
    mail.call(actors.spam_learning.learn_spam)
    second = mail.weights()
    assert first is not None
    assert second is not None
    assert (first.spam_count, first.ham_count, second.spam_count, second.ham_count) == (1, 0, 1, 1)


def test_learning_belongs_to_the_tenant_whoever_of_it_says_something(mail: SpamWorld) -> None:
    mail.deliver(1)
    mail.sync()
    mail.say(1, is_spam=True)
    answer = mail.call(actors.spam_learning.learn_spam, who=mail.world.record.people.bob)
    assert answer["spam_count"] == 1
    assert mail.call(actors.spam_learning.learn_spam, who=mail.world.record.people.gus)["spam_count"] == 0


def test_nothing_said_cannot_be_taken_back(mail: SpamWorld) -> None:
    mail.deliver(1)
    mail.sync()
    with mail.world.record.session(mail.ann) as session, pytest.raises(NotFoundError):
        SpamFeedbacks(session).undo(mail.ann.tenant_id, mail.id(1))


# The engines learn, too, where the operator wants it.


def test_engines_are_taught_what_was_said(mail: SpamWorld, engine: StubEngine) -> None:
    use_settings(get_settings().model_copy(update={"spam_teach_engines": True}))
    mail.deliver(1)
    mail.sync()
    mail.say(1, is_spam=False)
    mail.run_waiting("teach_engines")
    assert engine.taught == [False]


def test_engines_are_not_taught_unless_it_is_wanted_or_what_was_taken_back(mail: SpamWorld, engine: StubEngine) -> None:
    mail.deliver(1)
    mail.sync()
    mail.say(1, is_spam=True)
    assert "teach_engines" not in mail.waiting()
    with mail.world.record.session(mail.ann) as session:
        SpamFeedbacks(session).undo(mail.ann.tenant_id, mail.id(1))
    assert mail.call(actors.spam_learning.teach_engines, mail.id(1))["engines"] == []
    assert engine.taught == []


# The trial.


def opinions(number: int, *, right: bool = True) -> list[Opinion]:
    """Half spam, half not, told apart by one feature each; the shared model takes all of them for wanted."""
    made = []
    for place in range(number):
        is_spam = place % 2 == 0
        words = (LEARNED | (7 if is_spam == right else 8), LEARNED | (100 + place))
        made.append(Opinion(b"".join(word.to_bytes(4, "little") for word in words), -2.0, is_spam))
    return made


def test_weights_count_once_they_judge_at_least_as_well_as_the_shared_model() -> None:
    few = learn_from(opinions(2 * ENOUGH - 2), threshold=0.5, budget=None)
    enough = learn_from(opinions(120), threshold=0.5, budget=None)
    assert not few.is_active
    assert enough.is_active
    assert enough.trial.tenant_errors < enough.trial.shared_errors
    assert enough.trial.tried == 100
    assert (enough.spam_count, enough.ham_count) == (60, 60)


def test_weights_that_call_wanted_mail_spam_do_not_count() -> None:
    good = learn_from(opinions(60), threshold=0.5, budget=None)
    turned = [*opinions(60), *(replace(opinion, is_spam=False) for opinion in opinions(60) if opinion.is_spam)]
    after = learn_from(turned, threshold=0.5, budget=None)
    assert good.is_active
    assert not after.is_active
    assert after.trial.tenant_false_positives > after.trial.shared_false_positives


def test_a_trial_is_lost_by_errors_and_by_false_positives() -> None:
    assert Trial(10, 3, 3, 1, 1).is_won
    assert not Trial(10, 3, 4, 1, 1).is_won
    assert not Trial(10, 3, 2, 0, 1).is_won


def test_a_budget_becomes_a_threshold_that_few_wanted_mails_only_raise() -> None:
    assert learn_from(opinions(200), threshold=0.9, budget=None).threshold is None
    few, many = (learn_from(opinions(number), threshold=0.9, budget=0.02).threshold for number in (40, 300))
    assert few == 0.9
    assert many is not None
    assert 0.5 <= many < 0.9


def test_nothing_said_is_nothing_learned() -> None:
    learned = learn_from([], threshold=0.5, budget=0.01)
    assert (learned.is_active, learned.spam_count, learned.threshold) == (False, 0, None)


def test_the_order_of_a_replay_is_the_order_in_which_it_was_said() -> None:
    said = opinions(30)
    assert (
        learn_from(said, threshold=0.5, budget=None).delta.to_bytes() == learn_from(list(said), threshold=0.5, budget=None).delta.to_bytes()
    )
