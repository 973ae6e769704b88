"""Whether what Mailroom stands on can be reached, asked seldom and never for long.

Every check runs in a thread of its own and is given up after two seconds; answers are kept for two seconds, so that probes from
many places cost no more than one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pika
import redis
from sqlalchemy import Engine

from core.clock import now
from core.logging import get_logger
from core.settings import Settings
from runs.control import get_workers
from storage.engine import session_scope, system_connection
from storage.migrations import current_and_newest
from storage.repositories.schedules import Schedules

log = get_logger(__name__)
LONGEST_CHECK = 2.0
KEPT_SECONDS = 2.0
SCHEDULER_LATE_SECONDS = 180.0

Facts = dict[str, Any]
Check = Callable[[], Facts]


@dataclass(frozen=True, slots=True)
class Report:
    """The checks' answers by component; each has a `status`: ok, late, none, outdated, down or off (not configured)."""

    components: dict[str, Facts]
    checked_at: str

    @property
    def status(self) -> str:
        """`down` without the database or any broker, `degraded` when anything else is not well."""
        states = {name: facts["status"] for name, facts in self.components.items()}
        brokers = {states[name] for name in ("rabbitmq", "redis")} - {"off"}
        if states["database"] == "down" or brokers == {"down"}:
            return "down"
        return "ok" if set(states.values()) <= {"ok", "off"} else "degraded"


class Health:
    """The checks of one process."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._lock = threading.Lock()
        self._kept: dict[bool, tuple[float, Report]] = {}
        self._threads = ThreadPoolExecutor(max_workers=12, thread_name_prefix="health")

    def ready(self) -> Report:
        """The database and the brokers only."""
        return self._fresh(detailed=False)

    def detailed(self) -> Report:
        """Everything."""
        return self._fresh(detailed=True)

    def _fresh(self, *, detailed: bool) -> Report:
        with self._lock:
            taken, report = self._kept.get(detailed, (0.0, None))
            if report is None or time.monotonic() - taken > KEPT_SECONDS:
                report = self._ask(detailed=detailed)
                self._kept[detailed] = (time.monotonic(), report)
            return report

    def _ask(self, *, detailed: bool) -> Report:
        checks: dict[str, Check] = {"database": self._database, "rabbitmq": self._rabbitmq, "redis": self._redis}
        if detailed:
            checks |= {"workers": self._workers, "scheduler": self._scheduler, "migrations": self._migrations}
        deadline = time.monotonic() + LONGEST_CHECK
        asked = {name: self._threads.submit(_timed, check) for name, check in checks.items()}
        components: dict[str, Facts] = {}
        for name, answer in asked.items():
            try:
                components[name] = answer.result(max(0.0, deadline - time.monotonic()))
            except Exception as error:  # whatever a driver raises, and TimeoutError: it cannot be reached
                log.warning("health_check_failed", component=name, error=type(error).__name__)
                components[name] = {"status": "down"}
        return Report(components, now().isoformat().replace("+00:00", "Z"))

    def _database(self) -> Facts:
        with system_connection(self._engine):
            return {"status": "ok"}

    def _rabbitmq(self) -> Facts:
        if not self._settings.rabbitmq:
            return {"status": "off"}
        parameters = pika.URLParameters(self._settings.rabbitmq)
        parameters.socket_timeout = parameters.stack_timeout = parameters.blocked_connection_timeout = LONGEST_CHECK
        parameters.connection_attempts = 1
        pika.BlockingConnection(parameters).close()
        return {"status": "ok"}

    def _redis(self) -> Facts:
        if not self._settings.redis:
            return {"status": "off"}
        client = redis.Redis.from_url(self._settings.redis, socket_timeout=LONGEST_CHECK, socket_connect_timeout=LONGEST_CHECK, retry=None)
        try:
            client.ping()
        finally:
            client.close()
        return {"status": "ok"}

    def _workers(self) -> Facts:
        with session_scope(system=True, engine=self._engine) as session:
            alive = len(get_workers(session))
        return {"status": "ok" if alive else "none", "alive": alive}

    def _scheduler(self) -> Facts:
        with session_scope(system=True, engine=self._engine) as session:
            schedules = Schedules(session)
            looked_until = max((schedule.checked_until for schedule in schedules.all()), default=None)
            moment = schedules.database_time()
        if looked_until is None:
            return {"status": "none", "lastTickAgeSeconds": None}
        age = round(max(0.0, (moment - looked_until).total_seconds()), 1)
        return {"status": "ok" if age <= SCHEDULER_LATE_SECONDS else "late", "lastTickAgeSeconds": age}

    def _migrations(self) -> Facts:
        current, newest = current_and_newest(self._engine)
        return {"status": "ok" if current == newest else "outdated", "current": current, "newest": newest}


def _timed(check: Check) -> Facts:
    began = time.monotonic()
    facts = check()
    return facts if facts["status"] == "off" else {**facts, "latencyMs": round((time.monotonic() - began) * 1000, 1)}
