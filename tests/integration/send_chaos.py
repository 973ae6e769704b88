"""Sending under fire: real workers, killed again and again, and a server that loses connections before and after the final dot."""

from __future__ import annotations

import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tests.acceptance.installation import START_SECONDS, Installation, Program, Tenant, eventually
from tests.servers.smtp import SmtpSink

THREADS = 4
CALLERS = 4
MOST_TRIED = 0.9
"""The share of the mails after which nobody is killed any more."""
_WORKER = [sys.executable, "-m", "cli.worker_process", "--threads", str(THREADS)]
_MESSAGE_ID = re.compile(rb"(?im)^Message-ID: (\S+)")
OVER = ("sent", "failed", "uncertain", "cancelled")


@dataclass(frozen=True)
class Chaos:
    """How much of it. `drop_share` of the mails lose their connection, half of them after the dot; `delay` (s) is the server's for each
    mail, half of it before the dot. The kills are spread over the mails, at least `seconds_between` (give or take half) apart."""

    mails: int = 480
    kills: int = 4
    seconds_between: float = 0.7
    drop_share: float = 0.08
    delay: float = 0.01
    processes: int = 2
    timeout: float = 90.0


@dataclass(frozen=True)
class Verdict:
    """What the record says against what the server has. `lost`: the record says `sent`, and the server never had it. `drops` are those
    after the dot."""

    statuses: dict[str, int]
    duplicates: int
    lost: int
    unsent: int
    arrived: int
    uncertain: int
    uncertain_arrived: int
    drops: int
    early_drops: int
    kills: int
    seconds: float

    @property
    def most_uncertain(self) -> int:
        """One for each fault after the dot: a dropped connection, and each thread's mail under way when its process was killed."""
        return self.drops + self.kills * THREADS

    @property
    def is_kept(self) -> bool:
        """Whether what is promised of mails was kept: none twice, none silently lost or given up, none uncertain without a fault."""
        return (self.duplicates, self.lost, self.unsent) == (0, 0, 0) and self.uncertain <= self.most_uncertain


class Fleet:
    """Worker processes without a supervisor: its back-off would leave nobody to kill. Each that is killed is replaced at once."""

    def __init__(self, installation: Installation, processes: int) -> None:
        self._installation = installation
        self._programs = [self._start() for _ in range(processes)]
        eventually(lambda: len(self._started()) == processes, "the workers start", START_SECONDS)

    def kill_one(self, dice: random.Random) -> bool:
        """SIGKILL to one of those that work. False when all are still starting."""
        started = self._started()
        if started:
            victim = dice.choice(started)
            victim.kill()
            self._programs[self._programs.index(victim)] = self._start()
        return bool(started)

    def stop(self) -> None:
        """Ends them gracefully."""
        for program in self._programs:
            program.terminate()

    def _start(self) -> Program:
        return self._installation.start_command(_WORKER, name="worker")

    def _started(self) -> list[Program]:
        return [each for each in self._programs if each.running and "worker_started" in each.output()]


def run_chaos(
    installation: Installation,
    tenant: Tenant,
    sink: SmtpSink,
    chaos: Chaos,
    *,
    seed: int = 1,
    tell: Callable[[str], None] = lambda _text: None,
) -> Verdict:
    """Accepts the mails over HTTP, kills workers while they send, waits until each mail is over, and compares."""
    sink.reset()
    sink.dice, sink.early_dice = random.Random(seed), random.Random(seed + 1)
    sink.drop_share = sink.early_drop_share = chaos.drop_share / 2
    sink.delay = sink.early_delay = chaos.delay / 2
    client_id = tenant.new_client(email="ann@acme.example", smtp_port=sink.port)
    started = time.monotonic()
    with ThreadPoolExecutor(CALLERS) as callers:
        accepted = set(callers.map(lambda number: _accept(tenant, client_id, number), range(chaos.mails)))
    tell(f"{len(accepted)} mails accepted")
    fleet = Fleet(installation, chaos.processes)
    kills = _kill(fleet, sink, chaos, random.Random(seed), tell)
    query = "SELECT count(*) FROM outbound_emails WHERE status NOT IN %s"
    eventually(lambda: installation.query(query, OVER)[0][0] == 0, "every mail is over", chaos.timeout)
    seconds = time.monotonic() - started
    fleet.stop()
    rows = installation.query("SELECT message_id, status FROM outbound_emails")
    return _verdict(dict(rows), accepted, sink, kills, seconds)


def _accept(tenant: Tenant, client_id: str, number: int) -> str:
    body = {"emailClientId": client_id, "to": [f"r{number}@globex.example"], "subject": f"Mail {number}", "bodyText": "x" * 500}
    answer = tenant.http.post("/api/outbound-emails", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["messageId"])


def _kill(fleet: Fleet, sink: SmtpSink, chaos: Chaos, dice: random.Random, tell: Callable[[str], None]) -> int:
    """Again and again while mails are under way."""
    kills, deadline = 0, time.monotonic() + chaos.timeout + chaos.kills * 10
    while kills < chaos.kills and sink.attempts < chaos.mails * MOST_TRIED and time.monotonic() < deadline:
        time.sleep(chaos.seconds_between * dice.uniform(0.5, 1.5))
        if sink.attempts > chaos.mails * MOST_TRIED * kills / chaos.kills and fleet.kill_one(dice):
            kills += 1
            if kills % 50 == 0:
                tell(f"{kills} kills, {sink.attempts} mails tried, {len(sink.received)} arrived")
    return kills


def _verdict(status_of: dict[str, str], accepted: set[str], sink: SmtpSink, kills: int, seconds: float) -> Verdict:
    arrived: Counter[str] = Counter()
    for received in sink.received:
        found: Any = _MESSAGE_ID.search(received.raw)
        arrived[found.group(1).decode()] += 1
    statuses = Counter(status_of[message_id] for message_id in accepted)
    return Verdict(
        statuses=dict(statuses),
        duplicates=sum(count > 1 for count in arrived.values()),
        lost=sum(status_of[each] == "sent" and not arrived[each] for each in accepted),
        unsent=sum(status_of[each] in {"failed", "cancelled"} for each in accepted),
        arrived=sum(arrived.values()),
        uncertain=statuses["uncertain"],
        uncertain_arrived=sum(status_of[each] == "uncertain" and arrived[each] > 0 for each in accepted),
        drops=sink.drops,
        early_drops=sink.early_drops,
        kills=kills,
        seconds=seconds,
    )
