"""The demo's mail servers in their own process, as imaplib and smtplib see them."""

from __future__ import annotations

import imaplib
import os
import re
import signal
import smtplib
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from core.errors import UnavailableError
from demo.accounts import ACCOUNTS, ACME_ORDERS, ACME_SUPPORT, GLOBEX_OFFICE, GLOBEX_SALES, WRONG_PASSWORD, DemoAccount
from demo.messages import acme_inbox
from demo.serve import read_state
from demo.servers import ROOT, DemoServers
from demo.smtp_server import GREYLISTED, REFUSED

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "mail.json"


@pytest.fixture(scope="module")
def servers(state: Path) -> Iterator[DemoServers]:
    with DemoServers(state) as running:
        yield running


def login(port: int, account: DemoAccount, password: str = "") -> imaplib.IMAP4:
    client = imaplib.IMAP4("127.0.0.1", port, timeout=10)
    client.login(account.address, password or account.password)
    return client


def uids(client: imaplib.IMAP4) -> list[bytes]:
    client.select("INBOX")
    found: bytes = client.uid("SEARCH", "ALL")[1][0]
    return found.split()


def status(client: imaplib.IMAP4, item: str) -> int:
    found = re.search(rf"{item} (\d+)", str(client.status("INBOX", f"({item})")))
    assert found
    return int(found[1])


def send(port: int, recipient: str, subject: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        client.sendmail("someone@initech.example", [recipient], f"Subject: {subject}\r\n\r\nhello\r\n")


def test_both_tenants_have_their_mail(servers: DemoServers) -> None:
    for account, count in ((ACME_SUPPORT, 22), (GLOBEX_OFFICE, 18), (ACME_ORDERS, 0), (GLOBEX_SALES, 0)):
        with login(servers.imap_port, account) as client:
            assert client.select("INBOX") == ("OK", [str(count).encode()])


def test_every_message_can_be_fetched_whole(servers: DemoServers, state: Path) -> None:
    with login(servers.imap_port, ACME_SUPPORT) as client:
        client.select("INBOX", readonly=True)
        bodies = [part[1] for part in client.fetch("1:*", "(UID BODY.PEEK[])")[1] if isinstance(part, tuple)]
        assert bodies == [seed.raw for seed in acme_inbox(datetime.fromisoformat(read_state(state)["before"]))]
        answer = client.fetch("1:*", "(FLAGS INTERNALDATE RFC822.SIZE ENVELOPE BODYSTRUCTURE)")
        assert str(answer).count("BODYSTRUCTURE") == 22


def test_some_messages_are_read(servers: DemoServers) -> None:
    with login(servers.imap_port, ACME_SUPPORT) as client:
        client.select("INBOX", readonly=True)
        assert len(client.search(None, "SEEN")[1][0].split()) == 3


def test_a_password_opens_its_own_mailbox_only(servers: DemoServers) -> None:
    for password in (WRONG_PASSWORD, GLOBEX_OFFICE.password):
        with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
            login(servers.imap_port, ACME_SUPPORT, password)


def test_mail_for_a_demo_account_arrives_in_its_inbox(servers: DemoServers) -> None:
    with login(servers.imap_port, GLOBEX_SALES) as client:
        send(servers.smtp_port, "Sales@globex.example", "a new order")
        [uid] = uids(client)
        raw = str(client.uid("FETCH", uid.decode(), "(BODY[])")[1])
        assert "Return-Path: <someone@initech.example>" in raw
        assert "Subject: a new order" in raw


def test_mail_for_others_is_accepted(servers: DemoServers) -> None:
    send(servers.smtp_port, "anybody@initech.example", "hello")


def test_demo_accounts_may_log_in_to_send(servers: DemoServers) -> None:
    with smtplib.SMTP("127.0.0.1", servers.smtp_port, timeout=10) as client:
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login(ACME_SUPPORT.address, WRONG_PASSWORD)
        client.login(ACME_SUPPORT.address, ACME_SUPPORT.password)


def test_one_address_is_refused_and_one_only_at_first(servers: DemoServers) -> None:
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        send(servers.smtp_port, REFUSED, "never")
    with pytest.raises(smtplib.SMTPRecipientsRefused) as first:
        send(servers.smtp_port, GREYLISTED, "later")
    assert first.value.recipients[GREYLISTED][0] == 451
    send(servers.smtp_port, GREYLISTED, "later")


def test_the_first_login_at_the_flaky_port_is_refused_for_a_while(servers: DemoServers) -> None:
    first = imaplib.IMAP4("127.0.0.1", servers.flaky_imap_port, timeout=10)
    assert "AUTH=PLAIN" in first.capabilities
    first.noop()
    with pytest.raises(imaplib.IMAP4.error, match="UNAVAILABLE"):
        first.login(GLOBEX_OFFICE.address, GLOBEX_OFFICE.password)
    first.logout()
    with login(servers.flaky_imap_port, GLOBEX_OFFICE) as client:
        assert len(uids(client)) == 18


def facts_of_one_start(state: Path) -> tuple[list[object], int]:
    """What must stay the same from start to start, and the UID of a message that came during this one."""
    with DemoServers(state) as servers, login(servers.imap_port, ACME_SUPPORT) as client:
        send(servers.smtp_port, ACME_SUPPORT.address, "late")
        *seeded, late = uids(client)
        ports = (servers.imap_port, servers.flaky_imap_port, servers.smtp_port)
        return [ports, status(client, "UIDVALIDITY"), seeded, client.fetch("1:22", "(INTERNALDATE)")], int(late)


def test_a_new_start_keeps_ports_uids_and_dates_and_never_gives_a_uid_twice(tmp_path: Path) -> None:
    first, first_late = facts_of_one_start(tmp_path / "mail.json")
    time.sleep(1.0)  # UIDs of later mail grow with the clock, in seconds
    second, second_late = facts_of_one_start(tmp_path / "mail.json")
    assert second == first
    assert second_late > first_late


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    state = tmp_path / "mail.json"
    starter = f"""
import os, signal, time
from pathlib import Path
from demo.servers import DemoServers
servers = DemoServers(Path({str(state)!r}))
servers.start()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", starter], cwd=ROOT, check=False, timeout=30)
    pid = read_state(state)["pid"]
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_a_second_stop_and_a_failed_start_are_clear(tmp_path: Path) -> None:
    servers = DemoServers(tmp_path / "missing" / "mail.json", log=tmp_path / "log")
    with pytest.raises(UnavailableError):
        servers.start()
    servers.stop()
    assert not servers.running
    assert "FileNotFoundError" in (tmp_path / "log").read_text()


def test_sigterm_ends_it_cleanly(tmp_path: Path) -> None:
    servers = DemoServers(tmp_path / "mail.json")
    servers.start()
    assert servers.running
    assert servers.pid
    os.kill(servers.pid, signal.SIGTERM)
    servers.stop()
    assert servers.pid is None


def test_accounts_belong_to_two_tenants_and_have_their_own_uid_validity() -> None:
    assert {account.tenant for account in ACCOUNTS} == {"acme", "globex"}
    assert len({account.uid_validity for account in ACCOUNTS}) == 4
