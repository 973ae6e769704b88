"""The sync ladder against a mailbox in memory: what is asked, what is yielded, and which cursor goes with it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from core.errors import TransientError
from mail import sync as sync_module
from mail.errors import FolderMissing
from mail.fake import FakeMailbox
from mail.identity import recognised
from mail.imap_reader import MAX_LITERAL
from mail.mailbox import Identity, Span, UidRanges
from mail.spans import plan_spans, windows
from mail.sync import FolderCursor, SyncBatch, sync_mailbox
from tests.unit.mail_store import Store as StoredMail

RECEIVED = datetime(2024, 1, 1, tzinfo=UTC)


class Store(StoredMail):
    """Synced with a mailbox in memory."""

    def sync(self, mailbox: FakeMailbox, **options: object) -> list[SyncBatch]:
        mailbox.commands.clear()
        self.flags_were_read = False
        return self.save_all(sync_mailbox(mailbox, self.known(), **options))  # type: ignore[arg-type]


def message(number: int) -> bytes:
    return f"Message-ID: <{number}@x.test>\r\nSubject: number {number}\r\n\r\nbody".encode()


def filled(count: int, *, condstore: bool = True, qresync: bool = False) -> FakeMailbox:
    mailbox = FakeMailbox(condstore=condstore, qresync=qresync)
    for number in range(1, count + 1):
        mailbox.append(message(number), received_at=RECEIVED + timedelta(minutes=number))
    return mailbox


def asked(mailbox: FakeMailbox) -> list[str]:
    return [command for command, _ in mailbox.commands]


both_kinds = pytest.mark.parametrize("condstore", [True, False], ids=["condstore", "plain"])
all_kinds = pytest.mark.parametrize(
    "kind", [{"condstore": False}, {"condstore": True}, {"qresync": True}], ids=["plain", "condstore", "qresync"]
)


@both_kinds
def test_a_first_sync_yields_everything_in_order_and_parsed(condstore: bool) -> None:
    batches = Store().sync(filled(5, condstore=condstore), batch_size=2)
    assert [[each.uid for each in batch.new] for batch in batches] == [[1, 2], [3, 4], [5]]
    assert batches[0].new[0].parsed.subject == "number 1"
    assert [(batch.done, batch.total) for batch in batches] == [(2, 5), (4, 5), (5, 5)]
    assert not any(batch.is_reset for batch in batches)


def test_a_folder_without_changes_is_not_opened() -> None:
    mailbox, store = filled(3), Store()
    store.sync(mailbox)
    assert store.sync(mailbox) == []
    assert asked(mailbox) == ["list_folders", "states"]


def test_without_change_numbers_flags_are_compared_and_no_body_is_fetched() -> None:
    mailbox, store = filled(3, condstore=False), Store()
    store.sync(mailbox)
    mailbox.set_flags(2, "\\Seen")
    [batch] = store.sync(mailbox)
    assert [(change.uid, change.flags) for change in batch.changed] == [(2, frozenset({"\\Seen"}))]
    assert "fetch" not in asked(mailbox)


def test_an_empty_folder_without_change_numbers_is_opened_once() -> None:
    mailbox, store = FakeMailbox(condstore=False), Store()
    assert len(store.sync(mailbox)) == 1
    assert store.sync(mailbox) == []


@all_kinds
def test_new_changed_and_vanished_messages_are_each_yielded_once(kind: dict[str, bool]) -> None:
    mailbox, store = filled(4, **kind), Store()
    store.sync(mailbox)
    mailbox.append(message(5))
    mailbox.set_flags(2, "\\Flagged")
    mailbox.expunge(3)
    changes, news = store.sync(mailbox)
    assert ([each.uid for each in changes.changed], changes.gone, [each.uid for each in news.new]) == ([2], [3], [5])
    assert store.flags["INBOX"] == {1: set(), 2: {"\\Flagged"}, 4: set(), 5: set()}
    assert ("changed_since" in asked(mailbox), "present" in asked(mailbox)) == (kind == {"condstore": True},) * 2


def test_change_numbers_spare_reading_the_stored_flags_when_nothing_vanished() -> None:
    mailbox, store = filled(3), Store()
    store.sync(mailbox)
    mailbox.append(message(4))
    mailbox.set_flags(1, "\\Seen")
    store.sync(mailbox)
    assert not store.flags_were_read
    assert "present" not in asked(mailbox)


def test_only_the_last_batch_of_a_folder_carries_the_new_change_number() -> None:
    mailbox, store = filled(2), Store()
    store.sync(mailbox)
    before = store.cursors["INBOX"].highest_modseq
    for number in range(3, 7):
        mailbox.append(message(number))
    mailbox.set_flags(1, "\\Seen")
    batches = store.sync(mailbox, batch_size=2)
    assert [batch.cursor.uid_next for batch in batches] == [3, 5, 7]
    assert [batch.cursor.highest_modseq == before for batch in batches] == [True, True, False]


def test_a_first_sync_that_is_interrupted_compares_no_flags_when_it_goes_on() -> None:
    mailbox, store = filled(6), Store()
    mailbox.lose_connection_after = 2
    with pytest.raises(TransientError):
        store.sync(mailbox, batch_size=2)
    mailbox.lose_connection_after = None
    mailbox.set_flags(1, "\\Seen")
    store.sync(mailbox, batch_size=2)
    assert "flags" not in asked(mailbox)
    assert not store.flags_were_read
    assert store.flags["INBOX"][1] == {"\\Seen"}


@all_kinds
@pytest.mark.parametrize("stored_before", [0, 7])
def test_a_folder_of_many_messages_is_listed_a_window_at_a_time(
    kind: dict[str, bool], stored_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mail.spans.WINDOW", 5)
    mailbox, store = filled(stored_before, **kind), Store()
    store.sync(mailbox)
    for number in range(100, 123):
        mailbox.append(message(number))
    for uid in range(stored_before + 3, stored_before + 9):  # holes
        mailbox.expunge(uid)
    mailbox.lose_connection_after = 3
    with pytest.raises(TransientError):
        store.sync(mailbox, batch_size=2)
    mailbox.lose_connection_after = None
    if stored_before:
        mailbox.set_flags(1, "\\Seen")
        mailbox.expunge(2)
    sync = store.sync(mailbox, batch_size=2)
    assert asked(mailbox).count("sizes") > 1
    store.sync(mailbox)  # what vanished while more than a window was new is found the next time
    assert store.flags["INBOX"] == {uid: each.flags for uid, each in mailbox._folders["INBOX"].messages.items()}
    assert [batch.cursor.uid_next for batch in sync][-1] == mailbox._folders["INBOX"].uid_next
    assert store.sync(mailbox) == [] or not kind.get("condstore", True)


def test_windows_hold_about_as_many_messages_however_their_numbers_lie() -> None:
    assert windows(5, 4, 0) == []
    assert windows(1, 2**32 - 1, 50_000) == [(1, 2**32 - 1)]
    many = windows(1, 2**32 - 1, 500_000)
    assert (len(many) in {10, 11}, many[0][0], many[-1][1]) == (True, 1, 2**32 - 1)
    assert all(following[0] == before[1] + 1 for before, following in pairwise(many))
    assert windows(1, 100_000, 100_000) == [(1, 50_000), (50_001, 100_000)]


@both_kinds
@pytest.mark.parametrize("whole_batches", [0, 1, 2])
def test_after_a_lost_connection_the_next_sync_ends_with_everything(condstore: bool, whole_batches: int) -> None:
    mailbox, store = filled(6, condstore=condstore), Store()
    mailbox.lose_connection_after = whole_batches
    with pytest.raises(TransientError):
        store.sync(mailbox, batch_size=2)
    mailbox.lose_connection_after = None
    stored = set(store.flags.get("INBOX", {}))
    assert len(stored) == whole_batches * 2
    mailbox.set_flags(1, "\\Seen")
    mailbox.expunge(2)
    batches = store.sync(mailbox, batch_size=2)
    assert not stored & {each.uid for batch in batches for each in batch.new}
    assert store.flags["INBOX"] == {1: {"\\Seen"}, 3: set(), 4: set(), 5: set(), 6: set()}


@both_kinds
def test_what_happens_during_a_sync_is_seen_by_the_next(condstore: bool) -> None:
    mailbox, store = filled(4, condstore=condstore), Store()

    def somebody_else() -> None:
        mailbox.during_fetch = None
        mailbox.append(message(5))
        mailbox.set_flags(1, "\\Seen")
        mailbox.expunge(4)

    mailbox.during_fetch = somebody_else
    store.sync(mailbox, batch_size=3)
    store.sync(mailbox)
    assert store.flags["INBOX"] == {1: {"\\Seen"}, 2: set(), 3: set(), 5: set()}


@all_kinds
def test_another_uidvalidity_keeps_what_is_recognised_and_fetches_the_rest(kind: dict[str, bool]) -> None:
    mailbox, store = filled(5, **kind), Store()
    store.sync(mailbox)
    rows = {store.identities["INBOX"][uid].message_id: row for uid, row in store.rows["INBOX"].items()}
    mailbox.expunge(2)
    mailbox.append(message(6))
    mailbox.change_uid_validity()
    mailbox.set_flags(3, "\\Seen")
    first, second = store.sync(mailbox)
    assert (first.is_reset, first.kept, first.new, [each.uid for each in first.changed]) == (True, {1: 1, 3: 2, 4: 3, 5: 4}, [], [3])
    assert (second.is_reset, second.kept, [each.uid for each in second.new]) == (False, {}, [5])
    assert store.flags["INBOX"] == {1: set(), 2: set(), 3: {"\\Seen"}, 4: set(), 5: set()}
    after = {store.identities["INBOX"][uid].message_id: row for uid, row in store.rows["INBOX"].items()}
    assert {key: after[key] for key in after if key in rows} == {key: row for key, row in rows.items() if key != "<2@x.test>"}
    if kind != {"condstore": False}:
        assert store.sync(mailbox) == []


@all_kinds
def test_messages_that_could_be_taken_for_each_other_are_fetched_again(kind: dict[str, bool]) -> None:
    mailbox, store = FakeMailbox(**kind), Store()
    nameless = b"Subject: x\r\n\r\n"
    for raw, minute in ((message(1), 1), (message(1), 1), (nameless, 2), (nameless, 3), (nameless, 3), (message(2), 4)):
        mailbox.append(raw, received_at=RECEIVED + timedelta(minutes=minute))
    store.sync(mailbox)
    mailbox.change_uid_validity()
    first, second = store.sync(mailbox)
    assert first.kept == {3: 3, 6: 6}
    assert [each.uid for each in second.new] == [1, 2, 4, 5]


@pytest.mark.parametrize(
    "other",
    [
        Identity(9, "<b@x>", RECEIVED, 10),
        Identity(9, "<a@x>", RECEIVED, 11),
        Identity(9, "<a@x>", RECEIVED + timedelta(seconds=1), 10),
        Identity(9, None, RECEIVED, 10),
        Identity(9, "<a@x>", None, 10),
    ],
)
def test_a_message_is_recognised_by_everything_that_is_known_of_it(other: Identity) -> None:
    stored = Identity(1, "<a@x>", RECEIVED, 10)
    assert recognised([stored], [other]) == recognised([other], [stored]) == recognised([other, stored], [stored, stored]) == {}
    assert recognised([stored, other], [replace(stored, uid=5, received_at=RECEIVED + timedelta(milliseconds=300))]) == {1: 5}


def test_a_full_sync_of_a_renumbered_folder_keeps_what_it_fetches_again() -> None:
    mailbox, store = filled(3), Store()
    store.sync(mailbox)
    rows = dict(store.rows["INBOX"])
    mailbox.change_uid_validity()
    first, second = store.sync(mailbox, full=True)
    assert (first.kept, [each.uid for each in second.new]) == ({1: 1, 2: 2, 3: 3}, [1, 2, 3])
    assert store.rows["INBOX"] == rows


def test_a_store_that_tells_no_identities_gets_everything_again() -> None:
    mailbox, store = filled(3), Store()
    store.sync(mailbox)
    store.identities["INBOX"].clear()
    mailbox.change_uid_validity()
    batches = store.sync(mailbox, batch_size=2)
    assert [(batch.is_reset, len(batch.new), batch.kept) for batch in batches] == [(True, 2, {}), (False, 1, {})]
    assert not store.flags_were_read


@all_kinds
@pytest.mark.parametrize("whole_batches", [0, 1, 2])
def test_a_reset_that_ends_early_goes_on_where_it_was(kind: dict[str, bool], whole_batches: int) -> None:
    mailbox, store = filled(6, **kind), Store()
    store.sync(mailbox)
    for uid in (2, 4, 5):
        del store.identities["INBOX"][uid]
    for uid in (2, 4, 5):
        del store.flags["INBOX"][uid], store.rows["INBOX"][uid]
    mailbox.change_uid_validity()
    mailbox.lose_connection_after = whole_batches
    with pytest.raises(TransientError):
        store.sync(mailbox, batch_size=1)
    assert {1, 3, 6} <= set(store.flags["INBOX"])
    mailbox.lose_connection_after = None
    mailbox.set_flags(6, "\\Seen")
    mailbox.expunge(3)
    batches = store.sync(mailbox, batch_size=1)
    fetched = [each.uid for batch in batches for each in batch.new]
    assert fetched == [2, 4, 5][whole_batches:]
    assert store.flags["INBOX"] == {1: set(), 2: set(), 4: set(), 5: set(), 6: {"\\Seen"}}


@pytest.mark.parametrize("looks_up", [True, False])
def test_a_few_vanished_messages_are_looked_up_and_the_folder_is_not_read(looks_up: bool) -> None:
    mailbox, store = filled(6, qresync=True), Store()
    store.looks_up = looks_up
    store.sync(mailbox)
    mailbox.expunge(3)
    mailbox.expunge(5)
    [batch] = store.sync(mailbox)
    assert batch.gone == [3, 5]
    assert store.flags_were_read is not looks_up
    assert "present" not in asked(mailbox)


def test_where_very_many_vanished_the_folder_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "_FEW", 1)
    mailbox, store = filled(6, qresync=True), Store()
    store.sync(mailbox)
    mailbox.expunge(3)
    mailbox.expunge(5)
    assert [batch.gone for batch in store.sync(mailbox)] == [[3, 5]]
    assert store.flags_were_read


def test_a_server_that_tells_the_wrong_vanished_messages_is_asked_for_those_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox, store = filled(4, qresync=True), Store()
    store.sync(mailbox)
    mailbox.expunge(3)
    mailbox._folders["INBOX"].vanished = {900: 99, 901: 99}
    [batch] = store.sync(mailbox)
    assert batch.gone == [3]
    assert "present" in asked(mailbox)
    mailbox.set_flags(1, "\\Seen")
    mailbox._folders["INBOX"].vanished = {2: 99}  # which is still there
    [batch] = store.sync(mailbox)
    assert batch.gone == []


def test_a_smaller_uidvalidity_is_another_one_too() -> None:
    mailbox, store = filled(1), Store()
    store.sync(mailbox)
    store.cursors["INBOX"] = FolderCursor(99, 2, store.cursors["INBOX"].highest_modseq)
    assert store.sync(mailbox)[0].is_reset


def test_uids_that_fell_back_are_a_reset() -> None:
    mailbox, store = filled(1), Store()
    store.sync(mailbox)
    store.cursors["INBOX"] = FolderCursor(1, 50, store.cursors["INBOX"].highest_modseq)
    assert store.sync(mailbox)[0].is_reset


def test_a_reset_folder_that_is_empty_now_is_still_reset() -> None:
    mailbox, store = filled(1), Store()
    store.sync(mailbox)
    mailbox.expunge(1)
    mailbox.change_uid_validity()
    [batch] = store.sync(mailbox)
    assert (batch.is_reset, batch.kept) == (True, {})
    assert store.flags["INBOX"] == {}


def test_a_full_sync_fetches_all_again_and_drops_what_is_gone() -> None:
    mailbox, store = filled(3), Store()
    store.sync(mailbox)
    mailbox.expunge(2)
    batches = store.sync(mailbox, full=True)
    assert [each.uid for batch in batches for each in batch.new] == [1, 3]
    assert [uid for batch in batches for uid in batch.gone] == [2]


def test_one_folder_can_be_asked_for() -> None:
    mailbox = filled(1)
    mailbox.add_folder("Sent", role="sent")
    mailbox.append(message(1), folder="Sent")
    assert [batch.folder.name for batch in Store().sync(mailbox, folder="Sent")] == ["Sent"]


def test_a_folder_that_is_not_there_is_missing() -> None:
    with pytest.raises(FolderMissing):
        Store().sync(FakeMailbox(), folder="Nowhere")


def test_folders_that_only_hold_others_are_passed_over() -> None:
    mailbox = FakeMailbox()
    mailbox.add_folder("Archive", selectable=False)
    assert [batch.folder.name for batch in Store().sync(mailbox)] == ["INBOX"]


def test_a_folder_that_vanishes_meanwhile_does_not_stop_the_others() -> None:
    mailbox = FakeMailbox()
    mailbox.add_folder("Gone")
    mailbox.add_folder("Kept")
    folders = mailbox.list_folders()
    mailbox.remove_folder("Gone")
    assert [batch.folder.name for batch in sync_mailbox(mailbox, {}, folders=folders)] == ["INBOX", "Kept"]
    with pytest.raises(FolderMissing):
        list(sync_mailbox(mailbox, {}, folders=folders, folder="Gone"))


def test_a_message_too_large_for_memory_comes_as_its_header() -> None:
    mailbox = FakeMailbox()
    mailbox.append(message(1))
    mailbox.append(message(2), size=MAX_LITERAL + 1)
    mailbox.append(message(3))
    batches = Store().sync(mailbox)
    assert [[each.uid for each in batch.new] for batch in batches] == [[1], [2], [3]]
    large = batches[1].new[0]
    assert (large.parsed.subject, large.parsed.text, large.parsed.size) == ("number 2", "", MAX_LITERAL + 1)
    assert "oversized" in large.parsed.defects


def test_spans_are_bounded_by_count_and_by_bytes() -> None:
    assert plan_spans([(1, 1), (5, 1), (9, 1)], batch_size=2) == [Span(1, 5), Span(9, 9)]
    assert plan_spans([(1, 60), (2, 60), (3, 10)], batch_size=9, max_bytes=100) == [Span(1, 1), Span(2, 3)]
    assert plan_spans([], batch_size=9) == []
    assert plan_spans([(1, 1), (5, 1), (9, 1)], batch_size=2, has_holes=True) == [Span(1, 5, uids=(1, 5)), Span(9, 9, uids=(9,))]
    assert len(plan_spans([(uid, 1) for uid in range(1, 1002)], batch_size=5000, has_holes=True)) == 3


def test_ranges_of_uids_are_never_expanded() -> None:
    ranges = UidRanges([(7, 7), (1, 3), (4_000_000_000, 10)])
    assert [uid for uid in range(12) if uid in ranges] == [1, 2, 3, 7, 10, 11]
    assert "7" not in ranges
    assert ranges.named(1000) is None
    assert UidRanges([(7, 7), (3, 1), (2, 4)]).named(10) == [1, 2, 3, 4, 7]
