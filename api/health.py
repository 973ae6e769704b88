"""How Mailroom is, for probes and people: what `check_service_health` last wrote, or what can be seen from here when that is not to be had.

Probes are answered from a look at the database and the brokers that is given up after seconds and kept for two, so that probes from
many places cost no more than one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import Engine

from core.clock import now
from core.errors import UnavailableError
from core.settings import Settings, get_settings
from core.tenancy import Identity
from runs.health import OUR_OWN, look_at_ours, overall, statuses_of
from storage.engine import new_session, session_scope
from storage.models import ServiceHealth
from storage.repositories.health import Finding, ServiceHealths
from storage.repositories.vitals import USUAL, Vitals
from storage.states import HealthStatus

KEPT_SECONDS = 2.0
CHECKS_LATE_SECONDS = 180.0
PROBED = ("database", "rabbitmq", "redis")
NOT_CHECKED = "No health check has run for {age}, so this is what can be seen from here; see to the scheduler and the workers."
Component = dict[str, Any]
HOURS = 6
CELL = timedelta(minutes=5)
STRIP_KEPT_SECONDS = 20.0
SEVERITY = [HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.UNHEALTHY]
Strip = list[HealthStatus | None]
"""The worst of each five minutes, the oldest first; None where nobody looked."""


@dataclass(frozen=True, slots=True)
class Report:
    """`age_seconds`: since when it is so; None for what was looked at just now. `reason`: why it is not what checks have found."""

    status: HealthStatus
    components: dict[str, Component]
    checked_at: str
    age_seconds: float | None = None
    reason: str | None = None


class Health:
    """The looks of one process."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._lock = threading.Lock()
        self._kept: dict[Sequence[str], tuple[float, list[Finding]]] = {}
        self._strips: tuple[float, dict[str, Strip]] = (0.0, {})

    def ready(self) -> Report:
        """The database and the brokers only, looked at from here."""
        return self._seen_from_here(PROBED)

    def detailed(self, identity: Identity) -> Report:
        """Everything that the identity may see: mail servers are shown to those whose accounts use them, and to the system."""
        try:
            with session_scope(system=True, engine=self._engine) as session:
                checks = ServiceHealths(session)
                age, rows = checks.age(), checks.latest()
            if age is None or age > CHECKS_LATE_SECONDS:
                return self._without_checks(age)
            seen = {row.component: _component(row) for row in rows if row.component in OUR_OWN} | self._mail_servers(identity, rows)
        except UnavailableError:
            return self._seen_from_here(PROBED)
        self._add_missing(seen)
        # Whoever sees less hears of the same whole: a tenant's own mail server does not count for another's.
        status = overall({name: each["status"] for name, each in seen.items()})
        return Report(status, seen, _text(rows[0]), round(age, 1))

    def strips(self) -> dict[str, Strip]:
        """Component to its last hours. Kept for a while: pages ask every second, checks are made every minute."""
        with self._lock:
            taken, strips = self._strips
            if not taken or time.monotonic() - taken > STRIP_KEPT_SECONDS:
                with session_scope(system=True, engine=self._engine) as session:
                    strips = _strips(ServiceHealths(session).history(HOURS), now())
                self._strips = (time.monotonic(), strips)
            return strips

    def _mail_servers(self, identity: Identity, rows: Sequence[ServiceHealth]) -> dict[str, Component]:
        own: Collection[str] | None = None
        if not identity.is_system:
            with new_session(identity, self._engine) as session:
                own = {server.component for server in Vitals(session).mail_servers(len(rows) + 1)}
        of_mail = [row for row in rows if row.component.partition(":")[0] in USUAL]
        return {row.component: _component(row) for row in of_mail if own is None or row.component in own}

    def _without_checks(self, age: float | None) -> Report:
        """Nobody has ever checked where nothing has run yet, which the other components say; that nobody checks any more is news."""
        report = self._seen_from_here(OUR_OWN)
        if age is None:
            return report
        status = HealthStatus.DEGRADED if report.status == HealthStatus.HEALTHY else report.status
        reason = NOT_CHECKED.format(age=f"{round(age / 60)} min")
        return Report(status, report.components, report.checked_at, round(age, 1), reason)

    def _seen_from_here(self, names: Sequence[str]) -> Report:
        with self._lock:
            taken, findings = self._kept.get(names, (0.0, []))
            if not findings or time.monotonic() - taken > KEPT_SECONDS:
                findings = look_at_ours(self._settings, self._engine, names)
                self._kept[names] = (time.monotonic(), findings)
        seen = {each.component: _described(each.status, each.latency_ms, each.reason, each.facts) for each in findings}
        self._add_missing(seen)
        return Report(overall(statuses_of(findings)), seen, now().isoformat().replace("+00:00", "Z"))

    def _add_missing(self, seen: dict[str, Component]) -> None:
        """A broker that is not configured is no trouble, and is not left out either."""
        configured = {"rabbitmq": self._settings.rabbitmq, "redis": self._settings.redis}
        for name, url in configured.items():
            if url is None:
                seen[name] = _described(HealthStatus.HEALTHY, None, None, {"configured": False})


@lru_cache(maxsize=4)
def health_of(engine: Engine) -> Health:
    """For the pages, which know whom they show and not what they are part of."""
    return Health(get_settings(), engine)


def _strips(history: Sequence[tuple[datetime, str, str]], until: datetime) -> dict[str, Strip]:
    cells = int(timedelta(hours=HOURS) / CELL)
    strips: dict[str, Strip] = {}
    for checked_at, component, status in history:
        strip = strips.setdefault(component, [None] * cells)
        place = cells - 1 - int((until - checked_at) / CELL)
        if 0 <= place < cells:
            before = strip[place]
            strip[place] = max(HealthStatus(status), before or HealthStatus.HEALTHY, key=SEVERITY.index)
    return strips


def _component(row: ServiceHealth) -> Component:
    since = {"since": row.since.isoformat().replace("+00:00", "Z"), "failures": row.failures}
    return _described(HealthStatus(row.status), row.latency_ms, row.reason, row.facts or {}) | since


def _described(status: HealthStatus, latency_ms: float | None, reason: str | None, facts: dict[str, Any]) -> Component:
    return {"status": status, "latency_ms": latency_ms, "reason": reason, **facts}


def _text(row: ServiceHealth) -> str:
    return row.checked_at.isoformat().replace("+00:00", "Z")
