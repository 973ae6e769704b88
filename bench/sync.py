"""A mailbox from Dovecot into PostgreSQL by a real worker, and by mbsync into a Maildir, in turn: all of it, nothing new, a few changes.

With `--delay 0.04` Mailroom syncs a second account on the same mailbox over a line with a round trip of so many seconds, in the same
rounds; what goes over that line is counted.
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from bench.machine import PeakMemory
from bench.mailbox_copies import Mbsync
from bench.workbench import parser_of, spread, table, workbench
from tests.acceptance.installation import Tenant
from tests.servers.dovecot import Dovecot
from tests.servers.process import server_directory
from tests.servers.proxy import FaultProxy
from tests.unit.mail_corpus import letter

NEW, FLAGGED, DELETED = 100, 50, 20
FULL, UNCHANGED, CHANGED = "all of it", "nothing new", f"{NEW} new, {FLAGGED} flags, {DELETED} deleted"
OURS, FAR, THEIRS, CAREFUL = "Mailroom", "Mailroom over the line", "mbsync without fsync", "mbsync with fsync (its default)"
Times = dict[tuple[str, str], list[float]]
Wire = dict[str, list[int]]
"""Bytes of each sync over the line."""


def main() -> None:
    """Each round has a mailbox of its own; whoever is first in one round is last in the next."""
    parser = parser_of("Sync of a mailbox.", messages=20_000, rounds=3, unchanged=3)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds of the line's round trip; 0: no line")
    parser.add_argument("--jitter", type=float, default=0.0, help="seconds by which it may last longer")
    parser.add_argument("--compress", action="store_true", help="IMAP_COMPRESS: COMPRESS=DEFLATE wherever Dovecot offers it")
    chosen = parser.parse_args()
    times: Times = defaultdict(list)
    wire: Wire = defaultdict(list)
    letters = [letter(number) for number in range(chosen.messages + NEW)]
    with (
        workbench() as bench,
        server_directory("bench-dovecot") as directory,
        Dovecot(directory) as dovecot,
        _line(dovecot, chosen) as line,
    ):
        worker = bench.installation.start_worker(processes=1, threads=4, LOG_LEVEL="INFO", IMAP_COMPRESS=str(chosen.compress))
        bench.installation.start_api()
        acme = bench.installation.new_tenant("acme")
        (process,) = worker.children()
        with PeakMemory(process) as memory:
            for number in range(chosen.rounds):
                user = f"user{number}"
                dovecot.add_user(user, "secret")
                for raw in letters[: chosen.messages]:
                    dovecot.deliver(user, raw)
                far = line if chosen.delay else None
                more = letters[chosen.messages :]
                _round(times, wire, acme, dovecot, user, more, chosen.messages, chosen.unchanged, far=far, is_first=number % 2 == 0)
    size = sum(map(len, letters)) / len(letters) / 1024
    title = f"{chosen.messages} messages of {size:.1f} KiB, {chosen.rounds} mailboxes"
    if chosen.delay:
        title += f", a line of {chosen.delay * 1000:.0f} to {(chosen.delay + chosen.jitter) * 1000:.0f} ms"
    table(title, [*_rows(times, chosen.messages, memory), *_round_trips(times, chosen.delay), *_bytes(wire, letters[chosen.messages :])])
    if not Mbsync.is_installed():
        print("NOT COMPARED: mbsync is not installed (Debian package isync)")


def _bytes(wire: Wire, more: list[bytes]) -> list[tuple[str, str]]:
    """What went over the line; of the changed mailbox, without the new messages themselves."""
    bodies = {CHANGED: sum(map(len, more))}
    return [
        (
            f"bytes over the line, {what}" + (", new messages left out" if what in bodies else ""),
            spread([each - bodies.get(what, 0) for each in sent], "", 0),
        )
        for what, sent in wire.items()
        if what != FULL
    ]


@contextmanager
def _line(dovecot: Dovecot, chosen: Namespace) -> Iterator[FaultProxy]:
    with FaultProxy(dovecot.imap_port) as line:
        line.delay, line.jitter = chosen.delay / 2, chosen.jitter / 2
        yield line


def _round(
    times: Times,
    wire: Wire,
    acme: Tenant,
    dovecot: Dovecot,
    user: str,
    more: list[bytes],
    messages: int,
    unchanged: int,
    *,
    far: FaultProxy | None,
    is_first: bool,
) -> None:
    ports = {OURS: dovecot.imap_port, **({FAR: far.port} if far else {})}
    clients = {
        who: acme.new_client(email=f"{user}@acme.example", imap_port=port, imap_username=user, imap_password="secret")
        for who, port in ports.items()
    }
    copies = _copies(dovecot, user)
    dovecot.doveadm("index", "-u", user, "INBOX")  # so that nobody pays for the server's first look at its files

    def everybody(what: str, new: int) -> None:
        def ours() -> None:
            for who in clients if is_first else reversed(clients):
                before = far.passed if far else 0
                times[who, what].append(_synced(acme, clients[who], new))
                if far and who == FAR:
                    wire[what].append(far.passed - before)

        if is_first:
            ours()
        for name, copy in copies.items():
            times[name, what].append(copy.sync())
        if not is_first:
            ours()

    everybody(FULL, messages)
    for _ in range(unchanged):
        everybody(UNCHANGED, 0)
    _change(dovecot, user, more)
    everybody(CHANGED, len(more))
    assert all(copy.count() == messages + NEW - DELETED for copy in copies.values())


def _copies(dovecot: Dovecot, user: str) -> dict[str, Mbsync]:
    """The peer, careful and careless; nobody where it is not installed."""
    return {
        name: Mbsync(dovecot.directory / f"{user}-{name.split()[1]}", dovecot.imap_port, user, "secret", fsync=name == CAREFUL)
        for name in ((THEIRS, CAREFUL) if Mbsync.is_installed() else ())
    }


def _change(dovecot: Dovecot, user: str, more: list[bytes]) -> None:
    for raw in more:
        dovecot.deliver(user, raw)
    with dovecot.imap_client(user, "secret") as client:
        client.select("INBOX")
        client.uid("STORE", f"1:{FLAGGED}", "+FLAGS", "(\\Flagged)")
        client.uid("STORE", f"{FLAGGED + 1}:{FLAGGED + DELETED}", "+FLAGS", "(\\Deleted)")
        client.expunge()


def _synced(acme: Tenant, client_id: str, new: int) -> float:
    """Seconds of one sync, as its result says."""
    run = acme.ended(acme.enqueue("/api/email/sync", {"email_client_id": client_id}), timeout=600)
    assert run["state"] == "SUCCESS", run
    assert run["result"]["messages_synced"] == new, run["result"]
    return float(run["result"]["sync_duration_seconds"])


def _round_trips(times: Times, delay: float) -> list[tuple[str, str]]:
    """How many of them a sync waits for: by how much longer it takes over the line."""
    if not delay:
        return []
    longer = {what: statistics.median(times[FAR, what]) - statistics.median(times[OURS, what]) for what in (FULL, UNCHANGED, CHANGED)}
    return [(f"round trips waited for, {what}", f"{seconds / delay:.1f}") for what, seconds in longer.items()]


def _rows(times: Times, messages: int, memory: PeakMemory) -> list[tuple[str, str]]:
    rows = [(f"{who}: {what}", spread(seconds, "s", 3)) for (who, what), seconds in sorted(times.items(), key=lambda each: each[0][1])]
    rows += [
        (f"{who}: messages a second", spread([messages / each for each in times[who, FULL]], "", 0))
        for who in dict.fromkeys(w for w, _ in times)
    ]
    for (who, what), seconds in times.items():
        if who != OURS:
            ratio = statistics.median(seconds) / statistics.median(times[OURS, what])
            rows.append((f"{who} takes, {what}", f"{ratio:.2f} times as long as Mailroom"))
    return [*rows, ("memory of the worker process, PSS, before; at its peak", f"{memory.first:.0f} MiB; {memory.peak:.0f} MiB")]


if __name__ == "__main__":
    main()
