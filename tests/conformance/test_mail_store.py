"""Storing what sync yields, on both databases: batches, where mails are, conversations, words and sources."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from sqlalchemy import text as sql

from core.clock import now
from mail.folder_names import RemoteFolder
from mail.mailbox import Identity as Mail
from mail.mime import parse_message
from mail.sync import FetchedMessage, FlagsChanged, FolderCursor, SyncBatch
from storage.models import EmailAttachment, EmailClient, EmailFolder, EmailMessage, EmailSource, ThreadLink
from storage.repositories.mail_views import MailViews
from storage.repositories.messages import Changes, EmailFolders, EmailMessages
from tests.toys import Record

RECEIVED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_numbers = itertools.count(1)


def letter(text: str = "", *, number: int | None = None, refers_to: str = "", message_id: str | None = None) -> bytes:
    own = f"<{next(_numbers) if number is None else number}@x>" if message_id is None else message_id
    head = [f"Message-ID: {own}"] if own else []
    head += [f"References: {refers_to}"] if refers_to else []
    return "\r\n".join([*head, "From: Bob <bob@globex.test>", "To: ann@acme.test", f"Subject: {text or own}", "", f"body {text}"]).encode()


def remote(name: str = "INBOX", remote_id: str | None = None) -> RemoteFolder:
    return RemoteFolder(name, name, "/", "inbox" if name == "INBOX" else None, True, remote_id)


class Account:
    """Ann's account, stored into and looked at as the sync and the API do."""

    def __init__(self, record: Record) -> None:
        self.record, self.ann = record, record.people.ann
        with record.session(self.ann) as session:
            client = EmailClient(
                tenant_id=self.ann.tenant_id, user_id=self.ann.user_id, name="a", email="ann@acme.test", imap_host="imap.test"
            )
            session.add(client)
            session.flush()
            self.id = client.id
        self.match(remote(), remote("Archive"))

    def match(self, *folders: RemoteFolder) -> int:
        with self.record.session(self.ann) as session:
            return EmailFolders(session).match(self.id, folders)

    def store(
        self,
        new: dict[int, bytes] | None = None,
        *,
        folder: str = "INBOX",
        gone: Iterable[int] = (),
        flags: dict[int, set[str]] | None = None,
        validity: int = 1,
        is_reset: bool = False,
        kept: dict[int, int] | None = None,
        keep_source: bool = False,
        remote_ids: dict[int, str] | None = None,
    ) -> Changes:
        fetched = [
            FetchedMessage(uid, frozenset(), RECEIVED, len(raw), parse_message(raw), raw, remote_id=(remote_ids or {}).get(uid))
            for uid, raw in (new or {}).items()
        ]
        changed = [FlagsChanged(uid, frozenset(each)) for uid, each in (flags or {}).items()]
        batch = SyncBatch(
            remote(folder), validity, is_reset, fetched, changed, list(gone), FolderCursor(validity, 99, 7), 1, 1, kept=kept or {}
        )
        with self.record.session(self.ann) as session:
            return EmailMessages(session).store(self.id, batch, keep_source=keep_source)

    def rows(self, folder: str | None = None) -> dict[int, EmailMessage]:
        """The visible messages of a folder by UID."""
        with self.record.session(self.ann) as session:
            own = select(EmailMessage).join(EmailFolder, EmailFolder.id == EmailMessage.folder_id)
            found = session.scalars(own.where(EmailFolder.name == (folder or "INBOX"), EmailMessage.vanished_at.is_(None)))
            return {row.uid: row for row in found}

    def ids(self, folder: str | None = None) -> dict[int, str]:
        return {uid: row.id for uid, row in self.rows(folder).items()}

    def folder(self, name: str = "INBOX") -> EmailFolder:
        with self.record.session(self.ann) as session:
            return session.scalars(select(EmailFolder).where(EmailFolder.client_id == self.id, EmailFolder.name == name)).one()

    def folder_ids(self) -> dict[str, str]:
        with self.record.session(self.ann) as session:
            return {folder.name: folder.id for folder in EmailFolders(session).of(self.id)}

    def found(self, query: str) -> list[str]:
        with self.record.session(self.ann) as session:
            return sorted(stored.message.subject for stored in MailViews(session).messages(None, None, query))

    def counts(self) -> tuple[int, int, int]:
        """What is counted, listed and known: never what has vanished."""
        with self.record.session(self.ann) as session:
            messages, views = EmailMessages(session), MailViews(session)
            folders = EmailFolders(session).of(self.id)
            known = sum(len(messages.flags_by_uid(folder.id, folder.uid_validity or 0)) for folder in folders)
            among = [messages.uids_among(folder.id, folder.uid_validity or 0, range(1, 1000)) for folder in folders]
            assert known == sum(map(len, among))
            assert known == sum(folder.message_count for folder in folders)
            assert views.message_counts().get(self.id, 0) == messages.count(self.id)
            return messages.count(self.id), len(views.messages(self.id, None, None)), known


