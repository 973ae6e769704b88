"""Accounts synced from a real Dovecot by real workers: what is stored, what a second sync costs, and what becomes of bad accounts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.acceptance.conftest import Mailroom
from tests.acceptance.counting_proxy import CountingProxy
from tests.acceptance.installation import eventually, tell
from tests.servers.dovecot import Dovecot
from tests.servers.process import free_port

pytestmark = pytest.mark.acceptance

MESSAGES = 2000
PASSWORD = "canary-password-4711"
SUBJECT = "canary subject 4712"
BODY = "canary body 4713"
ADDRESS = "canary-address-4714@acme.example"


def letter(number: int) -> bytes:
    """About two kilobytes, so that fetching bodies again would show."""
    filler = f"{BODY} {number} ".encode() * 100
    headers = f"From: {ADDRESS}\r\nTo: ann@acme.example\r\nSubject: {SUBJECT} {number}\r\nMessage-ID: <{number}@acme.example>\r\n"
    return headers.encode() + b"Date: Fri, 20 Nov 2026 10:00:00 +0000\r\nContent-Type: text/plain\r\n\r\n" + filler + b"\r\n"


@dataclass
class Account:
    """A mailbox on Dovecot behind a counting proxy, and the account that is synced from it."""

    mailroom: Mailroom
    dovecot: Dovecot
    proxy: CountingProxy
    user: str
    client_id: str

    def deliver(self, numbers: range) -> None:
        for number in numbers:
            self.dovecot.deliver(self.user, letter(number))

    def sync(self, request_id: str | None = None) -> dict[str, object]:
        """One sync over HTTP; its result."""
        acme = self.mailroom.acme
        run = acme.ended(acme.enqueue("/api/email/sync", {"email_client_id": self.client_id}, request_id))
        assert run["state"] == "SUCCESS", run
        assert run["successful"] is True
        assert isinstance(run["result"], dict)
        return run["result"]

    def stored(self) -> int:
        found = self.mailroom.installation.query(
            "SELECT count(*) FROM email_messages WHERE client_id = %s AND vanished_at IS NULL", self.client_id
        )
        return int(found[0][0])


@pytest.fixture(scope="module")
def account(mailroom: Mailroom, dovecot: Dovecot) -> Iterator[Account]:
    """A mailbox of 2,000 messages that has been synced once."""
    user = "support"
    dovecot.add_user(user, PASSWORD)
    with CountingProxy(dovecot.imap_port) as proxy:
        client_id = mailroom.acme.new_client(email="support@acme.example", imap_port=proxy.port, imap_username=user, imap_password=PASSWORD)
        made = Account(mailroom, dovecot, proxy, user, client_id)
        made.deliver(range(MESSAGES))
        result = made.sync("first-sync-4715")
        assert (result["messages_synced"], result["messages_updated"], result["messages_deleted"]) == (MESSAGES, 0, 0)
        tell(f"first sync of {MESSAGES} messages: {result['sync_duration_seconds']} s")
        yield made


def test_the_first_sync_stores_every_message(account: Account) -> None:
    assert account.stored() == MESSAGES
    listed = account.mailroom.acme.http.get("/api/email/messages", params={"client_id": account.client_id, "limit": 1}).json()
    message = account.mailroom.acme.http.get(f"/api/email/messages/{listed['items'][0]['id']}").json()
    assert message["subject"].startswith(SUBJECT)
    assert message["bodyText"].startswith(BODY)
    assert message["from"]["address"] == ADDRESS


def test_a_sync_of_an_unchanged_mailbox_is_quick_and_fetches_no_body(account: Account) -> None:
    before = account.proxy.bytes_down
    result = account.sync()
    fetched = account.proxy.bytes_down - before
    tell(f"second sync: {result['sync_duration_seconds']} s, {fetched} bytes from the server")
    assert (result["messages_synced"], result["messages_updated"], result["messages_deleted"]) == (0, 0, 0)
    assert isinstance(result["sync_duration_seconds"], float)
    assert result["sync_duration_seconds"] < 3
    assert fetched < 8_000


def test_a_sync_finds_exactly_what_changed(account: Account) -> None:
    stored = account.stored()
    account.deliver(range(MESSAGES, MESSAGES + 10))
    with account.dovecot.imap_client(account.user, PASSWORD) as imap:
        imap.select("INBOX")
        imap.store("1:5", "+FLAGS", r"(\Flagged)")
        imap.store("101:103", "+FLAGS", r"(\Deleted)")
        imap.expunge()
    result = account.sync()
    assert (result["messages_synced"], result["messages_updated"], result["messages_deleted"]) == (10, 5, 3)
    assert account.stored() == stored + 10 - 3
    flagged = "SELECT count(*) FROM email_messages WHERE client_id = %s AND flags::text LIKE %s"
    assert account.mailroom.installation.query(flagged, account.client_id, "%Flagged%")[0][0] == 5
    again = account.sync()
    assert (again["messages_synced"], again["messages_updated"], again["messages_deleted"]) == (0, 0, 0)


def test_the_request_is_followed_into_the_worker_s_log(account: Account) -> None:
    lines = [line for line in account.mailroom.worker.lines() if line.get("request_id") == "first-sync-4715"]
    assert {line["message"] for line in lines} >= {"run_started", "run_succeeded"}
    for line in lines:
        assert line["tenant_id"] == account.mailroom.acme.id
        assert line["task_name"] == "sync_emails"
        assert line["queue"] == "sync"
        assert line["attempt"] == 1
        assert {"timestamp", "level", "task_id", "worker"} <= line.keys()
    accesses = [line for line in account.mailroom.api.lines("request") if line["request_id"] == "first-sync-4715"]
    assert len(accesses) == 1


def test_what_is_deleted_is_deleted_on_the_server_and_found_and_read_where_it_went(account: Account) -> None:
    http, acme = account.mailroom.acme.http, account.mailroom.acme
    words = {"client_id": account.client_id, "q": f"{SUBJECT} 1500"}
    (moved,) = http.get("/api/email/messages", params=words).json()["items"]
    (purged,) = http.get("/api/email/messages", params={**words, "q": f"{SUBJECT} 1501"}).json()["items"]
    deleted = acme.ended(acme.enqueue("/api/email/delete", {"email_ids": [moved["id"], account.client_id]}))
    assert deleted["result"] == {"status": "success", "deleted_count": 1, "not_found": [account.client_id]}
    gone = acme.ended(acme.enqueue("/api/email/delete", {"email_ids": [purged["id"]], "permanent": True}))
    assert gone["result"]["deleted_count"] == 1
    with account.dovecot.imap_client(account.user, PASSWORD) as imap:
        for folder, numbers in (("Trash", [1500]), ("INBOX", [])):
            imap.select(folder, readonly=True)
            found = [imap.search(None, "HEADER", "Message-ID", f"<{number}@acme.example>")[1][0] for number in (1500, 1501)]
            assert [bool(each) for each in found] == [number in numbers for number in (1500, 1501)]
    account.sync()
    assert http.get(f"/api/email/messages/{moved['id']}").json()["folderId"] != moved["folderId"]
    assert http.get(f"/api/email/messages/{purged['id']}").status_code == 404
    source = http.get(f"/api/email/messages/{moved['id']}/source")  # not kept: asked of the server
    assert (source.status_code, b"<1500@acme.example>" in source.content) == (200, True)


def test_a_wrong_password_fails_with_its_reason_and_the_third_stops_the_account(mailroom: Mailroom, dovecot: Dovecot) -> None:
    acme = mailroom.acme
    dovecot.add_user("sales", "right")
    client_id = acme.new_client(
        email="canary-sales-4716@acme.example", imap_port=dovecot.imap_port, imap_username="sales", imap_password="canary-wrong-4717"
    )
    for times in (1, 2, 3):
        run = acme.ended(acme.enqueue("/api/email/sync", {"email_client_id": client_id}))
        assert (run["state"], run["error"]["type"], run["error"]["reason"]) == (
            "FAILURE",
            "AuthenticationRefused",
            "authentication_refused",
        )
        assert "refused the user name or password" in run["error"]["message"]
        assert len(run["attempts"]) == 1
        account = acme.client(client_id)
        assert account["refusedLogins"] == times
        assert account["isSyncEnabled"] is (times < 3)
    assert "stopped until the credentials are changed" in account["lastError"]
    fourth = acme.ended(acme.enqueue("/api/email/sync", {"email_client_id": client_id}))
    assert (fourth["state"], fourth["error"]["type"]) == ("FAILURE", "PermanentError")
    assert acme.client(client_id)["refusedLogins"] == 3  # nobody asked the server

    letters = eventually(lambda: [b for b in mailroom.peek("sync.XQ") if fourth["taskId"].encode() in b], "the dead letter in sync.XQ")
    envelope = json.loads(letters[0])
    assert envelope["message_id"] == fourth["taskId"]
    assert (envelope["args"], envelope["kwargs"]) == ([], {})

    answer = acme.http.patch(f"/api/email/clients/{client_id}", json={"imap_password": "right"})
    assert (answer.json()["refusedLogins"], answer.json()["isSyncEnabled"]) == (0, True)
    assert acme.http.post(f"/api/tasks/{fourth['taskId']}/replay").status_code == 202
    assert acme.ended(fourth["taskId"])["state"] == "SUCCESS"


def test_an_unreachable_server_is_tried_again(mailroom: Mailroom) -> None:
    acme = mailroom.acme
    client_id = acme.new_client(email="nobody@acme.example", imap_port=free_port(), imap_password="x")
    run_id = acme.enqueue("/api/email/sync", {"email_client_id": client_id})
    run = acme.in_state(run_id, "RETRY")
    assert (run["ready"], run["waitingFor"], run["error"]["type"]) == (False, "eta", "ConnectionFailed")
    assert acme.client(client_id)["lastError"]
    revoked = acme.http.post(f"/api/tasks/{run_id}/revoke").json()
    assert (revoked["state"], revoked["ready"], revoked["successful"]) == ("REVOKED", True, False)
    time.sleep(0.1)
    assert acme.status(run_id)["state"] == "REVOKED"


def test_an_unknown_run_and_a_foreign_account_are_not_found(mailroom: Mailroom, account: Account) -> None:
    other = mailroom.installation.new_tenant("globex", user="gus")
    assert other.http.get("/api/tasks/00000000-0000-7000-8000-00000000dead").status_code == 404
    assert other.http.post("/api/email/sync", json={"email_client_id": account.client_id}).status_code == 404
    assert other.http.get(f"/api/email/clients/{account.client_id}").status_code == 404
    assert other.http.get("/api/email/messages").json()["items"] == []
