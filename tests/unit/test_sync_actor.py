"""`sync_emails` and `periodic_sync`: what is stored, what the account remembers, and who may not touch it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, select

import actors.endpoints
import actors.periodic
import actors.sync
from core.errors import InvalidInputError, NotFoundError, PermanentError, Snooze, TenantError
from core.ids import new_id
from core.settings import get_settings
from core.tenancy import SYSTEM, acting_as
from demo.accounts import ACME_SUPPORT, WRONG_PASSWORD
from demo.servers import DemoServers
from mail.accounts import Endpoint, Secret
from mail.errors import AuthenticationRefused, ConnectionFailed
from mail.fake import FakeMailbox
from mail.oauth import Token
from mail.pop3 import Entry
from runs.current import RunRevoked, current_run, forget_revoked, revoke_here
from runs.enqueue import enqueue
from runs.limits import RunTerminated, SoftTimeLimitExceeded
from runs.progress import progress
from storage.models import EmailFolder, EmailMessage, OutboundEmail, OutboundRecipient, Suppression, TaskRun
from storage.outcomes import Claim
from storage.repositories.email_clients import EmailClients
from storage.repositories.messages import EmailMessages
from tests.servers.process import free_port
from tests.unit.actor_world import Actors, acting

__all__ = ["acting"]

LETTER = b"From: Bob <bob@x.test>\r\nTo: ann@acme.test\r\nSubject: Hi\r\nMessage-ID: <1@x.test>\r\n\r\nGood day\r\n"
MALFORMED = b"From: =?utf-8?b?///?= <\r\nContent-Type: multipart/mixed; boundary=\xff\r\nDate: never\r\n\r\n\x00\xff broken"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServers]:
    with DemoServers(tmp_path_factory.mktemp("demo") / "state.json") as running:
        yield running


def demo_account(world: Actors, servers: DemoServers, password: str = ACME_SUPPORT.password) -> str:
    login = {"imap_username": ACME_SUPPORT.address, "imap_password": password}
    return world.account(world.record.people.ann, imap_host="127.0.0.1", imap_port=servers.imap_port, **login)


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> FakeMailbox:
    made = FakeMailbox()
    monkeypatch.setattr(actors.sync, "ImapMailbox", lambda _endpoint: made)
    return made


def test_a_real_mailbox_is_stored_and_the_second_sync_finds_nothing_new(acting: Actors, servers: DemoServers) -> None:
    client = demo_account(acting, servers)
    with acting.attempt(acting.record.people.ann):
        first = actors.sync.sync_emails(client)
        again = actors.sync.sync_emails(client)
    assert first["status"] == "success"
    assert first["messages_synced"] == acting.record.count(EmailMessage) > 0
    assert (again["messages_synced"], again["messages_updated"], again["messages_deleted"]) == (0, 0, 0)
    account = acting.client(client)
    assert (account.last_error, account.last_sync_at is not None, account.syncing_run_id) == (None, True, None)


def test_the_third_refused_login_stops_the_account_and_new_credentials_clear_it(acting: Actors, servers: DemoServers) -> None:
    client, ann = demo_account(acting, servers, WRONG_PASSWORD), acting.record.people.ann
    for count in (1, 2, 3):
        with acting.attempt(ann), pytest.raises(AuthenticationRefused):
            actors.sync.sync_emails(client)
        assert acting.client(client).refused_logins == count
    stopped = acting.client(client)
    assert (stopped.is_sync_enabled, stopped.syncing_run_id) == (False, None)
    assert "Syncing is stopped" in str(stopped.last_error)
    assert ACME_SUPPORT.address not in str(stopped.last_error)
    with acting.attempt(ann), pytest.raises(PermanentError, match="three times in a row"):
        actors.sync.sync_emails(client)
    with acting.record.session(ann) as session:
        EmailClients(session, get_settings().credential_keys).change(client, {"imap_password": ACME_SUPPORT.password})
    with acting.attempt(ann):
        assert actors.sync.sync_emails(client)["messages_synced"] > 0
    assert acting.client(client).refused_logins == 0


def test_a_server_that_cannot_be_reached_is_a_transient_error_that_the_account_remembers(acting: Actors) -> None:
    client = acting.account(acting.record.people.ann, imap_host="127.0.0.1", imap_port=free_port())
    with acting.attempt(acting.record.people.ann), pytest.raises(ConnectionFailed):
        actors.sync.sync_emails(client)
    account = acting.client(client)
    assert "cannot be reached" in str(account.last_error)
    assert (account.refused_logins, account.syncing_run_id, account.last_sync_at) == (0, None, None)


def test_a_malformed_message_is_stored_and_flagged(acting: Actors, mailbox: FakeMailbox) -> None:
    client = acting.account(acting.record.people.ann, imap_host="imap.test")
    mailbox.append(MALFORMED)
    mailbox.append(LETTER)
    with acting.attempt(acting.record.people.ann):
        assert actors.sync.sync_emails(client)["messages_synced"] == 2
    with acting.record.session() as session:
        broken, sound = session.scalars(select(EmailMessage).order_by(EmailMessage.uid))
    assert broken.defects
    assert (sound.defects, sound.subject, sound.message_id) == ([], "Hi", "<1@x.test>")


def test_flags_deletions_and_lost_folders_follow_the_server(acting: Actors, mailbox: FakeMailbox) -> None:
    client = acting.account(acting.record.people.ann, imap_host="imap.test")
    mailbox.add_folder("Old")
    mailbox.append(LETTER, folder="Old")
    first, second, _ = (mailbox.append(LETTER) for _ in range(3))
    with acting.attempt(acting.record.people.ann):
        assert actors.sync.sync_emails(client)["messages_synced"] == 4
        mailbox.set_flags(first, "\\Seen")
        mailbox.expunge(second)
        mailbox.remove_folder("Old")
        changed = actors.sync.sync_emails(client)
        assert (changed["messages_synced"], changed["messages_updated"], changed["messages_deleted"]) == (0, 1, 2)
        mailbox.change_uid_validity()
        renumbered = actors.sync.sync_emails(client)
    assert (renumbered["messages_synced"], renumbered["messages_deleted"]) == (2, 2)
    with acting.record.session(acting.record.people.ann) as session:
        assert EmailMessages(session).count(client) == 2


def test_a_sync_that_finds_nothing_takes_five_transactions(acting: Actors, mailbox: FakeMailbox) -> None:
    """Taking the account, reading it, its folders, forgetting what is gone, giving the account back with how it went."""
    client = acting.account(acting.record.people.ann, imap_host="imap.test")
    begun: list[object] = []
    mailbox.append(LETTER)
    with acting.attempt(acting.record.people.ann):
        actors.sync.sync_emails(client)
        event.listen(acting.record.engine, "begin", begun.append)
        assert actors.sync.sync_emails(client)["messages_synced"] == 0
    assert len(begun) == 5


def test_one_folder_is_synced_alone(acting: Actors, mailbox: FakeMailbox) -> None:
    client, ann = acting.account(acting.record.people.ann, imap_host="imap.test"), acting.record.people.ann
    other = acting.account(ann, imap_host="imap.test", name="Other")
    mailbox.add_folder("Old")
    with acting.attempt(ann):
        actors.sync.sync_emails(client)
        mailbox.append(LETTER)
        mailbox.append(LETTER, folder="Old")
        with acting.record.session() as session:
            folder = session.scalars(select(EmailFolder).where(EmailFolder.name == "Old")).one().id
        assert actors.sync.sync_emails(client, folder_id=folder)["messages_synced"] == 1
        with pytest.raises(NotFoundError):
            actors.sync.sync_emails(other, folder_id=folder)
        assert actors.sync.sync_emails(client, force_full_sync=True)["messages_synced"] == 1


def test_a_connection_lost_on_the_way_keeps_what_was_stored(acting: Actors, mailbox: FakeMailbox) -> None:
    client = acting.account(acting.record.people.ann, imap_host="imap.test")
    mailbox.append(LETTER)
    mailbox.lose_connection_after = 0
    with acting.attempt(acting.record.people.ann), pytest.raises(ConnectionFailed):
        actors.sync.sync_emails(client)
    mailbox.lose_connection_after = None
    with acting.attempt(acting.record.people.ann, number=2):
        assert actors.sync.sync_emails(client)["messages_synced"] == 1


@pytest.mark.parametrize("by_force", [False, True])
def test_a_revoked_sync_keeps_what_it_stored_with_its_cursor_and_frees_the_account(
    acting: Actors, mailbox: FakeMailbox, monkeypatch: pytest.MonkeyPatch, by_force: bool
) -> None:
    ann = acting.record.people.ann
    client = acting.account(ann, imap_host="imap.test")
    for number in range(5):
        mailbox.append(LETTER.replace(b"<1@", f"<{number}@".encode()))
    small = get_settings().model_copy(update={"sync_batch_size": 2})
    monkeypatch.setattr(actors.sync, "get_settings", lambda: small)
    run_id = new_id()
    told: list[tuple[int, int]] = []

    def revoked_after_the_first_batch(done: int, total: int, note: str = "") -> None:
        told.append((done, total))
        claim = current_run()
        assert claim is not None
        if by_force:
            raise RunTerminated  # wherever the thread is: here, between two batches
        revoke_here(claim)
        progress(done, total, note)

    monkeypatch.setattr(actors.sync, "progress", revoked_after_the_first_batch)
    monkeypatch.setattr(actors.sync, "BRIEF_SECONDS", 0.0)
    with acting.attempt(ann, run_id=run_id), pytest.raises(RunRevoked):
        actors.sync.sync_emails(client)
    account = acting.client(client)
    assert (account.syncing_run_id, account.last_error, account.last_sync_at) == (None, None, None)
    stored = acting.record.count(EmailMessage)
    assert 0 < stored < 5
    assert len(told) == 1
    with acting.record.session(ann) as session:
        folder = session.scalars(select(EmailFolder)).one()
        assert folder.uid_validity is not None
    monkeypatch.setattr(actors.sync, "progress", progress)
    with acting.attempt(ann, run_id=run_id, number=2) as again:
        forget_revoked(Claim(again, ann.tenant_id, ann.user_id, "t", "send", {}, 1, 4, 1, None, None, None))
        assert actors.sync.sync_emails(client)["messages_synced"] == 5 - stored
    assert acting.record.count(EmailMessage) == 5


def test_an_account_that_is_being_synced_snoozes_another_sync(acting: Actors, mailbox: FakeMailbox) -> None:
    client, ann = acting.account(acting.record.people.ann, imap_host="imap.test"), acting.record.people.ann
    holder = new_id()
    with acting.record.session(ann) as session:
        facts = {"tenant_id": ann.tenant_id, "task": "sync_emails", "queue": "sync", "args": {}, "max_attempts": 1}
        session.add(TaskRun(id=holder, state="STARTED", **facts))
        session.flush()
        assert EmailClients(session).begin_sync(client, holder)
    with acting.attempt(ann), pytest.raises(Snooze):
        actors.sync.sync_emails(client)
    assert acting.client(client).syncing_run_id == holder
    acting.record.set_run(holder, state="FAILURE")  # its worker died: the account is free again
    with acting.attempt(ann):
        actors.sync.sync_emails(client)
    assert mailbox.commands


def test_a_foreign_account_is_unknown_and_its_server_is_not_asked(acting: Actors, mailbox: FakeMailbox) -> None:
    people = acting.record.people
    client = acting.account(people.ann, imap_host="imap.test")
    for stranger in (people.gus, people.globex, people.bob):
        with acting.attempt(stranger), pytest.raises(NotFoundError):
            actors.sync.sync_emails(client)
    with pytest.raises(TenantError):
        actors.sync.sync_emails(client)
    assert mailbox.commands == []
    assert acting.client(client).last_error is None


def test_an_account_without_imap_cannot_be_synced(acting: Actors) -> None:
    client = acting.account(acting.record.people.ann)
    with acting.attempt(acting.record.people.ann), pytest.raises(InvalidInputError, match="set imap_host"):
        actors.sync.sync_emails(client)


def test_every_account_that_is_due_gets_one_sync_of_its_own_tenant(acting: Actors) -> None:
    people = acting.record.people
    due = {acting.account(who, imap_host="imap.test"): who for who in (people.ann, people.gus)}
    acting.account(people.bob)  # sends only
    acting.account(people.bob, imap_host="imap.test", is_sync_enabled=False)
    with acting_as(SYSTEM):
        first = actors.periodic.periodic_sync()["task_ids"]
        again = actors.periodic.periodic_sync()["task_ids"]
    assert first == again
    runs = [acting.record.run(run_id) for run_id in first]
    assert {run.args["email_client_id"]: (run.tenant_id, run.user_id) for run in runs} == {
        client: (who.tenant_id, who.user_id) for client, who in due.items()
    }
    assert acting.record.count(TaskRun) == 2
    acting.broker.publisher.flush()
    assert acting.stub.published == 2


def test_no_tenant_may_run_what_works_over_all_of_them(acting: Actors) -> None:
    with pytest.raises(TenantError):
        acting.record.enqueue(actors.periodic.periodic_sync)


def test_importing_the_tasks_opens_nothing(acting: Actors, tmp_path: Path) -> None:
    assert set(acting.broker.actors) >= {"sync_emails", "send_email", "periodic_sync"}
    assert acting.stub.published == 0


def test_at_the_soft_limit_a_sync_goes_on_later_and_counts_everything(
    acting: Actors, mailbox: FakeMailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = get_settings().model_copy(update={"sync_batch_size": 2})
    monkeypatch.setattr("actors.sync.get_settings", lambda: small)
    ann = acting.record.people.ann
    client = acting.account(ann, imap_host="imap.test")
    for number in range(7):
        mailbox.append(LETTER.replace(b"<1@", b"<%d@" % number))
    run_id = enqueued(acting, client)
    told: list[int] = []

    def progress(done: int, _total: int, _note: str) -> None:
        told.append(done)
        if len(told) == 2:
            raise SoftTimeLimitExceeded

    monkeypatch.setattr(actors.sync, "progress", progress)
    monkeypatch.setattr(actors.sync, "BRIEF_SECONDS", 0.0)
    with acting.attempt(ann, run_id=run_id), pytest.raises(Snooze):
        actors.sync.sync_emails(client)
    assert acting.record.count(EmailMessage) == 4
    assert acting.client(client).last_error is None
    with acting.attempt(ann, run_id=run_id, number=2):
        assert actors.sync.sync_emails(client)["messages_synced"] == 7
    assert told == [2, 4, 2, 3]


@pytest.mark.parametrize("is_brief", [True, False])
def test_only_a_sync_that_takes_a_while_tells_how_far_it_has_come(
    acting: Actors, mailbox: FakeMailbox, monkeypatch: pytest.MonkeyPatch, is_brief: bool
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(actors.sync, "progress", lambda done, total, _note: told.append((done, total)))
    monkeypatch.setattr(actors.sync, "BRIEF_SECONDS", 60.0 if is_brief else 0.0)
    client = acting.account(acting.record.people.ann, imap_host="imap.test")
    mailbox.append(LETTER)
    with acting.attempt(acting.record.people.ann):
        actors.sync.sync_emails(client)
    assert told == ([] if is_brief else [(1, 1)])


def test_a_brief_sync_is_revoked_between_two_batches_all_the_same(
    acting: Actors, mailbox: FakeMailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = get_settings().model_copy(update={"sync_batch_size": 2})
    monkeypatch.setattr(actors.sync, "get_settings", lambda: small)
    monkeypatch.setattr(actors.sync, "BRIEF_SECONDS", 60.0)
    ann = acting.record.people.ann
    client = acting.account(ann, imap_host="imap.test")
    for number in range(5):
        mailbox.append(LETTER.replace(b"<1@", f"<{number}@".encode()))
    with acting.attempt(ann):
        claim = current_run()
        assert claim is not None
        revoke_here(claim)
        with pytest.raises(RunRevoked):
            actors.sync.sync_emails(client)
        forget_revoked(claim)
    assert acting.record.count(EmailMessage) == 2


def enqueued(acting: Actors, client: str) -> str:
    with acting.record.session(acting.record.people.ann) as session:
        return enqueue(session, actors.sync.sync_emails, email_client_id=client)


class TokenServer:
    """Gives tokens, one after the other, and remembers with what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.expires_in = 3600.0
        monkeypatch.setattr("mail.oauth.refresh", self._refresh)

    def _refresh(self, _url: str, _client: str, _secret: Secret | None, refresh_token: Secret, *, allow_private: bool) -> Token:
        assert allow_private
        self.asked.append(refresh_token.reveal())
        return Token(Secret(f"token {len(self.asked)}"), self.expires_in, Secret(f"refresh {len(self.asked)}"))


