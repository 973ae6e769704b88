"""How everything is that Mailroom stands on, asked in parallel and never for long.

Each part is asked in a thread of its own, which is given up when it does not come back in time. What is found is one word and, where
that is not `healthy`, one sentence; neither holds a URL, a login or an address.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Engine

from brokers.probes import probe_rabbitmq, probe_redis
from core.errors import MailroomError
from core.settings import Settings
from mail.accounts import Endpoint, Security
from mail.greeting import greet
from runs.control import get_queue_stats, get_workers
from storage.engine import session_scope, system_connection
from storage.migrations import current_and_newest
from storage.repositories.health import Finding
from storage.repositories.vitals import MailServer, Vitals
from storage.states import HealthStatus

PATIENCE_SECONDS = 2.0
MAIL_SECONDS = 5.0
MAIL_IN_ALL_SECONDS = 30.0
MOST_MAIL_SERVERS = 100
AT_ONCE = 16
MOST_WORKERS_TOLD = 200
SCHEDULER_LATE_SECONDS = 180.0
RELAY_LATE_SECONDS = 60.0
BACKLOG_SECONDS = 900.0
"""A run that is due and has waited for longer: somebody should look whether there are workers enough."""
OUR_OWN = ("database", "rabbitmq", "redis", "worker", "scheduler", "migrations")

Facts = tuple[HealthStatus, str | None, dict[str, Any]]
"""Status, reason and what else there is to tell."""
Check = Callable[[], Facts]
WELL: Facts = (HealthStatus.HEALTHY, None, {})


def overall(statuses: Mapping[str, str]) -> HealthStatus:
    """`unhealthy`: nothing can be done, without the database, any broker or any worker. `degraded`: something else is not healthy."""
    brokers = [statuses[name] for name in ("rabbitmq", "redis") if name in statuses]
    needed = [statuses.get("database"), statuses.get("worker")]
    if HealthStatus.UNHEALTHY in needed or (brokers and set(brokers) == {HealthStatus.UNHEALTHY}):
        return HealthStatus.UNHEALTHY
    return HealthStatus.HEALTHY if set(statuses.values()) <= {HealthStatus.HEALTHY} else HealthStatus.DEGRADED


def look_at_ours(settings: Settings, engine: Engine, only: Sequence[str] = OUR_OWN) -> list[Finding]:
    """The database, both brokers, workers, schedulers and the schema. A broker that is not configured is left out."""
    checks: dict[str, Check] = {
        "database": partial(_database, engine),
        "worker": partial(_worker, engine),
        "scheduler": partial(_scheduler, engine),
        "migrations": partial(_migrations, engine),
    }
    if settings.rabbitmq:
        checks["rabbitmq"] = partial(_answers, probe_rabbitmq, settings.rabbitmq)
    if settings.redis:
        checks["redis"] = partial(_answers, probe_redis, settings.redis)
    return _asked({name: check for name, check in checks.items() if name in only}, within=PATIENCE_SECONDS + 0.5)


def look_at_mail_servers(settings: Settings, engine: Engine) -> list[Finding]:
    """The servers in use, the most used first. One that has a pause is not disturbed: what is known of it is told."""
    with session_scope(system=True, engine=engine) as session:
        servers = Vitals(session).mail_servers(MOST_MAIL_SERVERS)
    systems = _systems_own(settings)
    if systems is not None and systems.component not in {server.component for server in servers}:
        servers = [systems, *servers]
    resting = [_resting(server) for server in servers if server.paused_for]
    checks: dict[str, Check] = {server.component: partial(_mail, server, settings) for server in servers if not server.paused_for}
    return [*resting, *_asked(checks, within=MAIL_IN_ALL_SECONDS)]


def _asked(checks: Mapping[str, Check], *, within: float) -> list[Finding]:
    """What each check found. One that fails or does not come back makes its component unhealthy, and nobody wait."""
    waiting: queue.SimpleQueue[tuple[str, Check]] = queue.SimpleQueue()
    found: queue.SimpleQueue[Finding] = queue.SimpleQueue()
    for each in checks.items():
        waiting.put(each)
    for number in range(min(AT_ONCE, len(checks))):
        threading.Thread(target=_ask, args=(waiting, found), name=f"health-{number}", daemon=True).start()
    findings: dict[str, Finding] = {}
    deadline = time.monotonic() + within
    while len(findings) < len(checks):
        try:
            finding = found.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        findings[finding.component] = finding
    late = Finding("", HealthStatus.UNHEALTHY, None, "It did not answer in time.")
    return [findings.get(name) or Finding(name, late.status, None, late.reason) for name in checks]


def _ask(waiting: queue.SimpleQueue[tuple[str, Check]], found: queue.SimpleQueue[Finding]) -> None:
    while True:
        try:
            name, check = waiting.get_nowait()
        except queue.Empty:
            return
        began = time.monotonic()
        try:
            status, reason, facts = check()
        except MailroomError as error:
            status, reason, facts = HealthStatus.UNHEALTHY, str(error), {}
        except Exception as error:  # whatever a driver raises; its text may hold a URL with a password
            status, reason, facts = HealthStatus.UNHEALTHY, f"It cannot be reached ({type(error).__name__}).", {}
        found.put(Finding(name, status, round((time.monotonic() - began) * 1000, 1), reason, facts))


def _database(engine: Engine) -> Facts:
    with system_connection(engine) as connection:
        connection.exec_driver_sql("SELECT 1")
    return WELL


def _answers(probe: Callable[[str, float], None], url: str) -> Facts:
    probe(url, PATIENCE_SECONDS)
    return WELL


def _migrations(engine: Engine) -> Facts:
    current, newest = current_and_newest(engine)
    facts = {"current": current, "newest": newest}
    if current == newest:
        return HealthStatus.HEALTHY, None, facts
    return HealthStatus.DEGRADED, "The database has another schema than this release; run ./manage.py db migrate.", facts


def _scheduler(engine: Engine) -> Facts:
    with session_scope(system=True, engine=engine) as session:
        age = Vitals(session).scheduler_age()
    facts = {"last_tick_age_seconds": None if age is None else round(age, 1)}
    if age is None:
        return HealthStatus.UNHEALTHY, "No scheduler has run yet; start one with ./manage.py scheduler.", facts
    if age > SCHEDULER_LATE_SECONDS:
        return HealthStatus.UNHEALTHY, f"No scheduler has looked for {round(age)} s; start one with ./manage.py scheduler.", facts
    return HealthStatus.HEALTHY, None, facts


def _worker(engine: Engine) -> Facts:
    with session_scope(system=True, engine=engine) as session:
        vitals = Vitals(session)
        alive, stale, lag = get_workers(session), vitals.stale_workers(), vitals.relay_lag()
        backlog = {each.name: each.oldest_seconds for each in get_queue_stats(session) if each.oldest_seconds is not None}
    workers = [
        {
            "id": each.worker.id,
            "host": each.worker.host,
            "pid": each.worker.pid,
            "state": each.worker.state,
            "threads": each.worker.threads,
            "busy_threads": each.busy_threads,
            "queues": each.worker.queues,
        }
        for each in alive[:MOST_WORKERS_TOLD]
    ]
    facts = {
        "workers_count": len(alive),
        "active_tasks": sum(each.busy_threads for each in alive),
        "workers": workers,
        "stale_workers": stale,
        "relay_lag_seconds": round(lag, 1),
        "oldest_wait_seconds": round(max(backlog.values(), default=0.0), 1),
    }
    if not alive:
        return HealthStatus.UNHEALTHY, "No worker is alive: nothing runs until one starts (./manage.py worker).", facts
    return (HealthStatus.DEGRADED, reason, facts) if (reason := _worry(stale, lag, backlog)) else (HealthStatus.HEALTHY, None, facts)


def _worry(stale: int, lag: float, backlog: Mapping[str, float]) -> str | None:
    if stale:
        return f"{stale} worker(s) have not been heard of lately; what they ran is given back to others."
    if lag > RELAY_LATE_SECONDS:
        return f"A run has been due for {round(lag)} s and no relay has published it."
    name, oldest = max(backlog.items(), key=lambda each: each[1], default=("", 0.0))
    if oldest > BACKLOG_SECONDS:
        return f"A due run in the queue {name} has waited for {round(oldest / 60)} min; start more workers, or look what holds these up."
    return None


def _mail(server: MailServer, settings: Settings) -> Facts:
    endpoint = Endpoint(
        server.host,
        server.port,
        Security(server.security),
        verify_tls=settings.ssl_verify,
        allow_private=settings.allow_private_mail_hosts,
        timeout=MAIL_SECONDS,
    )
    greet(server.protocol, endpoint)
    return HealthStatus.HEALTHY, None, {"accounts": server.accounts}


def _resting(server: MailServer) -> Finding:
    reason = (
        f"{server.where} did not answer {server.failures} times in a row; it is left alone for {max(1, round(server.paused_for))} s more."
    )
    return Finding(server.component, HealthStatus.UNHEALTHY, None, reason, {"accounts": server.accounts})


def _systems_own(settings: Settings) -> MailServer | None:
    """The server that SYSTEM_SMTP_URL names."""
    server = settings.system_smtp
    return MailServer("smtp", server.host, server.port, Security(server.security), 0) if server is not None else None


def statuses_of(findings: Iterable[Finding]) -> dict[str, str]:
    """Component to status."""
    return {finding.component: str(finding.status) for finding in findings}
