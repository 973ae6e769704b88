"""The RunBroker with dramatiq's own worker: plain sends, the middleware around a run, heartbeats, and stopping."""

from __future__ import annotations

import threading
from typing import Any

import dramatiq
import pytest
import structlog
from dramatiq.errors import ActorNotFound
from sqlalchemy import select

from brokers.consumer import Verdict
from brokers.message import Envelope
from core.errors import InvalidInputError, NotFoundError, PermanentError, TenantError
from core.ids import new_id
from core.logging import run_facts
from core.tenancy import SYSTEM, acting_as, bound_identity
from runs.current import current_run
from runs.enqueue import enqueue
from runs.middleware import middleware
from runs.middleware.outcomes import Outcomes
from runs.middleware.tenant import TenantBinding
from runs.progress import progress
from runs.registry import UnknownTaskError, arguments_model, get_task, task_names
from runs.relay import Housekeeper
from runs.task import Call, task
from runs.ticks import minute_of
from storage.models import TaskRun
from storage.repositories.workers import Workers
from tests.toys import fixed_settings, in_force, wait_until
from tests.unit.conftest import House


def test_a_plain_send_is_recorded_for_who_is_bound(house: House) -> None:
    with acting_as(house.people.ann):
        run_id = house.toys.add.send(1).message_id
    run = house.run(run_id)
    assert (run.args, run.user_id, run.state) == ({"x": 1, "y": 1}, house.people.ann.user_id, "PENDING")
    with pytest.raises(TenantError):
        house.toys.add.send(1)
    with acting_as(house.people.ann), pytest.raises(InvalidInputError, match="needs the argument x"):
        house.toys.add.send()


def test_a_worker_runs_and_acknowledges(house: House) -> None:
    run_id = house.enqueue(house.toys.add, x=1)
    house.start_worker()
    assert house.wait_for(run_id).result == 2
    wait_until(lambda: [verdict for _, verdict in house.consumer.settled] == [Verdict.ACK])


def test_a_dead_letter_is_rejected(house: House) -> None:
    run_id = house.enqueue(house.toys.refuse)
    house.start_worker()
    assert house.wait_for(run_id).state == "FAILURE"
    wait_until(lambda: len(house.stub.queues["default.XQ"]) == 1)


