"""First and second sync of a large mailbox from Dovecot, over HTTP, by a real worker."""

from __future__ import annotations

from bench.workbench import options, spread, table, workbench
from tests.acceptance.installation import Tenant
from tests.servers.dovecot import Dovecot
from tests.servers.process import server_directory

LINE = b"The quick brown fox jumps over the lazy dog, again and again. 0123456789\r\n"


def main() -> None:
    chosen = options("Sync of a mailbox.", messages=2000, rounds=3)
    with workbench() as bench, server_directory("bench-dovecot") as directory, Dovecot(directory) as dovecot:
        bench.installation.start_worker(processes=1, threads=4, LOG_LEVEL="INFO")
        bench.installation.start_api()
        acme = bench.installation.new_tenant("acme")
        first, second = [], []
        for number in range(chosen.rounds):
            user = f"user{number}"
            dovecot.add_user(user, "secret")
            for each in range(chosen.messages):
                dovecot.deliver(user, letter(each))
            client_id = acme.new_client(
                email=f"{user}@acme.example", imap_port=dovecot.imap_port, imap_username=user, imap_password="secret"
            )
            first.append(sync(acme, client_id, chosen.messages))
            second.append(sync(acme, client_id, 0))
    rows = [
        ("first sync", spread(first, "s", 2)),
        ("first sync, messages a second", spread([chosen.messages / seconds for seconds in first], "", 0)),
        ("second sync, nothing changed", spread(second, "s", 3)),
    ]
    table(f"{chosen.messages} messages of about {len(letter(0)) // 1024} KiB, {chosen.rounds} mailboxes, Dovecot and PostgreSQL", rows)


def letter(number: int) -> bytes:
    headers = f"From: bob@globex.example\r\nTo: ann@acme.example\r\nSubject: letter {number}\r\nMessage-ID: <{number}@bench>\r\n"
    return headers.encode() + b"Date: Fri, 20 Nov 2026 10:00:00 +0000\r\n\r\n" + LINE * (20 + number % 60)


def sync(acme: Tenant, client_id: str, expected: int) -> float:
    """Seconds of one sync, as its result says."""
    run = acme.ended(acme.enqueue("/api/email/sync", {"email_client_id": client_id}), timeout=300)
    assert run["state"] == "SUCCESS", run
    assert run["result"]["messages_synced"] == expected
    return float(run["result"]["sync_duration_seconds"])


if __name__ == "__main__":
    main()
