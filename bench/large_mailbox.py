"""A mailbox of very many small messages: synced, cancelled in the middle, gone on with; what the worker holds in memory meanwhile."""

from __future__ import annotations

import sys
import time

from bench.machine import PeakMemory
from bench.workbench import parser_of, table, workbench
from tests.acceptance.installation import Installation, Tenant, eventually
from tests.servers.dovecot import Dovecot
from tests.servers.process import server_directory

CANCELLED_AT = 0.3
"""The share of the mailbox that is stored when the first sync is cancelled."""
PATIENCE = 7200.0


def main() -> int:
    """Ends with exit code 1 when a message is missing or there twice."""
    parser = parser_of(__doc__ or "", messages=500_000)
    parser.add_argument("--scale", type=float, default=1.0, help="of the messages")
    chosen = parser.parse_args()
    messages = round(chosen.messages * chosen.scale)
    with workbench(LOG_LEVEL="INFO") as bench, server_directory("bench-dovecot") as directory, Dovecot(directory) as dovecot:
        dovecot.add_user("ann", "secret")
        for number in range(messages):
            dovecot.deliver("ann", _small(number))
        _indexed(dovecot)
        bench.installation.start_api()
        acme = bench.installation.new_tenant("acme")
        worker = bench.installation.start_worker(processes=1, threads=4)
        client_id = acme.new_client(email="ann@acme.example", imap_port=dovecot.imap_port, imap_username="ann", imap_password="secret")
        (process,) = worker.children()
        with PeakMemory(process) as memory:
            rows = _synced_in_two(bench.installation, acme, client_id, messages)
    rows += [
        ("memory of the worker process before, PSS", f"{memory.first:.0f} MiB"),
        ("at its peak", f"{memory.peak:.0f} MiB ({memory.peak - memory.first:.0f} more)"),
    ]
    table(f"{messages} messages of {len(_small(0))} bytes, SYNC_BATCH_SIZE 500", rows)
    return 0 if ("stored", f"{messages}, of {messages} Message-IDs") in rows else 1


def _synced_in_two(installation: Installation, acme: Tenant, client_id: str, messages: int) -> list[tuple[str, str]]:
    started = time.monotonic()
    first = acme.enqueue("/api/email/sync", {"email_client_id": client_id})
    count = "SELECT sum(message_count) FROM email_folders WHERE client_id = %s"
    eventually(lambda: (installation.query(count, client_id)[0][0] or 0) >= messages * CANCELLED_AT, "a part is stored", PATIENCE)
    progress = acme.status(first)["progress"]
    asked = time.monotonic()
    acme.http.post(f"/api/tasks/{first}/revoke", json={"terminate": False}).raise_for_status()
    state = acme.ended(first, PATIENCE)["state"]
    ended, (before, _) = time.monotonic(), _stored(installation, client_id)
    second = acme.ended(acme.enqueue("/api/email/sync", {"email_client_id": client_id}), PATIENCE)
    seconds = time.monotonic() - started
    rows, different = _stored(installation, client_id)
    return [
        ("messages a second", f"{messages / seconds:,.0f} ({seconds:.0f} s)"),
        ("progress of the first sync when it was cancelled", str(progress)),
        ("seconds until it had ended", f"{ended - asked:.1f}, as {state}"),
        ("stored by then", f"{before}"),
        ("the second sync", f"{second['state']}, {(second['result'] or {}).get('messages_synced')} messages"),
        ("stored", f"{rows}, of {different} Message-IDs"),
    ]


def _stored(installation: Installation, client_id: str) -> tuple[int, int]:
    """Rows, and different messages."""
    query = "SELECT count(*), count(DISTINCT message_id) FROM email_messages WHERE client_id = %s"
    rows, different = installation.query(query, client_id)[0]
    return int(rows), int(different)


def _small(number: int) -> bytes:
    head = f"From: Bob <bob{number % 500}@globex.example>\r\nTo: ann@acme.example\r\nSubject: Small message {number}\r\n"
    dated = f"Date: Fri, 20 Nov 2026 10:{number // 60 % 60:02}:{number % 60:02} +0000\r\nMessage-ID: <{number:08}@globex.example>\r\n"
    return f"{head}{dated}\r\n{f'Word {number} and others. ' * 10}\r\n".encode()


def _indexed(dovecot: Dovecot) -> None:
    """Dovecot's first look at its files, which may take longer than any command is waited for."""
    with dovecot.imap_client("ann", "secret") as client:
        client.sock.settimeout(PATIENCE)
        client.select("INBOX", readonly=True)


if __name__ == "__main__":
    sys.exit(main())