def test_the_context_of_a_run_is_bound_while_it_runs_and_not_after(house: House) -> None:
    seen: list[Any] = []

    def look() -> None:
        seen.extend([{**run_facts(), **structlog.contextvars.get_contextvars()}, bound_identity(), current_run(), threading.get_ident()])

    declared = task(queue="default")(look)  # type: ignore[arg-type]
    run_id = house.enqueue(declared, identity=house.people.ann)
    house.start_worker(threads=1)
    house.wait_for(run_id)
    context, identity, run, _ = seen
    expected = {"task_id": run_id, "task_name": "look", "tenant_id": house.people.ann.tenant_id, "queue": "default", "attempt": 1}
    assert expected.items() <= context.items()
    assert {"request_id", "worker"} <= context.keys()
    assert identity == house.people.ann
    assert run.run_id == run_id
    after: list[Any] = []

    def look_between(_broker: object, _thread: object) -> None: ...

    class Between(dramatiq.Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            after.extend([bound_identity(), current_run(), dict(run_facts())])

    house.broker.add_middleware(Between(), before=type(house.broker.middleware[3]))
    house.wait_for(house.enqueue(house.toys.add, x=1))
    assert after == [None, None, {}]


def test_a_run_without_a_tenant_or_with_another_one_is_refused_before_it_starts(house: House) -> None:
    run_id = house.enqueue(house.toys.add, x=1)
    house.start_worker()
    run = house.wait_for(run_id)
    assert run.state == "SUCCESS"
    from brokers.consumer import Delivery
    from runs.message import RunMessage
    from storage.outcomes import Claim

    envelope = Envelope(new_id(), "add", "default", house.people.globex.tenant_id)
    message = RunMessage(envelope, Delivery(b"", "default", house.consumer, None))
    message.claimed(Claim(envelope.run_id, house.people.acme.tenant_id, None, "add", "default", {}, 1, 3, 1, None, None, None))
    with pytest.raises(Exception, match="no tenant"):
        TenantBinding().before_run(house.broker, message)
    assert message.outcome is not None
    assert (message.outcome.state, message.outcome.reason, message.failed) == ("FAILURE", "tenant", True)
    message.outcome = None
    Outcomes().after_skip(house.broker, message)
    assert message.outcome is not None
    assert bound_identity() is None


def test_the_middleware_stands_in_its_order() -> None:
    names = [type(each).__name__ for each in middleware()]
    assert names.index("RequestContext") < names.index("Outcomes") < names.index("TenantBinding")
    assert names[-1] == "TenantBinding"
    assert names[0] == "WorkerProcess"


def test_a_worker_beats_while_its_threads_live_and_no_longer(house: House) -> None:
    worker = house.start_worker()
    with house.session() as session:
        (row,) = Workers(session).alive()
        assert (row.id, row.threads, row.state) == (house.broker.worker_id, 2, "running")
        session.delete(row)
    house.broker.life.beat()
    with house.session() as session:
        (row,) = Workers(session).alive()  # it comes back by itself
        session.delete(row)
    worker.workers[0].stop()
    worker.workers[0].join()
    house.broker.life.beat()
    with house.session() as session:
        assert Workers(session).alive() == []


def test_progress_is_stored_at_most_twice_a_second_and_at_the_end(house: House) -> None:
    progress(1, 2)  # outside a run: nothing happens
    seen: list[Any] = []

    def count() -> None:
        run = current_run()
        assert run is not None
        for done in (1, 2, 3, 4):
            progress(done, 4, "inbox")
            seen.append(house.run(run.run_id).progress)

    run_id = house.enqueue(task(queue="default")(count))  # type: ignore[arg-type]
    house.start_worker()
    assert house.wait_for(run_id).state == "SUCCESS"
    assert [each["done"] for each in seen] == [1, 1, 1, 4]


def test_a_broker_that_takes_nothing_leaves_the_run_waiting_for_it(house: House) -> None:
    house.stub.is_down = True
    run_id = house.enqueue(house.toys.add, x=1)
    house.broker.publisher.flush()
    assert house.run(run_id).waiting_for == "broker"
    house.relay_turn()
    assert (house.run(run_id).waiting_for, house.stub.published) == ("broker", 0)
    house.stub.is_down = False
    house.relay_turn()
    assert (house.run(run_id).waiting_for, house.stub.published) == ("queue", 1)


def test_a_tick_from_periodiq_is_one_run(house: House) -> None:
    with acting_as(SYSTEM):
        for _ in range(2):
            house.toys.tick.send_with_options(scheduled_at="2026-03-01T12:00:07+01:00")
    assert house.count(TaskRun) == 1
    assert minute_of("2026-03-01T12:00:07+01:00") == minute_of("2026-03-01T11:00:59")


def test_a_task_that_fails_is_no_reason_for_the_others_not_to_be_done() -> None:
    done: list[int] = []

    def fails() -> None:
        raise RuntimeError("a chore")

    keeper = Housekeeper((fails, 0.01), (lambda: done.append(1), 0.01))
    keeper.start()
    wait_until(lambda: len(done) > 3)
    keeper.stop()
    assert not keeper.is_alive()


def test_closing_twice_is_fine_and_unknown_actors_are_unknown(house: House) -> None:
    with pytest.raises(ActorNotFound):
        house.broker.task("nobody")
    house.broker.close()
    house.broker.close()


# Tasks, their arguments and their limits.


def test_a_task_called_is_a_function(house: House) -> None:
    assert house.toys.add(1, y=2) == 3


def test_limits_come_from_the_queue_unless_the_settings_say_otherwise(house: House, tmp_path: Any) -> None:
    assert house.toys.add.limits() == (540, 600)
    for given, expected in (
        ({"task_time_limit": 1000.0}, (980, 1000)),
        ({"task_time_limit": 100.0}, (93, 100)),
        ({"task_soft_time_limit": 7.0}, (7, 600)),
        ({"task_soft_time_limit": 7.0, "task_time_limit": 8.0}, (7, 8)),
    ):
        with in_force(fixed_settings(tmp_path, **given)):
            assert house.toys.add.limits() == expected
    assert (house.toys.add.max_attempts, house.toys.add.base_backoff, house.toys.fail.base_backoff) == (4, 60, 0.05)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "add needs the argument x."),
        ({"x": 1, "z": 2}, "add has no argument 'z'; it takes: x, y."),
        ({"x": "1"}, "add: the argument x is wrong: input should be a valid integer."),
    ],
)
def test_wrong_arguments_give_one_sentence_and_no_row(house: House, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        house.enqueue(house.toys.add, **arguments)
    assert str(error.value) == sentence
    assert house.count(TaskRun) == 0


def test_tasks_are_known_by_their_names(house: House) -> None:
    assert "add" in task_names()
    assert get_task("add") is house.toys.add
    assert set(arguments_model(house.toys.add).model_fields) == {"x", "y"}
    with pytest.raises(UnknownTaskError, match=r"no task named 'ad'"):
        get_task("ad")


def test_a_run_belongs_to_who_is_bound(house: House) -> None:
    people = house.people
    with pytest.raises(TenantError):
        house.enqueue(Call(house.toys.add, tenant=people.globex.tenant_id), x=1)
    with pytest.raises(TenantError):
        house.enqueue(Call(house.toys.add, user=people.bob.user_id), identity=people.ann, x=1)
    with pytest.raises(TenantError):
        house.enqueue(house.toys.add, identity=SYSTEM, x=1)
    for_gus = house.enqueue(Call(house.toys.add, tenant=people.gus.tenant_id, user=people.gus.user_id), identity=SYSTEM, x=1)
    assert (house.run(for_gus).tenant_id, house.run(for_gus).user_id) == (people.gus.tenant_id, people.gus.user_id)


def test_ids_in_arguments_must_be_the_tenants_own(house: House) -> None:
    from runs.registry import EmailClientId, EmailId

    def look(email_client_id: EmailClientId, email_ids: list[EmailId] | None = None) -> None: ...

    look.__annotations__ = {"email_client_id": EmailClientId, "email_ids": list[EmailId] | None, "return": None}
    declared = task(queue="default")(look)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="email_client_id: there is no email client"):
        house.enqueue(declared, email_client_id=new_id())
    assert house.count(TaskRun) == 0


def test_a_permanent_error_is_a_mailroom_error_with_a_code() -> None:
    assert (PermanentError("x").code, TenantError("x").code) == ("permanent", "tenant")


def test_the_end_of_a_savepoint_publishes_nothing(house: House) -> None:
    with house.session(house.people.acme) as session:
        enqueue(session, house.toys.add, x=1)
        with session.begin_nested():
            session.execute(select(1))
        assert house.broker.publisher.flush()
        assert house.stub.published == 0
    assert house.broker.publisher.flush()
    assert house.stub.published == 1
