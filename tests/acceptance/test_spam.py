"""Spam from end to end: it arrives at a real Dovecot, real workers sync, judge and move it, and what people say of it is learned."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from mail.dkim import Signer, new_private_key
from tests.acceptance.installation import Installation, Tenant, eventually, installed, new_virtual_host
from tests.servers.dns import DnsServer
from tests.servers.dovecot import Dovecot
from tests.servers.postgres import Postgres
from tests.servers.rabbitmq import RabbitMq

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]  # the first test starts every server and the installation

PASSWORD = "wheelbarrow-4720"
PHISHING = (
    "From: PayPal <service@paypa1.com>\r\nTo: ann@acme.example\r\nSubject: Your account will be suspended\r\nDate: {date}\r\n"
    "Message-ID: <phishing@paypa1.com>\r\nMIME-Version: 1.0\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
    "<html><body><p>Dear customer, your account has been limited. Please verify your account within 24 hours or it will be suspended:</p>"
    '<a href="http://paypal.com@192.0.2.66/login">https://www.paypal.com/login</a>'
    '<form action="http://192.0.2.66/x"><input type="password" name="p"></form></body></html>\r\n'
)
WANTED = (
    "From: Mo Baker <mo@baker.example>\r\nTo: ann@acme.example\r\nSubject: Wheelbarrows\r\nDate: {date}\r\n"
    "Message-ID: <wanted@baker.example>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
    "Hello Ann,\r\n\r\nthe wheelbarrows are ready. You can have them on Tuesday.\r\n\r\nMo\r\n"
)


@dataclass
class Mailbox:
    """A mailbox with one letter of either kind in its inbox, and the account that is synced from it."""

    dovecot: Dovecot
    tenant: Tenant
    user: str
    client_id: str

    def sync(self) -> None:
        run = self.tenant.ended(self.tenant.enqueue("/api/email/sync", {"email_client_id": self.client_id}))
        assert run["state"] == "SUCCESS", run

    def message(self, subject: str) -> dict[str, Any]:
        """As the API shows it."""
        listed = self.tenant.http.get("/api/email/messages", params={"client_id": self.client_id, "q": subject}).raise_for_status().json()
        (found,) = listed["items"]
        return dict(self.tenant.http.get(f"/api/email/messages/{found['id']}").raise_for_status().json())

    def judged(self, subject: str, *codes: str) -> dict[str, Any]:
        """The message once its verdict has these indicators: what a stall of the machine left out is checked again."""

        def look() -> dict[str, Any] | None:
            message = self.message(subject)
            assert message["spam"], "the sync has judged it"
            if set(codes) <= {each["code"] for each in message["spam"]["indicators"]}:
                return message
            self.tenant.ended(self.tenant.enqueue("/api/email/spam-check", {"email_id": message["id"]}))
            return None

        return dict(eventually(look, f"{codes} of {subject!r}", 120))

    def folder_of(self, message: dict[str, Any]) -> str:
        folders = self.tenant.http.get(f"/api/email/clients/{self.client_id}/folders").raise_for_status().json()["items"]
        return str(next(folder["name"] for folder in folders if folder["id"] == message["folderId"]))

    def on_server(self, folder: str) -> int:
        with self.dovecot.imap_client(self.user, PASSWORD) as client:
            return int(client.select(folder, readonly=True)[1][0] or 0)


@pytest.fixture(scope="module")
def names() -> Iterator[DnsServer]:
    with DnsServer() as server:
        yield server


@pytest.fixture(scope="module")
def installation(
    tmp_path_factory: pytest.TempPathFactory, rabbitmq: RabbitMq, postgres: Postgres, names: DnsServer
) -> Iterator[Installation]:
    """One whose operator has every account checked, and keys of signatures asked for."""
    directory: Path = tmp_path_factory.mktemp("spam")
    settings = {"SPAM_CHECK_ON_SYNC": "true", "SPAM_DKIM_DNS": names.address, "RABBITMQ_URL": new_virtual_host(rabbitmq, "spam")}
    with installed(directory, postgres, "spam", **settings) as made:
        made.start_api()
        made.start_worker()
        yield made


@pytest.fixture(scope="module")
def ann(installation: Installation) -> Tenant:
    return installation.new_tenant("acme")


def new_mailbox(dovecot: Dovecot, names: DnsServer, ann: Tenant, user: str, **wanted: Any) -> Mailbox:
    key, date = new_private_key("ed25519-sha256"), formatdate(time.time())
    names.records[f"{user}._domainkey.baker.example"] = key.public_record().encode()
    dovecot.add_user(user, PASSWORD)
    dovecot.deliver(user, PHISHING.format(date=date).encode())
    dovecot.deliver(user, Signer("baker.example", user, key).signed(WANTED.format(date=date).encode(), datetime.now(UTC)))
    client_id = ann.new_client(
        email=f"{user}@acme.example", imap_port=dovecot.imap_port, imap_username=user, imap_password=PASSWORD, **wanted
    )
    mailbox = Mailbox(dovecot, ann, user, client_id)
    mailbox.sync()
    return mailbox


def test_spam_is_found_at_sync_moved_to_junk_and_what_people_say_of_it_is_learned(
    installation: Installation, dovecot: Dovecot, names: DnsServer, ann: Tenant
) -> None:
    mailbox = new_mailbox(dovecot, names, ann, "moved", moves_junk=True)
    spam = mailbox.judged("suspended", "password_field", "lookalike_domain", "link_text_mismatch")
    wanted = mailbox.judged("Wheelbarrows", "dkim_valid")
    assert (spam["spam"]["isSpam"], wanted["spam"]["isSpam"]) == (True, False)
    assert spam["spam"]["score"] >= spam["spam"]["threshold"] > wanted["spam"]["score"]
    assert "moved._domainkey.baker.example" in names.asked

    eventually(lambda: mailbox.on_server("Junk") == 1, "the spam is in Junk on the server")
    assert mailbox.on_server("INBOX") == 1
    mailbox.sync()
    moved = mailbox.message("suspended")
    assert (moved["id"], mailbox.folder_of(moved), mailbox.folder_of(mailbox.message("Wheelbarrows"))) == (spam["id"], "Junk", "INBOX")

    answer = ann.http.post(f"/api/email/messages/{spam['id']}/spam-feedback", json={"spam": False})
    assert (answer.is_success, answer.json()["spam"], answer.json()["wasSpam"], answer.json()["via"]) == (True, False, True, "api")
    learned = "SELECT state FROM task_runs WHERE tenant_id = %s AND task = 'learn_spam'"
    eventually(lambda: installation.query(learned, ann.id) == [("SUCCESS",)], "what was said is learned")
    told = installation.query("SELECT email_id, is_spam FROM spam_feedback WHERE tenant_id = %s", ann.id)
    assert [(str(email_id), is_spam) for email_id, is_spam in told] == [(spam["id"], False)]
    feedback = ann.http.get("/api/spam/stats").json()["learning"]
    assert (feedback["hamCount"], feedback["isBehind"]) == (1, False)

    eventually(lambda: mailbox.on_server("INBOX") == 2, "what is not spam is back in the inbox on the server")
    assert (mailbox.on_server("Junk"), mailbox.folder_of(mailbox.message("suspended"))) == (0, "INBOX")


def test_spam_stays_where_it_is_where_the_account_does_not_want_it_moved(dovecot: Dovecot, names: DnsServer, ann: Tenant) -> None:
    mailbox = new_mailbox(dovecot, names, ann, "kept", moves_junk=False)
    assert mailbox.judged("suspended", "password_field")["spam"]["isSpam"] is True
    mailbox.sync()
    assert mailbox.folder_of(mailbox.message("suspended")) == "INBOX"
    assert (mailbox.on_server("INBOX"), mailbox.on_server("Junk")) == (2, 0)
