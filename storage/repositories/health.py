"""The record of health checks: writing one, the newest, and what became of an hour. For the system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from sqlalchemy import delete, func, select

from storage.expressions import db_now, db_now_plus
from storage.models import ServiceHealth
from storage.repositories.base import Repository
from storage.states import HealthStatus

FORGOTTEN_SECONDS = 900.0
"""After so long without a check it is not known since when something is as it is."""


@dataclass(frozen=True, slots=True)
class Finding:
    """How a component was found. `reason` is one sentence without secrets; None for what is healthy."""

    component: str
    status: HealthStatus
    latency_ms: float | None = None
    reason: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Summary:
    """A component over some time: the share of checks in which it was healthy, its worst latency, and how often its status changed."""

    component: str
    checks: int
    healthy_share: float
    worst_latency_ms: float | None
    changes: int
    status: HealthStatus


class ServiceHealths(Repository):
    """Every row is the system's."""

    def write(self, findings: Sequence[Finding]) -> list[ServiceHealth]:
        """One check. Returns its rows; a row whose `since` is its `checked_at` has changed, or is new."""
        moment = self.session.execute(select(db_now())).scalar_one()
        before = {row.component: row for row in self.latest() if (moment - row.checked_at).total_seconds() < FORGOTTEN_SECONDS}
        rows = []
        for finding in findings:
            last = before.get(finding.component)
            row = ServiceHealth(
                checked_at=moment,
                component=finding.component[:320],
                status=finding.status,
                latency_ms=finding.latency_ms,
                reason=finding.reason,
                facts=finding.facts or None,
                since=last.since if last is not None and last.status == finding.status else moment,
                failures=0 if finding.status == HealthStatus.HEALTHY else (last.failures if last is not None else 0) + 1,
            )
            rows.append(row)
        self.session.add_all(rows)
        self.session.flush()
        return rows

    def latest(self) -> list[ServiceHealth]:
        """The newest check, by component; empty when there was none."""
        newest = select(func.max(ServiceHealth.checked_at)).scalar_subquery()
        return list(self.session.scalars(select(ServiceHealth).where(ServiceHealth.checked_at == newest).order_by(ServiceHealth.component)))

    def age(self) -> float | None:
        """Seconds since the newest check; None when there was none."""
        newest, moment = self.session.execute(select(func.max(ServiceHealth.checked_at), db_now())).one()
        return None if newest is None else max(0.0, float((moment - newest).total_seconds()))

    def history(self, hours: float) -> list[tuple[datetime, str, str]]:
        """(checked at, component, status) of the last hours, the oldest first."""
        recent = ServiceHealth.checked_at >= db_now_plus(-hours * 3600)
        columns = (ServiceHealth.checked_at, ServiceHealth.component, ServiceHealth.status)
        found = self.session.execute(select(*columns).where(recent).order_by(ServiceHealth.checked_at))
        return [(row[0], row[1], row[2]) for row in found]

    def summaries(self, hours: float) -> list[Summary]:
        """Each component over the last hours, by name; its status is the worst that it had in more than a tenth of the checks."""
        seen: dict[str, list[tuple[str, float | None]]] = {}
        columns = (ServiceHealth.component, ServiceHealth.status, ServiceHealth.latency_ms)
        recent = ServiceHealth.checked_at >= db_now_plus(-hours * 3600)
        for component, status, latency in self.session.execute(select(*columns).where(recent).order_by(ServiceHealth.checked_at)):
            seen.setdefault(component, []).append((status, latency))
        return [_summary(component, seen[component]) for component in sorted(seen)]

    def forget(self, days: int, limit: int) -> int:
        """Deletes checks that are older, at most so many rows. Returns how many."""
        old = select(ServiceHealth.checked_at).where(ServiceHealth.checked_at < db_now_plus(-days * 86_400.0))
        until = self.session.scalars(old.order_by(ServiceHealth.checked_at).limit(limit)).all()
        if not until:
            return 0
        gone = self.session.execute(delete(ServiceHealth).where(ServiceHealth.checked_at <= until[-1]))
        return gone.rowcount  # type: ignore[no-any-return,attr-defined]


def _summary(component: str, checks: Sequence[tuple[str, float | None]]) -> Summary:
    states = [status for status, _ in checks]
    latencies = [latency for _, latency in checks if latency is not None]
    changes = sum(1 for before, after in pairwise(states) if before != after)
    share = states.count(HealthStatus.HEALTHY) / len(states)
    worst = max(latencies, default=None)
    unhealthy = states.count(HealthStatus.UNHEALTHY) / len(states)
    status = HealthStatus.UNHEALTHY if unhealthy > 0.1 else HealthStatus.DEGRADED if share < 1 else HealthStatus.HEALTHY
    return Summary(component, len(states), round(share, 4), worst, changes, status)


def since_now(row: ServiceHealth) -> bool:
    """Whether the check of this row found another status than the one before it."""
    return row.checked_at - row.since < timedelta(microseconds=1)
