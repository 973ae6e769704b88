"""What the tests of the IMAP client share: an endpoint at a scripted server, and the beginning of every script."""

from __future__ import annotations

import pytest

from core.errors import MailroomError
from mail.accounts import Endpoint, Secret, Security
from mail.folder_names import RemoteFolder
from mail.imap import ImapMailbox
from tests.unit.scripted_server import ScriptedServer

INBOX = RemoteFolder("INBOX", "INBOX", "/", "inbox")
TRASH = RemoteFolder("Trash", "Trash", "/", "trash")
GREETING = ("", b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] ready\r\n")
OPENED = b"* 3 EXISTS\r\n* OK [UIDVALIDITY 7] v\r\n* OK [UIDNEXT 9] n\r\n* OK [HIGHESTMODSEQ 90] m\r\n%t OK [READ-WRITE] done\r\n"


def logged_in(*capabilities: str) -> list[tuple[str, bytes]]:
    """The script up to the login, after which the server has these capabilities."""
    return [GREETING, (" AUTHENTICATE PLAIN ", f"%t OK [CAPABILITY IMAP4rev1 {' '.join(capabilities)}] in\r\n".encode())]


def endpoint_at(server: ScriptedServer, **changes: object) -> Endpoint:
    settings: dict[str, object] = {
        "host": server.host, "port": server.port, "security": Security.PLAIN, "username": "jo", "secret": Secret("hunter2"),
        "allow_private": True, "timeout": 20,
    }  # fmt: skip
    return Endpoint(**(settings | changes))  # type: ignore[arg-type]


def mailbox_at(server: ScriptedServer, **changes: object) -> ImapMailbox:
    return ImapMailbox(endpoint_at(server, **changes))


def error_of(*steps: tuple[str, bytes], **changes: object) -> MailroomError:
    """The error that opening a mailbox at this server ends with."""
    with ScriptedServer(*steps) as server, pytest.raises(MailroomError) as caught, mailbox_at(server, **changes):
        pass
    assert not any(told in str(caught.value) for told in ("hunter2", "jo@", "t0ken"))
    return caught.value
