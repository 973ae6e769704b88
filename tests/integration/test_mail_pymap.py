"""The same ladder against pymap, a server without change numbers and special uses, and a mail all the way out over SMTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial

import pytest

from demo.accounts import ACME_SUPPORT
from demo.servers import DemoServers
from mail.accounts import Endpoint, Secret, Security
from mail.addresses import Address
from mail.delivery import deliver
from mail.errors import AuthenticationRefused
from mail.imap import ImapMailbox
from mail.mime import parse_message
from mail.mime_build import OutgoingMail, build_message, new_message_id
from mail.smtp import SmtpTransport
from mail.sync import FolderCursor, KnownFolder, sync_mailbox
from tests.servers.smtp import SmtpSink

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServers]:
    with DemoServers(tmp_path_factory.mktemp("demo") / "servers.json") as servers:
        yield servers


def endpoint(servers: DemoServers, password: str = ACME_SUPPORT.password) -> Endpoint:
    return Endpoint(servers.host, servers.imap_port, Security.PLAIN, ACME_SUPPORT.address, Secret(password), allow_private=True, timeout=10)


def test_a_server_without_change_numbers_is_synced_and_then_only_compared(servers: DemoServers) -> None:
    flags: dict[str, dict[int, frozenset[str]]] = {}
    cursors: dict[str, FolderCursor] = {}

    def known() -> Mapping[str, KnownFolder]:
        return {name: KnownFolder(name, cursors[name], partial(flags.__getitem__, name), len(flags[name])) for name in flags}

    with ImapMailbox(endpoint(servers)) as mailbox:
        assert not mailbox.has_condstore
        assert {folder.role for folder in mailbox.list_folders()} >= {"inbox", "sent", "drafts", "junk", "trash"}
        for batch in sync_mailbox(mailbox, {}, batch_size=3):
            flags.setdefault(batch.folder.name, {}).update({each.uid: each.flags for each in batch.new})
            cursors[batch.folder.name] = batch.cursor
            assert all(each.parsed.message_id and each.internal_date for each in batch.new)
    assert len(flags["INBOX"]) == len(ACME_SUPPORT.messages(datetime.now(UTC)))
    with ImapMailbox(endpoint(servers)) as mailbox:
        again = list(sync_mailbox(mailbox, known()))
    assert not any(batch.new or batch.changed or batch.gone or batch.is_reset for batch in again)


def test_a_wrong_password_is_permanent(servers: DemoServers) -> None:
    with pytest.raises(AuthenticationRefused), ImapMailbox(endpoint(servers, "wrong")):
        pass


def test_a_built_mail_arrives_byte_for_byte(smtp_sink: SmtpSink) -> None:
    mail = OutgoingMail(
        new_message_id("x.test"), datetime.now(UTC), Address("Jö", "jo@x.test"), [Address("", "a@x.test")], "Grüße", text=".\n..\nü"
    )
    raw = build_message(mail)
    smtp_sink.refuse["gone@x.test"] = "550 5.1.1 no such user"
    target = Endpoint(smtp_sink.host, smtp_sink.port, Security.PLAIN, allow_private=True, timeout=10)
    with SmtpTransport(target) as transport:
        outcome = deliver(raw, sender="jo@x.test", recipients=["a@x.test", "gone@x.test"], via=transport)
    assert (outcome.accepted, outcome.bounced) == (["a@x.test"], ["gone@x.test"])
    [received] = smtp_sink.received
    assert received.raw == raw
    assert parse_message(received.raw).text.strip() == ".\n..\nü"
