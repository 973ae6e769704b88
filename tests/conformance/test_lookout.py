"""What a relay sees of workers that are gone, on both databases: it looks for nothing more while there is none."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, select, update

from core.clock import now
from core.ids import new_id
from storage import lives
from storage.engine import system_connection, untenanted_connection
from storage.lives import WORKER_LOST_SECONDS
from storage.lookout import Lookout
from storage.models import TaskRun, WorkerProcess
from storage.states import State
from tests.toys import Record


def test_a_look_sees_silent_workers_and_runs_of_none(record: Record) -> None:
    lookout = Lookout(record.engine)
    with system_connection(record.engine) as connection:
        for name, key in (("a", "here/1/2"), ("b", None), ("c", "here/3/4")):
            lives.heartbeat(connection, lives.Heartbeat(name, "host", 1, 8, ["default"], "running", key))
    run_held_by(record, "b")
    found = lookout.look()
    assert (found.orphans, sorted((found.process_keys or "").splitlines())) == (False, ["here/1/2", "here/3/4"])
    with system_connection(record.engine) as connection:
        silent = now() - timedelta(seconds=WORKER_LOST_SECONDS + 5)
        connection.execute(update(WorkerProcess).where(WorkerProcess.id == "a").values(heartbeat_at=silent))
    assert lookout.look().orphans
    with system_connection(record.engine) as connection:
        connection.execute(delete(WorkerProcess).where(WorkerProcess.id == "a"))
    assert not lookout.look().orphans
    run_held_by(record, "nobody there")
    assert lookout.look().orphans
    lookout.close()


def test_where_no_worker_is_there_is_no_key(record: Record) -> None:
    lookout = Lookout(record.engine)
    assert (lookout.look().process_keys, lookout.look().orphans) == (None, False)
    lookout.close()


def run_held_by(record: Record, worker_id: str) -> None:
    tenant_id = record.people.acme.tenant_id
    with record.session(record.people.acme) as session:
        session.add(
            TaskRun(id=new_id(), tenant_id=tenant_id, task="t", queue="default", args={}, state=State.STARTED, worker_id=worker_id,
                    attempt=1, fence=1, max_attempts=3)
        )  # fmt: skip


def test_a_heart_beats_in_a_transaction_of_its_own_and_leaves_the_connection_as_it_was(record: Record) -> None:
    for state in ("running", "stopping"):  # a new row, and the same again
        with untenanted_connection(record.engine) as connection:
            lives.heartbeat(connection, lives.Heartbeat("a", "host", 1, 8, ["default"], state, None))
    with system_connection(record.engine) as connection:
        assert connection.scalars(select(WorkerProcess.state)).all() == ["stopping"]
        connection.execute(delete(WorkerProcess))
        connection.rollback()
    with system_connection(record.engine) as connection:
        assert connection.scalars(select(WorkerProcess.state)).all() == ["stopping"]
