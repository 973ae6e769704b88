"""Sending under fire: real workers, killed again and again, and a server that loses connections after the final dot."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.acceptance.installation import Installation, Program, Tenant, eventually
from tests.servers.smtp import SmtpSink

THREADS = 4
_MESSAGE_ID = re.compile(rb"(?im)^Message-ID: (\S+)")
OVER = ("sent", "failed", "uncertain", "cancelled")


@dataclass(frozen=True)
class Chaos:
    """How much of it. `drop_share` of the mails lose their connection after the dot; `delay` (s) is the server's for each mail."""

    mails: int = 240
    kills: int = 4
    seconds_between: float = 0.7
    drop_share: float = 0.04
    delay: float = 0.01
    processes: int = 2
    timeout: float = 90.0


@dataclass(frozen=True)
class Verdict:
    """What the record says against what the server has. `lost`: the record says `sent`, and the server never had it."""

    statuses: dict[str, int]
    duplicates: int
    lost: int
    unsent: int
    arrived: int
    uncertain: int
    drops: int
    kills: int
    seconds: float

    @property
    def most_uncertain(self) -> int:
        """One for each fault after the dot: a dropped connection, and each thread's mail under way when its process was killed."""
        return self.drops + self.kills * THREADS


def run_chaos(installation: Installation, tenant: Tenant, sink: SmtpSink, chaos: Chaos, *, seed: int = 1) -> Verdict:
    """Accepts the mails over HTTP, kills workers while they send, waits until each mail is over, and compares."""
    sink.reset()
    sink.dice = random.Random(seed)
    sink.drop_share, sink.delay = chaos.drop_share, chaos.delay
    client_id = tenant.new_client(email="ann@acme.example", smtp_port=sink.port)
    started = time.monotonic()
    accepted = [_accept(tenant, client_id, number) for number in range(chaos.mails)]
    worker = installation.start_worker(processes=chaos.processes, threads=THREADS)
    kills = _kill(worker, sink, chaos, random.Random(seed))
    query = "SELECT count(*) FROM outbound_emails WHERE status NOT IN %s"
    eventually(lambda: installation.query(query, OVER)[0][0] == 0, "every mail is over", chaos.timeout)
    seconds = time.monotonic() - started
    worker.terminate()
    rows = installation.query("SELECT message_id, status FROM outbound_emails")
    return _verdict(dict(rows), set(accepted), sink, kills, seconds)


def _accept(tenant: Tenant, client_id: str, number: int) -> str:
    body = {"emailClientId": client_id, "to": [f"r{number}@globex.example"], "subject": f"Mail {number}", "bodyText": "x" * 500}
    answer = tenant.http.post("/api/outbound-emails", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["messageId"])


def _kill(worker: Program, sink: SmtpSink, chaos: Chaos, dice: random.Random) -> int:
    """SIGKILL to one of the processes below the supervisor, again and again while mails are under way."""
    kills = 0
    while kills < chaos.kills and sink.attempts < chaos.mails * 0.9:
        time.sleep(chaos.seconds_between * dice.uniform(0.5, 1.5))
        children = worker.children()
        if not children or not sink.attempts:
            continue
        try:
            os.kill(dice.choice(children), signal.SIGKILL)
            kills += 1
        except ProcessLookupError:
            continue
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
        drops=sink.drops,
        kills=kills,
        seconds=seconds,
    )
