"""Health on both databases: what checks ask and write, and whose uploads a clean-up may take."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from core.clock import now
from core.tenancy import Identity
from runs.health import look_at_ours
from storage import mail_hosts
from storage.engine import system_connection
from storage.models import EmailClient, EmailFolder, EmailMessage, EmailSource, ServiceHealth
from storage.repositories.health import Finding, ServiceHealths, since_now
from storage.repositories.history import BATCH
from storage.repositories.messages import EmailMessages
from storage.repositories.outbound import Attachments
from storage.repositories.uploads import Uploads
from storage.repositories.vitals import Vitals
from storage.states import HealthStatus
from tests.toys import Record, fixed_settings

WELL, UNWELL = HealthStatus.HEALTHY, HealthStatus.UNHEALTHY


def account(record: Record, who: Identity, **columns: Any) -> str:
    with record.session() as session:
        row = EmailClient(tenant_id=who.tenant_id, user_id=who.user_id, name="n", email="e@x.test", **columns)
        session.add(row)
        session.flush()
        return row.id


def test_checks_are_written_read_and_summed_up(record: Record) -> None:
    for status in (WELL, UNWELL, UNWELL):
        with record.session() as session:
            facts = {"workers_count": 1}
            rows = ServiceHealths(session).write([Finding("redis", status, 2.5, "It is away.", facts), Finding("database", WELL)])
            session.commit()
    assert [(row.component, since_now(row)) for row in rows] == [("redis", False), ("database", False)]
    with record.session() as session:
        checks = ServiceHealths(session)
        database, redis = checks.latest()
        assert (redis.failures, redis.facts, database.failures) == (2, {"workers_count": 1}, 0)
        assert database.since < redis.since < redis.checked_at
        assert 0 <= (checks.age() or 0) < 60
        assert len(checks.history(1)) == 6
        assert [(each.component, each.checks, each.changes) for each in checks.summaries(1)] == [("database", 3, 0), ("redis", 3, 1)]
        assert checks.forget(1, 10) == 0
    with record.session() as session:
        session.query(ServiceHealth).filter(ServiceHealth.component == "redis").delete()
        for row in session.query(ServiceHealth):
            row.checked_at -= timedelta(days=9)
        session.flush()
        assert ServiceHealths(session).forget(7, 2) >= 2


def test_the_first_check_knows_nothing_before_it(record: Record) -> None:
    with record.session() as session:
        assert (ServiceHealths(session).latest(), ServiceHealths(session).age()) == ([], None)
        (row,) = ServiceHealths(session).write([Finding("redis", WELL)])
        assert since_now(row)


def test_the_servers_in_use_are_found_the_most_used_first(record: Record) -> None:
    people = record.people
    for who in (people.ann, people.bob):
        account(record, who, imap_host="imap.test", smtp_host="smtp.test", smtp_port=465, smtp_security="tls")
    account(record, people.gus, pop3_host="pop.test", imap_host="")
    account(record, people.gus, smtp_host="off.test", smtp_port=25, is_sync_enabled=False)
    account(record, people.gus, smtp_host="failing.test", smtp_port=25, is_sync_enabled=False)
    with system_connection(record.engine) as connection:
        for _ in range(3):
            mail_hosts.failed(connection, "failing.test:25", "connection_failed")
    with record.session() as session:
        found = {server.component: server for server in Vitals(session).mail_servers(10)}
        assert set(found) == {"imap:imap.test:993", "smtp:smtp.test:465", "pop3:pop.test:995", "smtp:failing.test:25"}
        assert (found["imap:imap.test:993"].accounts, found["imap:imap.test:993"].security) == (2, "tls")
        assert 5 < found["smtp:failing.test:25"].paused_for <= 10
        assert [server.accounts for server in Vitals(session).mail_servers(2)] == [2, 2]
    with record.session(people.globex) as session:  # a tenant sees its own
        assert {server.host for server in Vitals(session).mail_servers(10)} == {"pop.test", "failing.test"}


def test_ours_are_looked_at_on_both_databases(record: Record, tmp_path: Any) -> None:
    found = {each.component: each for each in look_at_ours(fixed_settings(tmp_path), record.engine, ["database", "worker", "scheduler"])}
    assert found["database"].status == WELL
    assert found["worker"].facts["workers_count"] == found["worker"].facts["active_tasks"] == 0
    assert found["scheduler"].facts == {"last_tick_age_seconds": None}


def test_uploads_are_the_tenants_and_no_others(record: Record) -> None:
    people = record.people
    with record.session(people.bob) as session:
        Attachments(session).add(filename="f", content_type="x/y", size=1, stored_filename="stored")
    for who, needed, is_anothers in (
        (people.ann, {"stored"}, True),
        (people.bob, {"stored"}, False),
        (people.acme, {"stored"}, False),
        (people.gus, set(), False),
    ):
        with record.session(who) as session:
            assert Uploads(session).needed(["stored", "other"]) == needed
            assert Uploads(session).is_anothers("stored") is is_anothers


@pytest.mark.parametrize(("days", "left"), [(0, 0), (30, 1)])
def test_sources_go_when_they_were_kept_for_long_enough(record: Record, days: int, left: int) -> None:
    owner = {"tenant_id": record.people.ann.tenant_id}
    client_id = account(record, record.people.ann, imap_host="imap.test")
    with record.session() as session:
        folder = EmailFolder(**owner, client_id=client_id, name="INBOX")
        session.add(folder)
        session.flush()
        empty: dict[str, Any] = {name: [] for name in ("references", "to", "cc", "flags", "headers", "defects")}
        facts = {"uid_validity": 1, "size": 1, "sha256": "0" * 64, **empty}
        for uid, age in ((1, 1), (2, 40)):
            message = EmailMessage(**owner, client_id=client_id, folder_id=folder.id, uid=uid, **facts)
            session.add(message)
            session.flush()
            session.add(EmailSource(**owner, email_id=message.id, source=b"x", created_at=now() - timedelta(days=age)))
    with record.session() as session:
        EmailMessages(session).forget_sources(now() - timedelta(days=days), BATCH)
        assert session.query(EmailSource).count() == left
