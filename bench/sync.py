"""A mailbox from Dovecot into PostgreSQL by a real worker, and by mbsync into a Maildir, in turn: all of it, nothing new, a few changes."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from pathlib import Path

from bench.mailbox_copies import Mbsync
from bench.workbench import options, spread, table, workbench
from tests.acceptance.installation import Program, Tenant
from tests.servers.dovecot import Dovecot
from tests.servers.process import server_directory
from tests.unit.mail_corpus import letter

NEW, FLAGGED, DELETED = 100, 50, 20
FULL, UNCHANGED, CHANGED = "all of it", "nothing new", f"{NEW} new, {FLAGGED} flags, {DELETED} deleted"
OURS, THEIRS, CAREFUL = "Mailroom", "mbsync without fsync", "mbsync with fsync (its default)"
Times = dict[tuple[str, str], list[float]]


def main() -> None:
    """Each round has a mailbox of its own; whoever is first in one round is last in the next."""
    chosen = options("Sync of a mailbox.", messages=20_000, rounds=3, unchanged=3)
    times: Times = defaultdict(list)
    letters = [letter(number) for number in range(chosen.messages + NEW)]
    with workbench() as bench, server_directory("bench-dovecot") as directory, Dovecot(directory) as dovecot:
        worker = bench.installation.start_worker(processes=1, threads=4, LOG_LEVEL="INFO")
        bench.installation.start_api()
        acme = bench.installation.new_tenant("acme")
        for number in range(chosen.rounds):
            user = f"user{number}"
            dovecot.add_user(user, "secret")
            for raw in letters[: chosen.messages]:
                dovecot.deliver(user, raw)
            _round(times, acme, dovecot, user, letters[chosen.messages :], chosen.messages, chosen.unchanged, is_first=number % 2 == 0)
        peak = _peak_mebibytes(worker)
    size = sum(map(len, letters)) / len(letters) / 1024
    table(f"{chosen.messages} messages of {size:.1f} KiB, {chosen.rounds} mailboxes", _rows(times, chosen.messages, peak))
    if not Mbsync.is_installed():
        print("NOT COMPARED: mbsync is not installed (Debian package isync)")


def _round(
    times: Times, acme: Tenant, dovecot: Dovecot, user: str, more: list[bytes], messages: int, unchanged: int, *, is_first: bool
) -> None:
    client_id = acme.new_client(email=f"{user}@acme.example", imap_port=dovecot.imap_port, imap_username=user, imap_password="secret")
    copies = {}
    if Mbsync.is_installed():
        for name in (THEIRS, CAREFUL):
            directory = dovecot.directory / f"{user}-{name.split()[1]}"
            copies[name] = Mbsync(directory, dovecot.imap_port, user, "secret", fsync=name == CAREFUL)
    dovecot.doveadm("index", "-u", user, "INBOX")  # so that nobody pays for the server's first look at its files

    def everybody(what: str, new: int) -> None:
        def ours() -> None:
            times[OURS, what].append(_synced(acme, client_id, new))

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


def _peak_mebibytes(worker: Program) -> float:
    """The most that one process of the worker ever had in memory."""
    peaks = [re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) for pid in worker.tree()]
    return max(int(peak.group(1)) for peak in peaks if peak) / 1024


def _rows(times: Times, messages: int, peak: float) -> list[tuple[str, str]]:
    rows = [(f"{who}: {what}", spread(seconds, "s", 3)) for (who, what), seconds in sorted(times.items(), key=lambda each: each[0][1])]
    rows += [
        (f"{who}: messages a second", spread([messages / each for each in times[who, FULL]], "", 0))
        for who in dict.fromkeys(w for w, _ in times)
    ]
    for (who, what), seconds in times.items():
        if who != OURS:
            ratio = statistics.median(seconds) / statistics.median(times[OURS, what])
            rows.append((f"{who} takes, {what}", f"{ratio:.2f} times as long as Mailroom"))
    return [*rows, ("peak memory of the worker", f"{peak:.0f} MiB")]


if __name__ == "__main__":
    main()