@pytest.fixture
def account(record: Record) -> Account:
    return Account(record)


# -- batches ----------------------------------------------------------------------------------------------------------------------


def test_a_batch_is_stored_whole_and_a_second_time_changes_nothing(account: Account) -> None:
    tricky = b'Message-ID: <t@x>\r\nSubject: tab\there \\N \\. "q"\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n'
    tricky += b"--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nline\\one\r\n\ttwo\xe2\x80\xa8\xc2\x85\x1f\r\n"
    tricky += b"--b\r\nContent-Type: x/y; name=f\r\nContent-ID: <c>\r\n\r\nABC\r\n--b--\r\n"
    new = {1: tricky, 2: letter("two"), 3: b""}
    assert account.store(new) == Changes(3, 0, 0)
    assert account.store(new) == Changes(0, 0, 0)
    row, parsed = account.rows()[1], parse_message(tricky)
    assert (row.subject, row.body_text, row.headers) == (parsed.subject, parsed.text, [list(pair) for pair in parsed.headers])
    assert (row.internal_date, row.sender, row.flags, row.message_id, row.size) == (RECEIVED, None, [], "<t@x>", len(tricky))
    assert row.created_at > now() - timedelta(minutes=1)
    with account.record.session(account.ann) as session:
        (file,) = session.scalars(select(EmailAttachment))
        assert (file.email_id, file.filename, file.size, file.content_id) == (row.id, "f", 3, "c")
    folder = account.folder()
    assert (folder.message_count, folder.uid_validity, folder.uid_next, folder.highest_modseq) == (3, 1, 99, 7)
    assert account.counts() == (3, 3, 3)


def test_flags_of_many_messages_are_changed_and_only_real_changes_counted(account: Account) -> None:
    account.store({uid: letter() for uid in range(1, 8)}, flags={1: {"\\Seen"}})
    wanted = {uid: {"\\Seen", "\\Flagged"} if uid > 5 else {"\\Seen"} for uid in range(1, 9)}
    assert account.store(flags=wanted) == Changes(0, 6, 0)
    assert {uid: row.flags for uid, row in account.rows().items()} == {uid: sorted(wanted[uid]) for uid in range(1, 8)}