OAUTH = {"oauth_token_url": "https://id.test/token", "oauth_client_id": "mailroom", "oauth_refresh_token": "refresh 0"}


def test_an_account_with_oauth_logs_in_with_a_token_that_is_refreshed_in_time(acting: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    server, used = TokenServer(monkeypatch), list[str]()
    made = FakeMailbox()

    def open_mailbox(endpoint: Endpoint) -> FakeMailbox:
        assert endpoint.token is not None
        used.append(endpoint.token.reveal())
        if used[-1] == "token 2":
            raise AuthenticationRefused("The token is void.")
        return made

    monkeypatch.setattr(actors.sync, "ImapMailbox", open_mailbox)
    ann = acting.record.people.ann
    client = acting.account(ann, imap_host="imap.test", **OAUTH)
    with acting.attempt(ann):
        for _ in range(2):
            actors.sync.sync_emails(client)
        assert (used, server.asked) == (["token 1"] * 2, ["refresh 0"])
        server.expires_in = 60.0  # less than is left for a login
        with acting.record.session(ann) as session:
            EmailClients(session).token_refused(client)
        actors.sync.sync_emails(client)
    assert used == ["token 1", "token 1", "token 2", "token 3"]
    assert server.asked == ["refresh 0", "refresh 1", "refresh 2"]
    assert acting.client(client).refused_logins == 0
    stored = acting.client(client)
    assert all(b"token" not in (each or b"") for each in (stored.oauth_access_token, stored.oauth_refresh_token))


def test_a_grant_that_is_void_stops_the_account_like_a_wrong_password(acting: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_given: object, **_options: object) -> Token:
        raise AuthenticationRefused("The grant is void.")

    monkeypatch.setattr("mail.oauth.refresh", refuse)
    ann = acting.record.people.ann
    client = acting.account(ann, imap_host="imap.test", **OAUTH)
    with acting.attempt(ann):
        for _ in range(3):
            with pytest.raises(AuthenticationRefused):
                actors.sync.sync_emails(client)
    assert (acting.client(client).is_sync_enabled, acting.client(client).refused_logins) == (False, 3)


def test_another_users_account_gives_away_no_token(acting: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    server = TokenServer(monkeypatch)
    client = acting.account(acting.record.people.ann, imap_host="imap.test", **OAUTH)
    with acting.attempt(acting.record.people.gus), pytest.raises(NotFoundError):
        actors.endpoints.with_fresh_token(client)
    assert server.asked == []


def test_a_pop3_account_is_synced_and_what_is_gone_goes(acting: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = {f"uidl{number}": LETTER.replace(b"<1@", b"<%d@" % number) for number in range(3)}

    class Box:
        def __enter__(self) -> Box:
            return self

        def __exit__(self, *_error: object) -> None: ...

        def entries(self) -> list[Entry]:
            return [Entry(number, len(raw), key) for number, (key, raw) in enumerate(letters.items(), 1)]

        def retrieve(self, entries: list[Entry]) -> Iterator[tuple[Entry, bytes]]:
            return ((entry, letters[entry.key]) for entry in entries)

    monkeypatch.setattr(actors.sync, "Pop3Mailbox", lambda _endpoint: Box())
    ann = acting.record.people.ann
    client = acting.account(ann, pop3_host="pop3.test", pop3_password="secret")
    with acting.attempt(ann):
        assert actors.sync.sync_emails(client)["messages_synced"] == 3
        del letters["uidl1"]
        letters["uidl9"] = LETTER.replace(b"<1@", b"<9@")
        changed = actors.sync.sync_emails(client)
        assert (changed["messages_synced"], changed["messages_deleted"]) == (1, 1)
        assert actors.sync.sync_emails(client)["messages_synced"] == 0
    with acting.record.session(ann) as session:
        assert EmailMessages(session).count(client) == 3


REPORT = b"""From: MAILER-DAEMON@mx.test\r
Subject: Undelivered\r
Message-ID: <report@mx.test>\r
MIME-Version: 1.0\r
Content-Type: multipart/report; report-type=delivery-status; boundary=b\r
\r
--b\r
Content-Type: text/plain\r
\r
It did not work.\r
--b\r
Content-Type: message/delivery-status\r
\r
Reporting-MTA: dns; mx.test\r
\r
Final-Recipient: rfc822; bob@x.test\r
Action: failed\r
Status: 5.1.1\r
\r
--b\r
Content-Type: text/rfc822-headers\r
\r
Message-ID: <sent@acme.test>\r
--b--\r
"""


def test_a_delivery_report_reaches_the_mail_it_is_about_and_nobody_else_s(acting: Actors, mailbox: FakeMailbox) -> None:
    people = acting.record.people
    mails: dict[str, str] = {}
    for who in (people.ann, people.gus):
        with acting.record.session(who) as session:
            email = OutboundEmail(
                tenant_id=who.tenant_id,
                user_id=who.user_id,
                message_id="<sent@acme.test>",
                sender="a@acme.test",
                source=b"x",
                status="sent",
            )
            session.add(email)
            session.flush()
            session.add(OutboundRecipient(tenant_id=who.tenant_id, email_id=email.id, address="bob@x.test", status="sent"))
            mails[email.id] = who.tenant_id
    client = acting.account(people.ann, imap_host="imap.test")
    mailbox.append(REPORT)
    with acting.attempt(people.ann):
        for _ in range(2):
            actors.sync.sync_emails(client, force_full_sync=True)
    with acting.record.session() as session:
        found = {row.tenant_id: (row.status, row.enhanced_code) for row in session.scalars(select(OutboundRecipient))}
        suppressed = [(row.tenant_id, row.address, row.reason) for row in session.scalars(select(Suppression))]
    assert found == {people.ann.tenant_id: ("bounced", "5.1.1"), people.gus.tenant_id: ("sent", None)}
    assert suppressed == [(people.ann.tenant_id, "bob@x.test", "bounce")]
