"""How everything is: a check every minute, and a summary of every hour."""

from __future__ import annotations

from typing import TypedDict

from periodiq import cron

from brokers.queues import Queue
from core.clock import to_epoch_ms
from core.logging import get_logger
from core.settings import get_settings
from runs.health import look_at_mail_servers, look_at_ours, overall
from runs.task import task
from storage.engine import get_engine, session_scope
from storage.models import ServiceHealth
from storage.repositories.health import ServiceHealths, since_now
from storage.states import HealthStatus

log = get_logger(__name__)


class HealthResult(TypedDict):
    """`health` of all, and of each component; the timestamp is the database's, in milliseconds since the epoch."""

    status: str
    health: str
    components: dict[str, str]
    timestamp: int


class ComponentSummary(TypedDict):
    """A component's hour: the share of checks in which it was healthy, the worst latency, and how often its status changed."""

    healthy_share: float
    worst_latency_ms: float | None
    changes: int


class HealthSummary(TypedDict):
    """The hour's worst, and each component's part; `checks` is how many there were (60, if none was missed)."""

    status: str
    health: str
    checks: int
    components: dict[str, ComponentSummary]


@task(queue=Queue.PERIODIC, periodic=cron("* * * * *"), retries=0)
def check_service_health() -> HealthResult:
    """Look at everything that Mailroom stands on and write down how it was."""
    settings, engine = get_settings(), get_engine()
    findings = [*look_at_ours(settings, engine), *look_at_mail_servers(settings, engine)]
    with session_scope(system=True) as session:
        rows = ServiceHealths(session).write(findings)
    for row in rows:
        _tell_change(row)
    statuses = {row.component: str(row.status) for row in rows}
    return HealthResult(status="success", health=overall(statuses), components=statuses, timestamp=to_epoch_ms(rows[0].checked_at))


@task(queue=Queue.PERIODIC, periodic=cron("0 * * * *"))
def periodic_health_check() -> HealthSummary:
    """Sum up the last hour's checks."""
    with session_scope(system=True) as session:
        summaries = ServiceHealths(session).summaries(hours=1)
    health = overall({each.component: each.status for each in summaries}) if summaries else HealthStatus.UNHEALTHY
    checks = max((each.checks for each in summaries), default=0)
    components = {
        each.component: ComponentSummary(healthy_share=each.healthy_share, worst_latency_ms=each.worst_latency_ms, changes=each.changes)
        for each in summaries
    }
    unwell = sorted(each.component for each in summaries if each.healthy_share < 1)
    tell = log.info if health == HealthStatus.HEALTHY else log.warning
    tell("health_summary", health=str(health), checks=checks, components=len(components), unwell=unwell)
    return HealthSummary(status="success", health=health, checks=checks, components=components)


def _tell_change(row: ServiceHealth) -> None:
    """Once, when it happens: not every minute for as long as it lasts."""
    if not since_now(row):
        return
    if row.status != HealthStatus.HEALTHY:
        log.warning("component_unwell", component=row.component, health=str(row.status), reason=row.reason)
    else:
        log.info("component_well", component=row.component)