def test_the_cursor_stays_when_the_batch_fails(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("storage.repositories.messages.attachment_row", fails)
    monkeypatch.setattr("storage.repositories.messages.EmailMessages._set_flags", fails)
    with pytest.raises(RuntimeError):
        account.store({1: letter()})
    assert (account.folder().uid_next, account.ids()) == (None, {})


def test_what_a_stranger_can_write_is_storable(account: Account) -> None:
    incompressible = "".join(chr(0x10000 + number * number * 7919 % 0xF000) for number in range(890))
    hostile = [incompressible, "x" * 5000, "\ud800", "\x00"]
    new = {}
    for uid, text in enumerate(hostile, 1):
        raw = text.encode("utf-8", "surrogatepass")
        fields = (b"Message-ID: <%s@x>", b"In-Reply-To: <%s@x>", b"References: <%s@x>", b"From: %s <%s@x>", b"Subject: %s", b"To: %s@x")
        new[uid] = b"\r\n".join(field.replace(b"%s", raw) for field in fields) + b"\r\n\r\n" + raw
    words = " ".join(f"word{number}" for number in range(60_000)).encode()
    assert account.store({**new, 9: b"Subject: long\r\n\r\n" + words + b" " + b"y" * 3000}).synced == len(hostile) + 1


def test_identities_are_those_of_what_is_there(account: Account) -> None:
    raw = letter(number=501)
    account.store({1: raw, 2: letter(message_id=""), 3: letter()})
    account.store(gone=[3])
    with account.record.session(account.ann) as session:
        messages, folder = EmailMessages(session), account.folder()
        first, second = messages.identities(folder.id, 1)
        assert first == Mail(1, "<501@x>", RECEIVED, len(raw))
        assert (second.uid, second.message_id) == (2, None)
        assert messages.identities(folder.id, 2) == []


# -- where mails are --------------------------------------------------------------------------------------------------------------


def test_what_is_gone_is_shown_to_nobody_and_forgotten_later(account: Account) -> None:
    account.store({1: letter("apple"), 2: letter("pear")}, keep_source=True)
    assert account.found("body") == ["apple", "pear"]
    gone = account.ids()[1]
    assert account.store(gone=[1, 7]) == Changes(0, 0, 1)
    assert account.store(gone=[1]) == Changes(0, 0, 0)
    assert account.counts() == (1, 1, 1)
    assert account.found("body") == ["pear"]
    assert account.found("apple") == []
    with account.record.session(account.ann) as session:
        assert session.get_one(EmailMessage, gone).vanished_at is not None
        assert EmailMessages(session).forget_vanished(account.id, now() - timedelta(hours=1)) == 0
        assert EmailMessages(session).forget_vanished(account.id, now() + timedelta(hours=1)) == 1
    assert (account.record.count(EmailMessage), account.record.count(EmailSource)) == (1, 1)


def test_forgetting_goes_in_bounded_steps(account: Account) -> None:
    account.store({uid: letter() for uid in range(1, 8)})
    account.store(gone=range(1, 8))
    with account.record.session(account.ann) as session:
        steps = [EmailMessages(session).forget_vanished(account.id, now() + timedelta(hours=1), limit=3) for _ in range(4)]
    assert steps == [3, 3, 1, 0]


@pytest.mark.parametrize("message_id", [None, "", "<a\"b\\c,{NULL}'%s@x>"], ids=["with Message-ID", "without", "an odd one"])
@pytest.mark.parametrize("order", ["gone first", "seen first"])
def test_a_moved_mail_keeps_its_row(account: Account, order: str, message_id: str | None) -> None:
    raw = letter("moved", message_id=message_id)
    account.store({1: raw, 2: letter()})
    before = account.rows()[1]
    if order == "gone first":
        account.store(gone=[1])
        account.store({9: raw}, folder="Archive")
    else:
        account.store({9: raw}, folder="Archive", flags={9: {"\\Seen"}})
        assert account.counts()[0] == 3
        account.store(gone=[1])
    after = account.rows("Archive")[9]
    assert (after.id, after.thread_id, after.vanished_at) == (before.id, before.thread_id, None)
    assert after.flags == ([] if order == "gone first" else ["\\Seen"])
    assert (account.record.count(EmailMessage), account.counts()) == (2, (2, 2, 2))
    assert account.found("moved") == ["moved"]


def test_a_mail_moved_there_and_back_keeps_its_row(account: Account) -> None:
    raw = letter()
    account.store({1: raw})
    first = account.ids()[1]
    for uid, (here, there) in enumerate([("INBOX", "Archive"), ("Archive", "INBOX")] * 2, 1):
        account.store({uid + 1: raw}, folder=there)
        account.store(gone=[uid], folder=here)
        assert account.ids(there) == {uid + 1: first}
    assert account.record.count(EmailMessage) == 1


def test_the_servers_own_name_for_a_mail_counts_too(account: Account) -> None:
    account.store({1: letter(number=601)}, remote_ids={1: "M1"})
    first = account.ids()[1]
    account.store(gone=[1])
    account.store({4: letter("another content", number=601)}, folder="Archive", remote_ids={4: "M1"})
    assert account.ids("Archive") == {4: first}
    account.store({5: letter("a third", number=601)}, remote_ids={5: "M1"})
    account.store(gone=[4], folder="Archive")
    assert account.ids() == {5: first}


def test_a_servers_name_that_is_used_again_is_another_mail(account: Account) -> None:
    account.store({1: letter("old")}, remote_ids={1: "7"})
    account.store(gone=[1])
    account.store({2: letter("new")}, remote_ids={2: "7"})
    assert [row.subject for row in account.rows().values()] == ["new"]
    account.store({3: letter("newer")}, remote_ids={3: "7"})
    account.store(gone=[2])
    assert [row.subject for row in account.rows().values()] == ["newer"]


def test_a_copy_is_a_mail_of_its_own(account: Account) -> None:
    raw = letter()
    account.store({1: raw, 2: raw})
    account.store({1: raw}, folder="Archive")
    assert len({*account.ids().values(), *account.ids("Archive").values()}) == 3
    copy = account.ids("Archive")[1]
    account.store(gone=[1], folder="Archive")
    assert len(account.ids()) == 2
    account.store({2: raw}, folder="Archive")
    assert account.ids("Archive") == {2: copy}


def test_many_moved_at_once_are_paired_one_by_one(account: Account) -> None:
    same, others = letter(), {uid: letter() for uid in range(3, 8)}
    account.store({1: same, 2: same, **others})
    before = account.ids()
    account.store({uid + 10: raw for uid, raw in others.items()} | {11: same}, folder="Archive")
    assert account.store(gone=range(1, 8)) == Changes(0, 0, 7)
    after = account.ids("Archive")
    assert {uid: after[uid + 10] for uid in others} == {uid: before[uid] for uid in others}
    assert after[11] in {before[1], before[2]}
    assert account.counts()[0] == 6


def test_another_accounts_mail_is_not_taken_over(account: Account) -> None:
    raw, other = letter(), Account(account.record)
    account.store({1: raw})
    account.store(gone=[1])
    other.store({1: raw})
    assert account.record.count(EmailMessage) == 2
    account.store({2: raw})
    other.store(gone=[1])
    assert account.ids().keys() == {2}


def test_a_fetch_of_everything_revives_what_had_vanished(account: Account) -> None:
    raw = letter()
    account.store({1: raw})
    before = account.ids()
    account.store(gone=[1])
    assert account.store({1: raw}, flags={1: {"\\Seen"}}) == Changes(1, 1, 0)
    assert (account.ids(), account.rows()[1].flags, account.counts()) == (before, ["\\Seen"], (1, 1, 1))


# -- folders ----------------------------------------------------------------------------------------------------------------------


def test_a_renumbered_folder_keeps_its_mails_under_overlapping_uids(account: Account) -> None:
    account.store({uid: letter() for uid in (1, 2, 3, 4)})
    before = account.ids()
    changes = account.store({2: letter()}, validity=2, is_reset=True, kept={1: 3, 3: 4, 4: 1, 77: 78})
    assert (changes.synced, changes.deleted) == (1, 1)
    after = account.ids()
    assert {uid: after[uid] for uid in (1, 3, 4)} == {3: before[1], 4: before[3], 1: before[4]}
    assert account.counts() == (4, 4, 4)


def test_a_folder_renumbered_under_the_same_uidvalidity_and_back_again(account: Account) -> None:
    raws = {uid: letter() for uid in (1, 2, 3)}
    account.store(raws)
    before = account.ids()
    account.store(validity=1, is_reset=True, kept={1: 2, 2: 3, 3: 4})
    assert account.ids() == {2: before[1], 3: before[2], 4: before[3]}
    account.store(validity=2, is_reset=True, kept={})
    account.store(validity=1, is_reset=True, kept={})
    assert account.counts() == (0, 0, 0)
    account.store(raws)
    assert account.ids() == before


def test_a_folder_with_its_servers_id_is_renamed(account: Account) -> None:
    account.match(remote("INBOX", "i"), remote("Archive", "a"), remote("Plans", "p"))
    account.store({1: letter()}, folder="Archive")
    before, ids = account.ids("Archive"), {name: account.folder(name).id for name in ("Archive", "Plans")}
    assert account.match(remote("INBOX", "i"), remote("Plans", "a"), remote("Archive", "p")) == 0
    assert (account.ids("Plans"), account.folder("Plans").id, account.folder("Archive").id) == (before, ids["Archive"], ids["Plans"])
    assert account.match(remote("INBOX", "i"), remote("Old", "a"), remote("Plans", "new")) == 0
    assert (account.ids("Old"), account.folder("Old").raw_name, account.ids("Plans")) == (before, "Old", {})


def test_a_folder_renamed_without_an_id_gives_its_mails_to_the_new_one(account: Account) -> None:
    raws = {uid: letter() for uid in (1, 2)}
    account.store(raws, folder="Archive")
    before = account.ids("Archive")
    assert account.match(remote(), remote("Renamed")) == 2
    assert account.counts() == (0, 0, 0)
    account.store({5: raws[1], 6: raws[2]}, folder="Renamed")
    assert account.ids("Renamed") == {5: before[1], 6: before[2]}


def test_a_folder_that_comes_back_is_read_anew_and_finds_its_mails(account: Account) -> None:
    raw = letter()
    account.store({1: raw}, folder="Archive")
    before = account.ids("Archive")
    account.match(remote())
    with account.record.session(account.ann) as session:
        assert [folder.name for folder in EmailFolders(session).of(account.id)] == ["INBOX"]
    account.match(remote(), remote("Archive"))
    assert (account.folder("Archive").uid_next, account.folder("Archive").message_count) == (None, 0)
    account.store({1: raw}, folder="Archive")
    assert account.ids("Archive") == before


def test_a_folder_that_is_gone_goes_with_its_last_message(account: Account) -> None:
    account.store({1: letter()}, folder="Archive")
    account.match(remote())
    with account.record.session(account.ann) as session:
        assert EmailMessages(session).forget_vanished(account.id, now() + timedelta(hours=1)) == 1
    assert (account.record.count(EmailMessage), account.record.count(EmailFolder)) == (0, 1)


# -- conversations ----------------------------------------------------------------------------------------------------------------


def test_answers_are_one_conversation_in_any_order(account: Account) -> None:
    account.store({1: letter(number=703, refers_to="<701@x> <702@x>"), 2: letter(number=999)})
    account.store({3: letter(number=701)}, folder="Archive")
    account.store({4: letter(number=702, refers_to="<701@x>")})
    threads = {uid: row.thread_id for uid, row in {**account.rows(), **account.rows("Archive")}.items()}
    assert threads[1] == threads[3] == threads[4] != threads[2]
    with account.record.session(account.ann) as session:
        found = MailViews(session).messages(None, None, None, thread_id=threads[1])
    assert len(found) == 3


def test_two_conversations_that_are_one_become_the_larger_of_them(account: Account) -> None:
    account.store({uid: letter(number=800 + uid, refers_to="<800@x>") for uid in (1, 2, 3)})
    account.store({4: letter(number=810), 5: letter(number=820)})
    before = {uid: row.thread_id for uid, row in account.rows().items()}
    assert len({*before.values()}) == 3
    account.store({6: letter(number=830, refers_to="<810@x> <800@x>"), 7: letter(number=831, refers_to="<830@x> <820@x>")})
    assert {row.thread_id for row in account.rows().values()} == {before[1]}
    with account.record.session(account.ann) as session:
        assert {*session.scalars(select(ThreadLink.thread_id))} == {before[1]}


def test_mails_without_or_with_the_same_message_id(account: Account) -> None:
    account.store({1: letter(message_id=""), 2: letter(message_id=""), 3: letter("a", number=900), 4: letter("b", number=900)})
    threads = {uid: row.thread_id for uid, row in account.rows().items()}
    assert len({threads[1], threads[2], threads[3]}) == 3
    assert threads[3] == threads[4] is not None


def test_conversations_end_at_the_account(account: Account) -> None:
    other = Account(account.record)
    account.store({1: letter(number=950)})
    other.store({1: letter(number=951, refers_to="<950@x>")})
    assert account.rows()[1].thread_id is not None
    with account.record.session() as session:
        assert len({*session.scalars(select(EmailMessage.thread_id))}) == 2


# -- words ------------------------------------------------------------------------------------------------------------------------


def test_words_are_found_in_subject_people_and_text(account: Account) -> None:
    html = b"Subject: page\r\nMessage-ID: <h@x>\r\nContent-Type: text/html\r\n\r\n<style>hidden</style><p>caf&eacute; <b>noir</b></p>"
    account.store({1: letter("Invoice of May"), 2: letter("Holiday"), 3: html})
    for query in ("invoice", "INVOICE may", "may invo", "body invoice bob@globex.test"):
        assert account.found(query) == ["Invoice of May"], query
    assert account.found("globex") == ["Holiday", "Invoice of May"]
    assert account.found("café noir") == ["page"]
    for query in ("hidden", "nothing", "invoice holiday", "%", "***", "'", "voice"):
        assert account.found(query) == [], query


QUERIES = (
    *('"', "'", '"" OR 1=1 --', "a AND", "NEAR(", "* *", "-", "- -", "! & |", "(((", "\0", "a\0b", "\ud800", "subject:x", ":*", "\\"),
    *("a'b:*", "or or or", "x" * 10_000, "x " * 5_000, '"x ' * 3_000, "-x " * 300, "日本語 Grüße", "<->", "a:b:c", "{}", '-"a b"'),
)


@pytest.mark.parametrize("query", QUERIES)
def test_no_query_fails(account: Account, query: str) -> None:
    account.store({1: letter("x")})
    assert account.found(query) in ([], ["x"])


def test_the_newest_is_found_first_and_pages_go_on(account: Account) -> None:
    account.store({uid: letter(f"memo {uid}") for uid in range(1, 6)})
    with account.record.session(account.ann) as session:
        views = MailViews(session)
        everything = views.messages(None, None, "memo")
        first = views.messages(None, None, "memo", limit=2)
        rest = views.messages(None, None, "memo", before=(first[-1].received_at, first[-1].id))
    assert [each.id for each in [*first, *rest]] == [each.id for each in everything]
    assert [each.id for each in everything] == sorted((each.id for each in everything), reverse=True)


def test_a_long_text_is_compressed_as_the_server_does_it_fastest(account: Account) -> None:
    account.store({1: letter("one " * 3000)})
    with account.record.session(account.ann) as session:
        assert session.scalars(select(EmailMessage.body_text)).one() == "body " + "one " * 3000
        if session.get_bind().dialect.name == "postgresql":
            ways = session.scalars(sql("SELECT enumvals FROM pg_settings WHERE name = 'default_toast_compression'")).one()
            used = session.scalars(sql("SELECT pg_column_compression(body_text) FROM email_messages")).one()
            assert used == ("lz4" if "lz4" in ways else "pglz")


# -- sources ----------------------------------------------------------------------------------------------------------------------


def test_a_source_is_kept_by_policy_and_forgotten_by_age(account: Account) -> None:
    raws = {1: letter("one") + bytes(range(256)), 2: letter("two")}
    account.store({1: raws[1]}, keep_source=True)
    account.store({2: raws[2]})
    ids = account.ids()
    with account.record.session(account.ann) as session:
        messages = EmailMessages(session)
        assert (messages.source(ids[1]), messages.source(ids[2])) == (raws[1], None)
    account.store({2: raws[2]}, keep_source=True)  # everything is fetched again
    with account.record.session(account.ann) as session:
        messages = EmailMessages(session)
        assert messages.source(ids[2]) == raws[2]
        assert messages.forget_sources(now() - timedelta(hours=1), 10) == 0
        assert messages.forget_sources(now() + timedelta(hours=1), 1) == 1
        assert messages.forget_sources(now() + timedelta(hours=1), 10) == 1
        assert messages.source(ids[1]) is None


def test_a_server_that_gives_its_folders_new_ids_has_the_same_folders(account: Account) -> None:
    account.match(remote("INBOX", "A"), remote("Archive", "B"))
    account.store({1: letter("one")})
    before = account.folder_ids()
    assert account.match(remote("INBOX", "C"), remote("Archive", "D")) == 0
    assert account.folder_ids() == before
    account.match(remote("INBOX", "C"), remote("Old", "D"), remote("Archive", "E"))  # renamed, and another in its name
    assert account.folder_ids()["Old"] == before["Archive"]
    assert account.folder_ids()["Archive"] not in before.values()
