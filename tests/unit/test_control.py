"""What people do to runs, and the small rooms of core and storage: ids, clock, tenancy, credentials, types, sessions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from core import clock
from core.errors import ConflictError, InvalidInputError, NotFoundError, TenantError, UnavailableError
from core.ids import is_id, new_id
from core.tenancy import Identity, acting_as, bound_identity, current_identity
from runs import control
from runs.registry import UnknownTaskError
from storage.credentials import CredentialBox, CredentialError
from storage.engine import after_commit, make_engine, session_scope
from storage.models import TaskRun, User
from storage.repositories.email_clients import EmailClients
from storage.repositories.outbound import Attachments
from storage.repositories.runs import RunFilter, TaskRuns
from storage.repositories.schedules import Schedules
from storage.repositories.tenants import ApiKeys, Tenants
from storage.states import State
from tests.toys import Record
from tests.unit.conftest import House


def test_pages_follow_each_other_without_gap_or_overlap(house: House) -> None:
    ids = [house.enqueue(house.toys.add, x=number) for number in range(7)]
    house.enqueue(house.toys.add, identity=house.people.globex, x=99)
    seen: list[str] = []
    cursor = None
    with house.session(house.people.acme) as session:
        while True:
            page = control.list_runs(session, RunFilter(), cursor=cursor, limit=3)
            seen += [run.id for run in page.runs]
            cursor = page.next_cursor
            if cursor is None:
                break
    assert len(seen) == len(set(seen)) == 7
    assert set(seen) == set(ids)
    created = [house.run(run_id).created_at for run_id in seen]
    assert created == sorted(created, reverse=True)


@pytest.mark.parametrize("cursor", ["x", "AAAA", "8J-YgA", control.cursor_after(datetime(2026, 1, 1), "x")])  # noqa: DTZ001
def test_a_cursor_that_is_none_is_refused(house: House, cursor: str) -> None:
    with pytest.raises(InvalidInputError, match="cursor"):
        control.parse_cursor(cursor)


def test_lists_are_narrowed(house: House) -> None:
    one, two = house.enqueue(house.toys.add, x=1), house.enqueue(house.toys.lazy, text="x")
    house.set_run(two, state="FAILURE", dead_lettered_at=clock.now())
    tenant = house.people.acme.tenant_id
    filters = {
        one: [
            RunFilter(queue="default"),
            RunFilter(states=[State.PENDING]),
            RunFilter(text="ad"),
            RunFilter(text=one),
            RunFilter(task="add"),
        ],
        two: [RunFilter(dead_letters_only=True), RunFilter(text="LAZ"), RunFilter(tenant_id=tenant, queue="low_priority")],
    }
    with house.session() as session:
        for run_id, narrowed in filters.items():
            for each in narrowed:
                assert [run.id for run in TaskRuns(session).page(each)] == [run_id], each
                assert TaskRuns(session).count(each) == 1
        assert TaskRuns(session).page(RunFilter(text="%")) == TaskRuns(session).page(RunFilter(text="_d")) == []


def test_numbers_by_queue_and_state(house: House) -> None:
    house.enqueue(house.toys.add, x=1)
    run_id = house.enqueue(house.toys.add, x=1)
    house.set_run(run_id, state="STARTED", worker_id="w", waiting_for=None, publish_at=None)
    house.set_run(house.enqueue(house.toys.add, x=1), queue="mine")
    with house.session(house.people.acme) as session:
        stats = {each.name: each for each in control.get_queue_stats(session)}
        assert (stats["default"].waiting, stats["default"].counts, stats["sync"].waiting) == (1, {"PENDING": 1, "STARTED": 1}, 0)
        assert stats["default"].oldest_seconds is not None
        assert stats["mine"].priority == 5
        assert [run.id for run in control.get_active_tasks(session)] == [run_id]
        assert control.get_workers(session) == []


def test_a_run_is_looked_at_ended_and_given_another_go(house: House) -> None:
    with house.session(house.people.acme) as session:
        accepted = control.enqueue_by_name(session, "add", {"x": 1}, {"countdown": 60, "priority": "high", "expires": 600})
        assert (accepted.queue, accepted.state, accepted.is_new) == ("default", "PENDING", True)
        run = TaskRuns(session).one(accepted.run_id)
        assert (run.priority, run.eta is not None, run.expires_at is not None) == (2, True, True)
        assert control.get_task_status(session, run.id).attempts == []
        assert control.is_live(run)
        assert not control.is_ready(run)
        with pytest.raises(ConflictError, match="only a FAILURE or REVOKED"):
            control.replay(session, run.id)
        assert control.is_ready(control.revoke(session, run.id))
        again = control.replay(session, run.id)
        assert (again.state, again.attempt, again.expires_at) == ("PENDING", 0, None)
        until = datetime(2030, 1, 1, tzinfo=UTC)
        other = control.enqueue_by_name(session, "add", {"x": 1}, {"expires": until})
        assert TaskRuns(session).one(other.run_id).expires_at == until


def test_what_is_wrong_is_told(house: House) -> None:
    with house.session(house.people.acme) as session:
        with pytest.raises(UnknownTaskError):
            control.enqueue_by_name(session, "nobody", {})
        with pytest.raises(InvalidInputError, match="priority"):
            control.enqueue_by_name(session, "add", {"x": 1}, {"priority": "urgent"})
        with pytest.raises(NotFoundError):
            control.get_task_status(session, "not-an-id")
        with pytest.raises(InvalidInputError, match="A state is one of"):
            control.parse_states("pending,asleep")
    assert control.parse_states("pending, Failure,") == [State.PENDING, State.FAILURE]
    assert control.parse_states(None) == []


# core


def test_ids_grow_with_time_and_look_like_ids() -> None:
    ids = [new_id() for _ in range(3)]
    assert [one[:8] for one in ids] == sorted(one[:8] for one in ids)
    assert all(is_id(one) and one[14] == "7" and one[19] in "89ab" for one in ids)
    assert not any(is_id(text) for text in ("", "x", "{" + ids[0] + "}", ids[0].replace("-", "")))


def test_times_are_aware_and_in_utc() -> None:
    assert clock.now().tzinfo is UTC
    assert clock.to_epoch_ms(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)) == 1000
    assert abs(clock.epoch_ms() - clock.to_epoch_ms(clock.now())) < 1000


def test_without_a_tenant_there_is_no_identity() -> None:
    with pytest.raises(TenantError):
        current_identity()
    outer, inner = Identity("a"), Identity("b")
    with acting_as(outer):
        with acting_as(inner):
            assert current_identity() is inner
        assert bound_identity() is outer
    assert bound_identity() is None


# storage

OWNER = {"tenant_id": "t", "account_id": "a", "kind": "imap_password"}


def test_a_password_comes_back_for_its_owner_only() -> None:
    box = CredentialBox({"k1": bytes(32)})
    stored = box.encrypt("pässword", **OWNER)
    assert "pässword".encode() not in stored
    assert stored != box.encrypt("pässword", **OWNER)
    assert box.decrypt(stored, **OWNER) == "pässword"
    for change in ({"tenant_id": "u"}, {"account_id": "b"}, {"kind": "smtp_password"}):
        with pytest.raises(CredentialError, match="does not belong"):
            box.decrypt(stored, **{**OWNER, **change})
    with pytest.raises(CredentialError, match="damaged"):
        box.decrypt(stored[:-1] + bytes([stored[-1] ^ 1]), **OWNER)


def test_keys_are_rotated_by_putting_a_new_one_first() -> None:
    old = CredentialBox({"old": bytes(32)})
    both = CredentialBox({"new": b"n" * 32, "old": bytes(32)})
    assert both.decrypt(old.encrypt("x", **OWNER), **OWNER) == "x"
    with pytest.raises(CredentialError, match="not in CREDENTIAL_ENCRYPTION_KEY"):
        old.decrypt(both.encrypt("x", **OWNER), **OWNER)
    with pytest.raises(CredentialError):
        old.decrypt(b"2:old:xxx", **OWNER)


def _create_after(session: Session, action: Callable[[], None]) -> None:
    after_commit(session, action)
    Tenants(session).create("acme")


def test_actions_after_a_commit_are_not_done_after_a_rollback(record: Record) -> None:
    done: list[str] = []
    with session_scope(system=True) as session:
        after_commit(session, lambda: done.append("committed"))
        session.execute(text("SELECT 1"))
        assert done == []
    assert done == ["committed"]
    with pytest.raises(ConflictError), session_scope(system=True) as session:
        _create_after(session, lambda: done.append("never"))
    assert done == ["committed"]


def test_a_session_needs_an_identity(record: Record) -> None:
    with pytest.raises(TenantError), session_scope():
        pass


def test_a_database_that_is_away_is_unavailable_and_a_wrong_statement_is_not(record: Record, tmp_path: Path) -> None:
    away = make_engine("postgresql+psycopg2://u:p@127.0.0.1:1/x")
    with pytest.raises(UnavailableError), session_scope(system=True, engine=away) as session:
        session.execute(text("SELECT 1"))
    with pytest.raises((OperationalError, ProgrammingError, UnavailableError)), session_scope(system=True) as session:
        session.execute(text("SELECT nonsense FROM nowhere"))


def test_times_are_stored_in_utc_and_naive_ones_refused(house: House) -> None:
    run_id = house.enqueue(house.toys.add, x=1)
    plus_two = timezone(timedelta(hours=2))
    house.set_run(run_id, eta=datetime(2026, 3, 1, 12, 0, tzinfo=plus_two))
    assert house.run(run_id).eta == datetime(2026, 3, 1, 10, 0, tzinfo=UTC)
    with pytest.raises(Exception, match="naive"):
        house.set_run(run_id, eta=datetime(2026, 3, 1))  # noqa: DTZ001


def test_tenants_and_users_have_names_of_their_own(record: Record) -> None:
    with record.session() as session:
        tenants = Tenants(session)
        assert [tenant.name for tenant in tenants.all()] == ["acme", "globex"]
        assert tenants.find("acme").id == tenants.find(record.people.acme.tenant_id).id
        for name, error in (("acme", ConflictError), ("", InvalidInputError), ("x" * 101, InvalidInputError)):
            with pytest.raises(error):
                tenants.create(name)
        with pytest.raises(ConflictError):
            tenants.add_user(record.people.acme.tenant_id, "ann")
        with pytest.raises(NotFoundError):
            tenants.user(record.people.globex.tenant_id, "ann")
        with pytest.raises(NotFoundError):
            tenants.find("nobody")
        session.get_one(User, record.people.bob.user_id).is_active = False
        session.flush()
        with pytest.raises(NotFoundError):
            tenants.user(record.people.acme.tenant_id, "bob")


def test_a_key_speaks_for_its_tenant_until_it_is_revoked_or_expires(record: Record) -> None:
    with record.session() as session:
        keys = ApiKeys(session)
        key = keys.create(record.people.acme.tenant_id, "k")
        caller = keys.authenticate(key)
        assert caller is not None
        assert caller.identity == record.people.acme
        for wrong in (key[:-1], "mr_x_y", "", "ab_" + key, f"mr_{caller.key_id}_", key.upper()):
            assert keys.authenticate(wrong) is None
        token, csrf = keys.open_session(caller)
        assert keys.resume_session(token) == (caller, csrf)
        keys.close_session(token)
        assert keys.resume_session(token) is None
        another, _ = keys.open_session(caller)
        keys.revoke(caller.key_id)
        assert (keys.authenticate(key), keys.resume_session(another)) == (None, None)
        with pytest.raises(NotFoundError):
            keys.revoke(caller.key_id)
        assert keys.authenticate(keys.create(record.people.acme.tenant_id, "old", days=-1)) is None
        tenant = Tenants(session).find("globex")
        good = keys.create(tenant.id, "g")
        tenant.is_active = False
        session.flush()
        assert keys.authenticate(good) is None


def test_an_account_with_a_live_sync_is_not_deleted(house: House) -> None:
    ann = house.people.ann
    with house.session(ann) as session:
        clients = EmailClients(session)
        with pytest.raises(InvalidInputError, match="at least one"):
            clients.create(str(ann.user_id), {"name": "n", "email": "e@x.test"})
        client = clients.create(str(ann.user_id), {"name": "n", "email": "e@x.test", "imap_host": "h"})
        with pytest.raises(InvalidInputError, match="smtp_host"):
            clients.smtp_login(client)
        with pytest.raises(InvalidInputError, match="no key ring"):
            clients.change(client.id, {"imap_password": "x"})
        assert "secret" not in repr(clients.imap_login(client))
        live = TaskRun(
            id=new_id(), tenant_id=ann.tenant_id, user_id=ann.user_id, task="t", queue="q", args={}, state="PENDING", max_attempts=1
        )
        live.unique_key = f"sync:{client.id}"
        session.add(live)
        session.flush()
        with pytest.raises(ConflictError, match="revoke it first"):
            clients.delete(client.id)
        live.state = "SUCCESS"
        session.flush()
        clients.delete(client.id)
        assert clients.all() == []


def test_only_an_uploaded_file_can_be_sent(record: Record) -> None:
    with record.session(record.people.ann) as session:
        files = Attachments(session)
        one = files.add(filename="a", content_type="t", size=1, stored_filename="s")
        assert [file.id for file in files.uploaded([one.id])] == [one.id]
        one.stored_filename = None
        session.flush()
        with pytest.raises(InvalidInputError, match="upload the file"):
            files.uploaded([one.id])


def test_an_unknown_schedule_is_not_paused(record: Record) -> None:
    with record.session() as session, pytest.raises(NotFoundError, match="no schedule"):
        Schedules(session).set_paused("nobody", paused=True)


def test_the_databases_clock_is_the_one_of_bound_values(record: Record) -> None:
    with record.session() as session:
        moment = Schedules(session).database_time()
        assert abs(moment - clock.now()) < timedelta(seconds=5)
        assert session.scalar(select(1).where(text("strftime('%Y-%m-%d %H:%M:%f000', 'now') > '2020-01-01 00:00:00.000000'"))) == 1
