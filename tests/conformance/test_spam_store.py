"""Verdicts, feedback, weights, settings and lists on both databases; and every query of them tried from another tenant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from core.errors import NotFoundError, TenantError
from core.ids import new_id
from mail.folder_names import RemoteFolder
from mail.spam.senders import SenderLists
from mail.spam.trial import learn_from
from mail.spam.verdict import Contribution, EngineScore, Indicator, Severity, Verdict
from storage.models import SpamFeedback, SpamListEntry, SpamSettings, SpamVerdict, SpamWeights
from storage.repositories.mail_views import MailViews
from storage.repositories.places import Move
from storage.repositories.spam_choices import SpamChoices
from storage.repositories.spam_feedback import SpamFeedbacks
from storage.repositories.spam_verdicts import SpamVerdicts
from tests.conformance.test_mail_store import Account, letter, remote
from tests.toys import Record, together

TABLES = (SpamVerdict, SpamFeedback, SpamSettings, SpamWeights, SpamListEntry)
HAM = Verdict(0.125, False, 0.5, (), (), b"\1\0\0\x80", -2.0)
SPAM = Verdict(
    0.96875,
    True,
    0.5,
    (Indicator("ip_url", Severity.HIGH, "it's \\ \t 'quoted'\nünd"),),
    (Contribution("word:x", 0.5),),
    b"\0\n\\\t\xff\xfe\0\x80",
    3.5,
    engines=(EngineScore("rspamd", 12.5, 15.0, ("A", "B")),),
    notes=("truncated",),
)
only_postgres = pytest.mark.parametrize("database", ["postgres"], indirect=True)


class Anns(Account):
    """Two messages in INBOX, the first of them judged as spam and said to be none."""

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self.match(remote(), remote("Archive"), RemoteFolder("Junk", "Junk", "/", "junk"))
        self.store({1: letter("one"), 2: letter("two")})
        ids = self.ids()
        self.one, self.two = ids[1], ids[2]
        self.tenant = self.ann.tenant_id
        with record.session(self.ann) as session:
            SpamVerdicts(session).keep_new(self.tenant, {self.one: SPAM}, "model-1")
            SpamChoices(session).add_entry(self.tenant, "block", "spam.test")
            SpamChoices(session).change(self.tenant, {"moves_junk": True})
            SpamFeedbacks(session).record(self.tenant, {self.one: False}, via="api", per_hour=10)


@pytest.fixture
def anns(record: Record) -> Anns:
    return Anns(record)


def snapshot(record: Record) -> list[Any]:
    with record.session() as session:
        return [tuple(row) for model in TABLES for row in session.execute(select(model.__table__))]


def test_a_verdict_comes_back_as_it_was_and_a_later_one_takes_its_place(record: Record, anns: Anns) -> None:
    with record.session(anns.ann) as session:
        verdicts = SpamVerdicts(session)
        verdicts.keep_new(anns.tenant, {anns.one: HAM}, "model-2")  # it has one: that stays
        row = verdicts.of([anns.one])[anns.one]
    assert (row.score, row.is_spam, row.logit, row.hashes, row.notes, row.model) == (
        0.96875,
        True,
        3.5,
        SPAM.hashes,
        ["truncated"],
        "model-1",
    )
    assert row.indicators == [{"code": "ip_url", "severity": "high", "evidence": "it's \\ \t 'quoted'\nünd"}]
    assert row.engines == [{"engine": "rspamd", "score": 12.5, "required": 15.0, "symbols": ["A", "B"]}]
    assert (row.contributions, row.source) == ([{"name": "word:x", "weight": 0.5}], "engines")
    with record.session(anns.ann) as session:
        assert SpamVerdicts(session).junking([anns.one]) == []  # somebody said that it is none
        assert SpamVerdicts(session).put({anns.one: HAM, anns.two: SPAM, new_id(): HAM}, "model-2") == {anns.one, anns.two}
        assert SpamVerdicts(session).junking([anns.one, anns.two]) == [anns.two]
        assert SpamVerdicts(session).put({anns.two: SPAM}, "model-3") == {anns.two}
    with record.session(anns.ann) as session:
        found = SpamVerdicts(session).of([anns.one, anns.two])
        assert SpamVerdicts(session).counts() == {"checked": 2, "spam": 1, "junked": 1}
    assert (found[anns.one].is_spam, found[anns.one].source, found[anns.one].model) == (False, "embedded", "model-2")
    assert found[anns.one].created_at >= row.created_at
    assert found[anns.two].junked_at is not None  # a later check does not make the move somebody else's


def test_a_verdict_goes_with_its_message(record: Record, anns: Anns) -> None:
    with record.session() as session:
        session.execute(text("DELETE FROM email_messages WHERE id = :id"), {"id": anns.one})
    assert record.count(SpamVerdict) == 0
    assert record.count(SpamFeedback) == 1  # what was learned from it stays


def test_unchecked_messages_are_listed_and_counted_page_by_page(record: Record, anns: Anns) -> None:
    anns.store({number: letter(str(number)) for number in range(10, 15)}, folder="Archive")
    there, archive = sorted([anns.two, *anns.ids("Archive").values()]), anns.folder_ids()["Archive"]
    with record.session(anns.ann) as session:
        verdicts = SpamVerdicts(session)
        assert verdicts.count_unchecked(anns.id, None) == 6
        first = verdicts.unchecked(anns.id, None, limit=4)
        rest = verdicts.unchecked(anns.id, None, before=first[-1].position, limit=4)
        assert sorted(each.id for each in [*first, *rest]) == there
        assert verdicts.count_unchecked(anns.id, archive) == len(verdicts.unchecked(anns.id, archive)) == 5
    place = next(each for each in [*first, *rest] if each.id == anns.two)
    assert (place.folder_name, place.role, place.uid, place.sender) == ("INBOX", "inbox", 2, "bob@globex.test")


def test_only_moves_to_and_from_junk_are_opinions(record: Record, anns: Anns) -> None:
    folders = anns.folder_ids()

    def moved(left: str, arrived: str) -> list[str]:
        with record.session(anns.ann) as session:
            return SpamFeedbacks(session).moved(anns.tenant, [Move(anns.two, folders[left], folders[arrived])], per_hour=10).recorded

    assert moved("INBOX", "Archive") == []
    assert moved("INBOX", "Junk") == [anns.two]
    assert moved("INBOX", "Junk") == []  # again: nothing new
    assert moved("Junk", "Archive") == [anns.two]
    with record.session(anns.ann) as session:
        assert SpamFeedbacks(session).of([anns.two])[anns.two].is_spam is False
        assert SpamFeedbacks(session).counts() == {"spam": 0, "ham": 2, "missed": 0, "false_positives": 1}


def test_what_was_called_wanted_may_leave_junk_until_that_is_taken_back(record: Record, anns: Anns) -> None:
    with record.session(anns.ann) as session:
        feedback = SpamFeedbacks(session)
        feedback.record(anns.tenant, {anns.two: True}, via="api", per_hour=10)
        assert feedback.called_wanted([anns.one, anns.two, new_id()]) == [anns.one]
        feedback.undo(anns.tenant, anns.one)
        assert feedback.called_wanted([anns.one, anns.two]) == []
        feedback.record(anns.tenant, {anns.two: False}, via="api", per_hour=10)
        assert feedback.called_wanted([anns.one, anns.two]) == [anns.two]


def test_the_store_tells_which_mail_moved_whichever_folder_is_seen_first(record: Record, anns: Anns) -> None:
    raw = letter("wanderer", number=7001)
    anns.store({3: raw})
    first, folders = anns.ids()[3], anns.folder_ids()
    assert anns.store({30: raw}, folder="Junk").moves == []  # in both, for a while
    assert anns.store(gone=[3]).moves == [Move(first, folders["INBOX"], folders["Junk"])]
    assert anns.store(gone=[30], folder="Junk").moves == []
    assert anns.store({31: raw}, folder="Archive").moves == [Move(first, folders["Junk"], folders["Archive"])]
    assert list(anns.store({9: letter("new")}).added) == [9]


def test_what_was_said_is_learned_in_its_order_and_what_was_taken_back_is_not(record: Record, anns: Anns) -> None:
    with record.session(anns.ann) as session:
        feedback, choices = SpamFeedbacks(session), SpamChoices(session)
        assert feedback.record(anns.tenant, {anns.two: True}, via="move", per_hour=10).revision == 0
        assert feedback.unread(anns.tenant) == [anns.two]  # it was never checked
        SpamVerdicts(session).put({anns.two: SPAM}, None)
        feedback.read(anns.tenant, [anns.two])
        said = feedback.to_learn(anns.tenant)
        assert [(row.email_id, row.is_spam, row.logit) for row in said] == [(anns.one, False, 3.5), (anns.two, True, 3.5)]
        choices.learned(choices.locked_weights(anns.tenant), learn_from([], threshold=0.5, budget=None))
    with record.session(anns.ann) as session:
        assert SpamFeedbacks(session).undo(anns.tenant, anns.one) == 2
        assert [row.email_id for row in SpamFeedbacks(session).to_learn(anns.tenant)] == [anns.two]
        weights = SpamChoices(session).weights(anns.tenant)
        assert weights is not None
        assert (weights.revision, weights.learned_revision) == (3, 2)


def test_opinions_that_come_at_once_are_all_counted(record: Record, anns: Anns) -> None:
    anns.store({number: letter(str(number)) for number in range(20, 28)})
    ids = [row_id for uid, row_id in anns.ids().items() if uid >= 20]

    def say(email_id: str) -> Callable[[], object]:
        def saying() -> object:
            with record.session(anns.ann) as session:
                return SpamFeedbacks(session).record(anns.tenant, {email_id: True}, via="api", per_hour=5)

        return saying

    together(*[say(email_id) for email_id in [*ids, ids[0]]])
    with record.session() as session:
        weights = session.scalars(select(SpamWeights)).one()
    assert (record.count(SpamFeedback), weights.revision) == (5, 5)  # of which one was said before


def test_settings_and_lists_are_set_once_for_all_users(record: Record, anns: Anns) -> None:
    for who in (anns.ann, record.people.bob):
        with record.session(who) as session:
            choices = SpamChoices(session)
            assert choices.settings(anns.tenant).moves_junk is True
            assert choices.lists(anns.tenant) == SenderLists(frozenset(), frozenset({"spam.test"}))
    with record.session(record.people.bob) as session:
        choices = SpamChoices(session)
        choices.change(anns.tenant, {"threshold": 0.75, "brands": {"acme": ["acme.test"]}})
        entry = choices.add_entry(anns.tenant, "allow", "Spam.Test")
        assert choices.lists(anns.tenant) == SenderLists(frozenset({"spam.test"}), frozenset())
        settings = choices.all(anns.tenant).settings
        assert (settings.threshold, settings.moves_junk, settings.brands) == (0.75, True, {"acme": ["acme.test"]})
        choices.remove_entry(entry.id)
        assert len(choices.lists(anns.tenant)) == 0
    with record.session(record.people.globex) as session:
        settings = SpamChoices(session).settings(record.people.globex.tenant_id)
        assert (settings.threshold, settings.moves_junk, settings.is_learning) == (None, False, True)


Attempt = Callable[[Session, Anns], object]
READS: dict[str, Attempt] = {
    "of": lambda s, a: SpamVerdicts(s).of([a.one]),
    "shown": lambda s, a: SpamVerdicts(s).shown([a.one]),
    "to_check": lambda s, a: SpamVerdicts(s).to_check([a.one]),
    "verdict counts": lambda s, a: SpamVerdicts(s).counts()["checked"],
    "is_spam": lambda s, a: MailViews(s).messages(None, None, None, is_spam=True),
    "feedback": lambda s, a: SpamFeedbacks(s).of([a.one]),
    "to_learn": lambda s, a: SpamFeedbacks(s).to_learn(a.tenant),
    "called_wanted": lambda s, a: SpamFeedbacks(s).called_wanted([a.one]),
    "unread": lambda s, a: SpamFeedbacks(s).unread(a.tenant),
    "feedback counts": lambda s, a: SpamFeedbacks(s).counts()["ham"],
    "settings": lambda s, a: SpamChoices(s).settings(a.tenant).moves_junk,
    "lists": lambda s, a: SpamChoices(s).lists(a.tenant),
    "entries": lambda s, a: SpamChoices(s).entries(None),
    "weights": lambda s, a: SpamChoices(s).weights(a.tenant),
}
OF_USERS = ("to_check", "is_spam")
REFUSED: dict[str, Attempt] = {
    "unchecked": lambda s, a: SpamVerdicts(s).unchecked(a.id, None),
    "count_unchecked": lambda s, a: SpamVerdicts(s).count_unchecked(a.id, None),
}
WRITES: dict[str, Attempt] = {
    "put": lambda s, a: SpamVerdicts(s).put({a.one: HAM}, None),
    "junking": lambda s, a: SpamVerdicts(s).junking([a.two]),
    "not_junked": lambda s, a: SpamVerdicts(s).not_junked([a.two]),
    "keep_new": lambda s, a: SpamVerdicts(s).keep_new(a.tenant, {a.two: HAM}, None),
    "read": lambda s, a: SpamFeedbacks(s).read(a.tenant, [a.one]),
    "record": lambda s, a: SpamFeedbacks(s).record(a.tenant, {a.two: True}, via="api", per_hour=10),
    "undo": lambda s, a: SpamFeedbacks(s).undo(a.tenant, a.one),
    "change": lambda s, a: SpamChoices(s).change(a.tenant, {"moves_junk": False}),
    "add_entry": lambda s, a: SpamChoices(s).add_entry(a.tenant, "allow", "spam.test"),
    "locked_weights": lambda s, a: SpamChoices(s).locked_weights(a.tenant),
}


def test_nothing_of_anns_is_found(record: Record, anns: Anns) -> None:
    with record.session(anns.ann) as session:
        session.execute(text("UPDATE spam_feedback SET hashes = hashes"))
        assert [name for name, attempt in READS.items() if not attempt(session, anns)] == ["unread"]
    for stranger in (record.people.globex, record.people.gus):
        with record.session(stranger) as session:
            assert [name for name, attempt in READS.items() if attempt(session, anns)] == []
            for name, attempt in REFUSED.items():
                with pytest.raises(NotFoundError):
                    attempt(session, anns)
                assert name
    with record.session(record.people.bob) as session:
        assert [name for name in OF_USERS if READS[name](session, anns)] == []


def test_nothing_of_anns_is_changed(record: Record, anns: Anns) -> None:
    with record.session(anns.ann) as session:
        SpamVerdicts(session).put({anns.two: replace(SPAM, engines=())}, None)
    before = snapshot(record)
    for stranger in (record.people.globex, record.people.gus):
        for name, attempt in WRITES.items():
            try:
                with record.session(stranger) as session:
                    attempt(session, anns)
            except (TenantError, NotFoundError):
                pass
            assert snapshot(record) == before, name


@only_postgres
def test_the_database_itself_shows_no_other_tenants_rows(record: Record, anns: Anns) -> None:
    for who, is_shown in ((anns.ann, True), (record.people.globex, False)):
        with record.session(who) as session:
            assert [bool(session.execute(select(model.__table__)).all()) for model in TABLES] == [is_shown] * len(TABLES)
