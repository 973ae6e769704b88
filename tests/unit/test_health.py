"""Health: what is looked at, what is written, and what people and programs are told of it."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy.exc import OperationalError

import actors.health
import runs.health
from actors.health import check_service_health, periodic_health_check
from api.dashboard import words
from api.health import Health, health_of
from core.clock import now
from core.errors import TransientError, UnavailableError
from core.settings import Settings
from core.tenancy import SYSTEM, acting_as
from mail.accounts import Endpoint
from runs.health import look_at_mail_servers, look_at_ours, overall
from storage import mail_hosts
from storage.engine import system_connection
from storage.models import Schedule, ServiceHealth, TaskRun, WorkerProcess
from storage.repositories.health import Finding, ServiceHealths
from storage.states import HealthStatus
from tests.toys import in_force
from tests.unit.actor_world import Actors, acting
from tests.unit.api_world import World, world

__all__ = ["acting", "world"]
OURS = {"database", "worker", "scheduler", "migrations", "redis"}


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> list[Endpoint]:
    """Redis answers, and so does every mail server, which is remembered."""
    greeted: list[Endpoint] = []
    monkeypatch.setattr(runs.health, "probe_redis", lambda _url, _seconds: None)
    monkeypatch.setattr(runs.health, "greet", lambda _protocol, endpoint: greeted.append(endpoint))
    return greeted


def alive(acting: Actors) -> None:
    with acting.record.session() as session:
        session.add(WorkerProcess(id="w1", host="h", pid=7, threads=8, queues=["default"]))
        session.add(Schedule(task="t", cron="* * * * *", checked_until=now()))


def check() -> dict[str, Any]:
    with acting_as(SYSTEM):
        return dict(check_service_health.fn())


def rows(acting: Actors) -> dict[str, ServiceHealth]:
    with acting.record.session() as session:
        return {row.component: row for row in ServiceHealths(session).latest()}


def test_everything_is_looked_at_and_written_down(acting: Actors, answering: list[Endpoint]) -> None:
    alive(acting)
    acting.account(acting.record.people.ann, smtp_host="smtp.test", smtp_port=2525, imap_host="IMAP.test", imap_security="tls")
    found = check()
    assert found["health"] == "healthy"
    assert set(found["components"]) == OURS | {"smtp:smtp.test:2525", "imap:imap.test:993"}
    assert abs(found["timestamp"] - time.time() * 1000) < 60_000
    written = rows(acting)
    assert written["worker"].facts is not None
    assert written["worker"].facts["workers_count"] == 1
    assert [worker["id"] for worker in written["worker"].facts["workers"]] == ["w1"]
    assert written["database"].latency_ms is not None
    assert {endpoint.where for endpoint in answering} == {"smtp.test:2525", "IMAP.test:993"}
    assert all(endpoint.secret is None and endpoint.username is None for endpoint in answering)


def test_what_is_not_well_says_why_and_since_when(acting: Actors, answering: list[Endpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    alive(acting)
    first = check()
    monkeypatch.setattr(runs.health, "probe_redis", failing("redis://:secret@host"))
    before = rows(acting)["database"]
    check()
    check()
    assert first["health"] == "healthy"
    after = rows(acting)
    assert (after["redis"].status, after["redis"].failures) == ("unhealthy", 2)
    assert after["redis"].reason == "It cannot be reached (RuntimeError)."
    assert after["redis"].since < after["redis"].checked_at
    assert after["database"].since == before.since
    monkeypatch.setattr(runs.health, "probe_redis", lambda _url, _seconds: None)
    check()
    assert (rows(acting)["redis"].failures, rows(acting)["redis"].reason) == (0, None)


def failing(text: str) -> Any:
    def fail(*_: Any) -> None:
        raise RuntimeError(text)

    return fail


def test_workers_schedulers_and_what_waits_are_judged(acting: Actors, answering: list[Endpoint]) -> None:
    found = {each.component: each for each in look_at_ours(settings_of(acting), acting.record.engine)}
    assert (found["worker"].status, found["scheduler"].status) == ("unhealthy", "unhealthy")
    assert found["worker"].reason is not None
    assert "No worker is alive" in found["worker"].reason
    alive(acting)
    with acting.record.session() as session:
        session.query(Schedule).update({"checked_until": now() - timedelta(minutes=10)})
        session.add(WorkerProcess(id="w2", host="h", pid=8, threads=8, queues=[], heartbeat_at=now() - timedelta(minutes=1)))
    found = {each.component: each for each in look_at_ours(settings_of(acting), acting.record.engine)}
    assert "1 worker(s) have not been heard of" in str(found["worker"].reason)
    assert "No scheduler has looked for 60" in str(found["scheduler"].reason)


@pytest.mark.parametrize(
    ("waiting", "sentence"),
    [
        ({"publish_at": timedelta(minutes=5), "waiting_for": "eta"}, "A run has been due for 30"),
        ({"waiting_for": "queue"}, "has waited for 30 min"),
    ],
)
def test_a_backlog_and_a_relay_that_is_late_are_told(
    acting: Actors, answering: list[Endpoint], waiting: dict[str, Any], sentence: str
) -> None:
    alive(acting)
    given = {name: now() - value if isinstance(value, timedelta) else value for name, value in waiting.items()}
    tenant = acting.record.people.acme.tenant_id
    with acting.record.session() as session:
        moment = now() - timedelta(minutes=30)
        facts = {"task": "t", "queue": "default", "args": {}, "state": "PENDING", "max_attempts": 1, "created_at": moment}
        session.add(TaskRun(id="0199b5d0-0000-7000-8000-000000000001", tenant_id=tenant, **facts, **given))
    (found,) = look_at_ours(settings_of(acting), acting.record.engine, ["worker"])
    assert found.status == "degraded"
    assert sentence in str(found.reason)


def settings_of(acting: Actors) -> Settings:
    from core.settings import get_settings

    return get_settings()


def test_a_mail_server_with_a_pause_is_left_alone(acting: Actors, answering: list[Endpoint]) -> None:
    people = acting.record.people
    acting.account(people.ann, smtp_host="down.test", smtp_port=25, is_sync_enabled=False)
    acting.account(people.gus, smtp_host="unused.test", smtp_port=25, is_sync_enabled=False)
    with system_connection(acting.record.engine) as connection:
        for _ in range(3):
            mail_hosts.failed(connection, "down.test:25", "connection_failed")
    (found,) = look_at_mail_servers(settings_of(acting), acting.record.engine)
    assert (found.component, found.status, answering) == ("smtp:down.test:25", "unhealthy", [])
    assert "did not answer 3 times in a row; it is left alone for" in str(found.reason)


def test_a_mail_server_that_fails_says_so_in_a_sentence(acting: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    acting.account(acting.record.people.ann, smtp_host="127.0.0.1", smtp_port=1)
    (found,) = look_at_mail_servers(settings_of(acting), acting.record.engine)
    assert str(found.reason).startswith("127.0.0.1:1 cannot be reached")
    guarded = settings_of(acting).model_copy(update={"allow_private_mail_hosts": False})
    (found,) = look_at_mail_servers(guarded, acting.record.engine)
    assert found.reason == "Connections to 127.0.0.1:1 are not allowed."


@pytest.mark.parametrize(
    ("url", "component"),
    [
        ("smtps://user:secret@relay.test", "smtp:relay.test:465"),
        ("smtp://relay.test:2525", "smtp:relay.test:2525"),
        ("smtp+starttls://relay.test", "smtp:relay.test:587"),
        (None, None),
    ],
)
def test_the_systems_own_server_is_one_of_them(acting: Actors, answering: list[Endpoint], url: str | None, component: str | None) -> None:
    settings = settings_of(acting).model_copy(update={"system_smtp_url": SecretStr(url) if url else None})
    assert [each.component for each in look_at_mail_servers(settings, acting.record.engine)] == ([component] if component else [])


def test_a_check_that_does_not_come_back_is_given_up() -> None:
    (found,) = runs.health._asked({"slow": lambda: time.sleep(30) or runs.health.WELL}, within=0.05)  # type: ignore[func-returns-value]
    assert (found.status, found.reason) == ("unhealthy", "It did not answer in time.")
    (found,) = runs.health._asked({"ours": raising(TransientError("It is tired."))}, within=20)
    assert found.reason == "It is tired."


def raising(error: Exception) -> Any:
    def check() -> Any:
        raise error

    return check


@pytest.mark.parametrize(
    ("statuses", "whole"),
    [
        ({"database": "healthy", "rabbitmq": "healthy", "redis": "healthy", "worker": "healthy"}, "healthy"),
        ({"database": "healthy", "rabbitmq": "unhealthy", "redis": "healthy", "worker": "healthy"}, "degraded"),
        ({"database": "healthy", "rabbitmq": "unhealthy", "redis": "unhealthy", "worker": "healthy"}, "unhealthy"),
        ({"database": "unhealthy", "redis": "healthy"}, "unhealthy"),
        ({"database": "healthy", "redis": "healthy", "worker": "unhealthy"}, "unhealthy"),
        ({"database": "healthy", "redis": "healthy", "worker": "degraded"}, "degraded"),
        ({"database": "healthy", "redis": "healthy", "smtp:x:25": "unhealthy"}, "degraded"),
    ],
)
def test_the_whole_is_judged_by_its_parts(statuses: dict[str, str], whole: str) -> None:
    assert overall(statuses) == whole


def test_an_hour_is_summed_up(acting: Actors) -> None:
    with acting.record.session() as session:
        for minute, status in enumerate(["healthy", "unhealthy", "healthy", "healthy"]):
            session.add(row("redis", now() - timedelta(minutes=10 - minute), status, latency_ms=minute * 10.0))
            session.add(row("database", now() - timedelta(minutes=10 - minute), "healthy"))
        session.add(row("database", now() - timedelta(hours=2), "unhealthy"))
    with acting_as(SYSTEM):
        summary = periodic_health_check.fn()
    assert (summary["health"], summary["checks"]) == ("unhealthy", 4)  # of the brokers there is only Redis
    assert summary["components"] == {
        "database": {"healthy_share": 1.0, "worst_latency_ms": None, "changes": 0},
        "redis": {"healthy_share": 0.75, "worst_latency_ms": 30.0, "changes": 2},
    }


def test_an_hour_without_a_check_is_not_well(acting: Actors) -> None:
    with acting_as(SYSTEM):
        assert periodic_health_check.fn() == {"status": "success", "health": "unhealthy", "checks": 0, "components": {}}


def row(component: str, checked_at: Any, status: str, **columns: Any) -> ServiceHealth:
    return ServiceHealth(component=component, checked_at=checked_at, status=status, **({"since": checked_at} | columns))


def checked(world: World, *, seconds_ago: float = 20, **statuses: str) -> None:
    """A check was written, so long ago."""
    moment = now() - timedelta(seconds=seconds_ago)
    given = dict.fromkeys(OURS, "healthy") | statuses
    with world.system() as session:
        for component, status in given.items():
            facts = {"workers_count": 2, "active_tasks": 3, "workers": []} if component == "worker" else None
            session.add(row(component.replace("__", ":"), moment, status, facts=facts, latency_ms=2.0))


def test_detailed_tells_what_the_last_check_found(world: World) -> None:
    checked(world, scheduler="unhealthy")
    answer = world.get("/health/detailed")
    report = answer.json()
    assert (answer.status_code, report["status"], report["reason"]) == (200, "degraded", None)
    assert 15 < report["ageSeconds"] < 100
    assert report["components"]["worker"].items() >= {"status": "healthy", "workers_count": 2, "active_tasks": 3, "workers": []}.items()
    assert report["components"]["rabbitmq"] == {"status": "healthy", "latency_ms": None, "reason": None, "configured": False}
    assert report["components"]["scheduler"]["status"] == "unhealthy"
    assert report["components"]["database"].keys() >= {"status", "latency_ms", "reason", "since", "failures"}


def test_mail_servers_are_shown_to_those_who_use_them(world: World) -> None:
    checked(world, imap__imap_test__993="healthy", smtp__elsewhere_test__25="unhealthy")
    with world.system() as session:
        for each in session.query(ServiceHealth):
            each.component = each.component.replace("_test", ".test")
    seen = {key: set(world.get("/health/detailed", key).json()["components"]) for key in (world.acme.key, world.admin_key)}
    assert seen[world.admin_key] - seen[world.acme.key] == {"smtp:elsewhere.test:25"}
    assert "imap:imap.test:993" in seen[world.acme.key]
    assert world.get("/health/detailed").json()["status"] == "healthy"  # what others' servers do is not this tenant's trouble
    assert world.get("/health/detailed", world.admin_key).json()["status"] == "degraded"
    assert world.get("/health/detailed", None).status_code == 401


def test_when_checks_stop_it_is_told_and_looked_at_from_here(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    checked(world, seconds_ago=600)
    monkeypatch.setattr(runs.health, "probe_redis", lambda _url, _seconds: None)
    report = world.get("/health/detailed").json()
    assert report["reason"].startswith("No health check has run for 10 min")
    assert report["status"] == "unhealthy"  # for there is no worker
    assert set(report["components"]) == OURS | {"rabbitmq"}
    with world.system() as session:
        session.add(WorkerProcess(id="w", host="h", pid=1, threads=1, queues=[]))
    world.app.state.health = Health(world.settings, world.engine)
    assert world.get("/health/detailed").json()["status"] == "degraded"


def test_before_the_first_check_nobody_is_blamed_for_it(world: World) -> None:
    report = world.get("/health/detailed").json()
    assert (report["ageSeconds"], report["reason"]) == (None, None)
    assert report["components"]["migrations"]["status"] == "degraded"  # made without alembic


def test_without_a_database_it_is_503_in_the_same_shape(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise UnavailableError("The database cannot be reached; nothing was changed.")

    broken = OperationalError("SELECT 1", {}, Exception("gone"))
    monkeypatch.setattr(runs.health, "_database", raising_of(broken))
    monkeypatch.setattr("api.auth.session_scope", away)
    answer = world.get("/health/detailed")
    assert (answer.status_code, answer.json()["status"]) == (503, "unhealthy")
    assert answer.json()["components"]["database"]["status"] == "unhealthy"
    monkeypatch.undo()
    monkeypatch.setattr(runs.health, "_database", raising_of(broken))
    monkeypatch.setattr("api.health.session_scope", away)
    world.app.state.health = Health(world.settings, world.engine)
    assert world.get("/health/detailed").status_code == 503


def raising_of(error: Exception) -> Any:
    def check(*_: Any) -> Any:
        raise error

    return check


def test_a_look_is_kept_for_two_seconds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(runs.health, "probe_redis", lambda _url, _seconds: asked.append(1))
    for _ in range(3):
        world.app.state.health.ready()
    assert len(asked) == 1


def test_the_page_shows_components_and_their_hours(world: World) -> None:
    for minutes in (0, 6, 12):
        checked(world, seconds_ago=minutes * 60 + 5, redis="unhealthy" if minutes == 6 else "healthy")
    with in_force(world.settings):
        health_of.cache_clear()
        world.http.cookies.clear()
        page = world.http.get("/login")
        token = page.text.split('name="csrf_token" value="')[1].split('"')[0]
        world.http.post("/login", data={"key": world.admin_key, "csrf_token": token}, headers={"Origin": "http://testserver"})
        shown = world.http.get("/status").text
    assert "2 alive, 3 runs under way" in shown
    assert 'class="unhealthy"' in shown
    assert "Healthy in" in shown


def test_words_for_components() -> None:
    assert [words.component_name(name) for name in ("worker", "smtp:h:25")] == ["Workers", "SMTP h:25"]
    assert words.component_facts({"accounts": 2}) == "2 accounts"
    assert words.component_facts({"last_tick_age_seconds": 3.0}) == "looked 3.0 s ago"
    assert words.component_facts({"configured": False}) == "not configured"
    assert words.strip_label([None]) == "Nobody has looked yet"


def test_findings_are_plain_data() -> None:
    assert json.dumps(Finding("x", HealthStatus.HEALTHY).status) == '"healthy"'
    assert actors.health.log is not None
