"""What health checks ask the record: workers, what waits and for how long, schedulers, and the mail servers in use. For the system."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, String, cast, func, literal, or_, select, union_all

from storage.expressions import db_now, db_now_plus
from storage.lives import WORKER_LOST_SECONDS
from storage.models import EmailClient, MailHost, Schedule, TaskRun, WorkerProcess
from storage.repositories.base import Repository

USUAL = {"imap": (993, "tls"), "pop3": (995, "tls"), "smtp": (587, "starttls")}
"""Port and security of a server for which the account names none (EmailClients has the same)."""


@dataclass(frozen=True, slots=True)
class MailServer:
    """A mail server that accounts use. `paused_for`: seconds for which all of us leave it alone, because it did not answer."""

    protocol: str
    host: str
    port: int
    security: str
    accounts: int
    paused_for: float = 0.0
    failures: int = 0

    @property
    def where(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def component(self) -> str:
        """The name of its rows in `service_health`."""
        return f"{self.protocol}:{self.host.lower()}:{self.port}"


class Vitals(Repository):
    """Asked once a minute; every question is answered from an index or from a small table."""

    def stale_workers(self) -> int:
        """Workers whose heart has stopped and whom nobody has given up yet."""
        stale = WorkerProcess.heartbeat_at < db_now_plus(-WORKER_LOST_SECONDS)
        return self.session.scalar(select(func.count()).select_from(WorkerProcess).where(stale)) or 0

    def relay_lag(self) -> float:
        """For how many seconds the relay has owed some run a look."""
        moment, oldest = self.session.execute(
            select(db_now(), select(func.min(TaskRun.publish_at)).where(TaskRun.publish_at.is_not(None)).scalar_subquery())
        ).one()
        return _seconds_between(oldest, moment)

    def scheduler_age(self) -> float | None:
        """Seconds since any scheduler looked at the schedules; None when none ever has."""
        newest, moment = self.session.execute(select(func.max(Schedule.checked_until), db_now())).one()
        return None if newest is None else _seconds_between(newest, moment)

    def mail_servers(self, limit: int) -> list[MailServer]:
        """Those of accounts that are synced, and of any that lately did not answer; the most used first."""
        pauses = {
            row.host: row
            for row in self.session.execute(
                select(MailHost.host, MailHost.failures, MailHost.closed_until, db_now().label("moment")).where(MailHost.failures > 0)
            )
        }
        some = union_all(*[self._used(protocol, list(pauses)) for protocol in USUAL]).subquery()
        newest = select(some.c.protocol, some.c.host, some.c.port, some.c.security, some.c.accounts)
        rows = self.session.execute(newest.order_by(some.c.accounts.desc(), some.c.host, some.c.protocol).limit(limit))
        return [_server(row, pauses.get(f"{row.host}:{row.port}")) for row in rows]

    def _used(self, protocol: str, known: list[str]) -> Any:
        host, given_port, given_security = (getattr(EmailClient, f"{protocol}_{what}") for what in ("host", "port", "security"))
        port, security = USUAL[protocol]
        used_port, used_security = func.coalesce(given_port, port), func.coalesce(given_security, security)
        where: ColumnElement[Any] = host + literal(":") + cast(used_port, String)
        return (
            select(
                literal(protocol).label("protocol"),
                host.label("host"),
                used_port.label("port"),
                used_security.label("security"),
                func.count().label("accounts"),
            )
            .where(host.is_not(None), host != "", self.owns(EmailClient), or_(EmailClient.is_sync_enabled, where.in_(known)))
            .group_by(host, used_port, used_security)
        )


def _server(row: Any, pause: Any | None) -> MailServer:
    paused_for = _seconds_between(pause.moment, pause.closed_until) if pause is not None else 0.0
    failures = pause.failures if pause is not None else 0
    return MailServer(row.protocol, row.host, row.port, row.security, row.accounts, paused_for, failures)


def _seconds_between(start: datetime | None, end: datetime | None) -> float:
    return max(0.0, (end - start).total_seconds()) if start is not None and end is not None else 0.0
