"""Events on both databases: every outcome is told in its own transaction, to its own tenant, and walls hold around webhooks."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, text

from core.errors import ConflictError, InvalidInputError, NotFoundError
from core.ids import new_id
from core.settings import get_settings
from core.tenancy import Identity
from mail.bounces import BounceReport
from runs.webhooks.signature import new_secret
from storage.claims import write_outcomes
from storage.engine import new_session, system_connection
from storage.event_types import EVENTS
from storage.lookout import Lookout
from storage.models import OutboundEmail, OutboundRecipient, TaskRun, Webhook, WebhookDelivery
from storage.outcomes import Outcome
from storage.record import open_record
from storage.repositories.outbound import OutboundEmails
from storage.repositories.outbox import Outbox
from storage.repositories.requests import RequestKeys
from storage.repositories.webhooks import Deliveries
from storage.states import State, WaitingFor
from tests.toys import Record, together


def subscribe(record: Record, who: Identity, *events: str) -> str:
    with record.session(Identity(who.tenant_id)) as session:
        return Deliveries(session, get_settings().credential_keys).add("https://hooks.example/", events or EVENTS, new_secret()).id


def started(record: Record, who: Identity, **columns: Any) -> str:
    """A run that a worker has claimed."""
    given = {"task": "t", "queue": "default", "args": {}, "state": "STARTED", "max_attempts": 3, "attempt": 1, "fence": 1, **columns}
    with record.session() as session:
        run = TaskRun(id=new_id(), tenant_id=who.tenant_id, user_id=who.user_id, worker_id="w", **given)
        session.add(run)
        return run.id


def told(record: Record) -> list[WebhookDelivery]:
    with record.session() as session:
        return list(session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.type)))


@pytest.mark.parametrize("way", ["recorder", "relay"])
def test_every_outcome_is_told_with_it(record: Record, way: str) -> None:
    webhook_id = subscribe(record, record.people.acme)
    ids = [started(record, record.people.ann) for _ in range(6)]
    ids[4] = started(record, record.people.ann, ending="revoke")
    deliveries = started(record, record.people.ann, task="deliver_webhook")
    foreign = started(record, record.people.gus)
    wait: dict[str, Any] = {"run_again_in": 5.0, "waiting_for": WaitingFor.ETA}
    outcomes = [
        Outcome(ids[0], 1, State.SUCCESS, result=1, duration_ms=7),
        Outcome(ids[1], 1, State.FAILURE, error_type="E", error="x of ann@acme.test", reason="permanent", duration_ms=8),
        Outcome(ids[2], 1, State.RETRY, error_type="E", **wait),
        Outcome(ids[3], 1, State.PENDING, spends_attempt=False, **wait),
        Outcome(ids[4], 1, State.SUCCESS),
        Outcome(ids[5], 9, State.SUCCESS),  # an old fence
        Outcome(deliveries, 1, State.FAILURE),
        Outcome(foreign, 1, State.SUCCESS),
    ]
    if way == "recorder":
        found = open_record(record.engine)
        found.turn("w", outcomes, {}, ())
        found.close()
    else:
        with system_connection(record.engine) as connection:
            write_outcomes(connection, outcomes)
    facts = [(each.webhook_id, each.type, each.payload["data"]["taskId"]) for each in told(record)]
    assert facts == [
        (webhook_id, "task.failed", ids[1]),
        (webhook_id, "task.retried", ids[2]),
        (webhook_id, "task.revoked", ids[4]),
        (webhook_id, "task.succeeded", ids[0]),
    ]
    failed = told(record)[0]
    assert failed.payload["data"] == {
        "taskId": ids[1],
        "task": "t",
        "queue": "default",
        "state": "FAILURE",
        "userId": record.people.ann.user_id,
        "attempt": 1,
        "errorType": "E",
        "reason": "permanent",
        "durationMs": 8,
    }
    assert (failed.payload["type"], failed.payload["timestamp"][10:11], failed.payload["timestamp"][-1]) == ("task.failed", "T", "Z")
    assert (failed.status, failed.attempts, failed.tenant_id) == ("pending", 0, record.people.acme.tenant_id)


def test_where_there_is_no_webhook_nothing_is_written_and_nothing_is_to_be_done(record: Record) -> None:
    run_id = started(record, record.people.ann)
    found, lookout = open_record(record.engine), Lookout(record.engine)
    assert found.turn("w", [Outcome(run_id, 1, State.SUCCESS)], {}, ())[0] == {run_id}
    assert (told(record), lookout.look().deliveries) == ([], False)
    subscribe(record, record.people.acme)  # the very next outcome is told
    other = started(record, record.people.ann)
    found.turn("w", [Outcome(other, 1, State.SUCCESS)], {}, ())
    assert ([each.payload["data"]["taskId"] for each in told(record)], lookout.look().deliveries) == ([other], True)
    found.close()
    lookout.close()


def test_what_becomes_of_a_mail_is_told(record: Record) -> None:
    ann = record.people.ann
    subscribe(record, ann)
    with record.session(ann) as session:
        ids, runs = [], [new_id() for _ in range(4)]
        for number in range(4):
            email = OutboundEmail(
                tenant_id=ann.tenant_id, user_id=ann.user_id, message_id=f"<{number}@x>", sender="ann@acme.test", source=b"x",
                status="sending" if number in {1, 2} else "uncertain", run_id=runs[number],
            )  # fmt: skip
            session.add(email)
            session.flush()
            session.add(OutboundRecipient(tenant_id=ann.tenant_id, email_id=email.id, address="bob@example.test"))
            ids.append(email.id)
    with record.session(ann) as session:
        Outbox(session).resolve(ids[0], "sent")
        OutboundEmails(session).not_sent(ids[1], "no", is_final=True)
        OutboundEmails(session).uncertain(ids[2], "who knows")
        Outbox(session).resolve(ids[3], "failed")
        assert OutboundEmails(session).came_back([BounceReport(None, ids[0], "bob@example.test", "failed", "5.1.1")])
    found = {(each.type, each.payload["data"]["emailId"]) for each in told(record)}
    assert found == {
        ("email.sent", ids[0]),
        ("email.failed", ids[1]),
        ("email.uncertain", ids[2]),
        ("email.failed", ids[3]),
        ("email.bounced", ids[0]),
    }
    named = {each.payload["data"]["emailId"]: each.payload["data"]["taskId"] for each in told(record) if each.type != "email.bounced"}
    assert named == dict(zip(ids, runs, strict=True))
    assert "bob@example.test" not in str([each.payload for each in told(record)])


def test_a_delivery_is_started_by_one_of_many(record: Record) -> None:
    subscribe(record, record.people.acme)
    with record.session(record.people.acme) as session:
        for webhook in Deliveries(session).all() * 5:
            Deliveries(session).test(webhook.id)

    def start() -> list[str]:
        with record.session() as session:
            found = Deliveries(session).not_started()
            Deliveries(session).started([(delivery_id, delivery_id) for _, delivery_id in found])
            return [delivery_id for _, delivery_id in found]

    started_ids = [each for ids in together(*[start] * 4) for each in ids]
    assert sorted(started_ids) == sorted(each.id for each in told(record))


def test_neither_webhooks_nor_deliveries_are_another_tenant_s(record: Record) -> None:
    webhook_id = subscribe(record, record.people.acme)
    with record.session(record.people.acme) as session:
        delivery_id = Deliveries(session).test(webhook_id).id
    with record.session(record.people.globex) as session:
        theirs = Deliveries(session)
        for attempt in (lambda: theirs.remove(webhook_id), lambda: theirs.again(delivery_id), lambda: theirs.page(webhook_id)):
            with pytest.raises(NotFoundError):
                attempt()
    if record.engine.dialect.name != "postgresql":
        return
    for identity, expected in ((record.people.globex, 0), (record.people.acme, 1)):  # whatever the query forgets
        with new_session(identity, record.engine) as session:
            for model in (Webhook, WebhookDelivery):
                assert session.execute(text(f"SELECT count(*) FROM {model.__tablename__}")).scalar() == expected


def test_a_key_of_a_request_is_its_tenant_s_and_forgotten_in_time(record: Record) -> None:
    ids = iter(new_id() for _ in range(9))
    with record.session(record.people.acme) as session:
        mine = RequestKeys(session).once("k", ["x"], lambda: next(ids))
        assert RequestKeys(session).once("k", ["x"], lambda: next(ids)) == mine
        with pytest.raises(InvalidInputError):
            RequestKeys(session).once("k", ["y"], lambda: next(ids))
    with record.session(record.people.globex) as session:
        assert RequestKeys(session).once("k", ["x"], lambda: next(ids)) != mine
    with record.session() as session:
        assert RequestKeys(session).forget_old(1) == 0
        assert RequestKeys(session).forget_old(-1) == 2


def test_the_same_request_at_once_is_carried_out_once(record: Record) -> None:
    def ask() -> str:
        try:
            with record.session(record.people.acme) as session:
                return RequestKeys(session).once("k", ["test"], lambda: Deliveries(session).test(webhook_id).id)
        except ConflictError:
            return ask()

    webhook_id = subscribe(record, record.people.acme)
    assert len(set(together(*[ask] * 4))) == 1
    assert len(told(record)) == 1


def test_the_newest_deliveries_of_several_webhooks_are_one_s_own(record: Record) -> None:
    hooks = [subscribe(record, record.people.acme) for _ in range(2)]
    for hook in [*hooks, hooks[0], subscribe(record, record.people.gus)]:
        with record.session() as session:
            Deliveries(session).test(hook)
    with record.session(record.people.acme) as session:
        deliveries = Deliveries(session)
        mine = deliveries.newest(deliveries.all(), limit=9)
        assert sorted(row.webhook_id for row in mine) == sorted([*hooks, hooks[0]])
        assert [row.id for row in deliveries.newest(deliveries.all(), before=(mine[0].created_at, mine[0].id), limit=1)] == [mine[1].id]
        assert [row.id for row in deliveries.newest_of_all(limit=9)] == [row.id for row in mine]
        assert len(deliveries.newest_of_all(before=(mine[1].created_at, mine[1].id), limit=9)) == 1
    with record.session() as session:
        assert len(Deliveries(session).newest_of_all(limit=9)) == 4
        foreign = Deliveries(session).all()
    with record.session(record.people.globex) as session, pytest.raises(NotFoundError):
        Deliveries(session).newest(foreign)
