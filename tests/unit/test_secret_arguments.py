"""Secret arguments on every way a run can take: recorded masked, handed over in clear, told to nobody, erased when it is over."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import orjson
import pytest
from sqlalchemy import update

from brokers.queues import Queue
from core.clock import now
from core.errors import ConflictError, InvalidInputError, PermanentError
from core.ids import new_id
from core.tenancy import acting_as
from runs.batch import Item, enqueue_batch
from runs.control import call_of, enqueue_by_name, replay, revoke
from runs.current import MASK, set_current_run, without_secrets
from runs.enqueue import enqueue, enqueue_many
from runs.followers import chain, group
from runs.registry import SecretText, arguments_model, secrets_of
from runs.task import Task, task
from storage.credentials import CredentialError
from storage.models import Base, RunSecret, TaskRun
from storage.outcomes import Claim
from storage.repositories.run_secrets import RunSecrets
from tests.unit.conftest import House

TOKEN = "canary-token-7741"


class Vault:
    """Two tasks with a secret, over a broker in memory."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.told: list[str] = []

        def whisper(name: str, token: SecretText, hint: SecretText | None = None) -> str:
            self.told.append(token)
            if name == "fail":
                raise PermanentError(f"It will never work with {token}.")
            if name == "boom":
                raise RuntimeError(f"no luck with {token}")
            return name

        self.whisper: Task[..., str] = task(queue=Queue.DEFAULT, retries=1, base_backoff=0.05)(whisper)

    def enqueue(self, name: str = "x", token: str = TOKEN) -> str:
        return self.house.enqueue(self.whisper, name=name, token=token)

    def kept(self) -> int:
        return self.house.count(RunSecret)

    def everything(self) -> bytes:
        """Every table as text."""
        with self.house.session() as session:
            return repr([tuple(row) for table in Base.metadata.sorted_tables for row in session.execute(table.select())]).encode()


@pytest.fixture
def vault(house: House) -> Vault:
    return Vault(house)


WAYS: dict[str, Callable[[Vault], list[str]]] = {
    "enqueue": lambda vault: [vault.enqueue()],
    "by position": lambda vault: [in_session(vault, lambda s: enqueue(s, vault.whisper, "x", TOKEN))],
    "with options": lambda vault: [
        in_session(vault, lambda s: enqueue(s, vault.whisper.options(unique_key="k", delay=0.01), name="x", token=TOKEN))
    ],
    "many": lambda vault: in_session(vault, lambda s: enqueue_many(s, vault.whisper, [{"name": "x", "token": TOKEN}] * 2)),
    "by name": lambda vault: [in_session(vault, lambda s: enqueue_by_name(s, "whisper", {"name": "x", "token": TOKEN}).run_id)],
    "idempotent": lambda vault: [
        in_session(vault, lambda s: enqueue_by_name(s, "whisper", {"name": "x", "token": TOKEN}, idempotency_key="i").run_id)
        for _ in range(2)
    ][:1],
    "batch": lambda vault: [
        each.run_id for each in in_session(vault, lambda s: enqueue_batch(s, [Item("whisper", {"name": "x", "token": TOKEN})] * 2))
    ],
    "batch with keys": lambda vault: [
        each.run_id
        for each in in_session(vault, lambda s: enqueue_batch(s, [Item("whisper", {"name": "x", "token": TOKEN}, {"unique_key": "b"})] * 2))
    ][:1],
    "send": lambda vault: [sent(vault)],
    "chain": lambda vault: in_session(
        vault, lambda s: chain(s, vault.whisper.with_arguments("x", TOKEN), vault.whisper.with_arguments("x", token=TOKEN))
    ),
    "group": lambda vault: in_session(
        vault,
        lambda s: (
            group(s, [vault.whisper.with_arguments("x", TOKEN) for _ in range(2)], then=vault.house.toys.whoami.with_arguments()).run_ids
        ),
    ),
}


def in_session(vault: Vault, act: Callable[[Any], Any]) -> Any:
    with vault.house.session(vault.house.people.acme) as session:
        return act(session)


def sent(vault: Vault) -> str:
    with acting_as(vault.house.people.acme):
        return vault.whisper.send("x", token=TOKEN).message_id


def test_on_every_way_it_is_masked_kept_handed_over_and_erased(vault: Vault) -> None:
    recorded = {way: enqueued(vault) for way, enqueued in WAYS.items()}
    run_ids = [run_id for several in recorded.values() for run_id in several]
    assert {way: {vault.house.run(run_id).args["token"] for run_id in several} for way, several in recorded.items()} == {
        way: {MASK} for way in WAYS
    }
    assert vault.kept() == len(run_ids) == len(set(run_ids))
    assert TOKEN.encode() not in vault.everything()
    assert vault.house.broker.publisher.flush()
    assert not any(TOKEN.encode() in body for bodies in vault.house.stub.queues.values() for body in bodies)
    vault.house.start_worker()
    for run_id in run_ids:
        ended(vault, run_id)
    assert {way: [vault.house.run(run_id).state for run_id in several] for way, several in recorded.items() if several} == {
        way: ["SUCCESS"] * len(several) for way, several in recorded.items()
    }
    assert vault.told == [TOKEN] * len(run_ids)
    erased_soon(vault)


def ended(vault: Vault, run_id: str) -> None:
    deadline = time.monotonic() + 30
    while vault.house.run(run_id).state not in {"SUCCESS", "FAILURE"}:
        assert time.monotonic() < deadline, "it never ended"
        vault.house.relay_turn()
        time.sleep(0.01)


def erased_soon(vault: Vault, left: int = 0) -> None:
    deadline = time.monotonic() + 20
    while vault.kept() > left:
        assert time.monotonic() < deadline, "the secrets stay"
        time.sleep(0.01)


def test_what_an_error_says_of_a_secret_is_blotted_out(vault: Vault, caplog: pytest.LogCaptureFixture) -> None:
    vault.house.start_worker()
    dead, boom = vault.enqueue("fail"), vault.enqueue("boom")
    assert vault.house.wait_for(dead).error == f"It will never work with {MASK}."
    ended(vault, boom)
    assert vault.house.run(boom).error == f"no luck with {MASK}"
    assert TOKEN.encode() not in vault.everything()
    assert TOKEN not in caplog.text  # dramatiq's own lines, which are off outside of tests
    assert vault.kept() == 2  # a dead letter can be replayed
    set_current_run(None)
    assert without_secrets(TOKEN) == TOKEN


def test_a_dead_letter_is_replayed_with_its_secret_for_a_day(vault: Vault) -> None:
    vault.house.start_worker()
    run_id = vault.enqueue("fail")
    vault.house.wait_for(run_id)
    in_session(vault, lambda s: replay(s, run_id))
    ended(vault, run_id)
    vault.house.set_run(run_id, dead_lettered_at=now() - timedelta(hours=25))
    assert vault.told == [TOKEN] * 2
    with vault.house.session() as session:
        assert RunSecrets(session).erase_ended() == 1
    with pytest.raises(ConflictError, match="secret argument token was erased when the run ended; start the task anew"):
        in_session(vault, lambda s: replay(s, run_id))


def test_a_revoked_run_loses_its_secret_at_once(vault: Vault) -> None:
    run_id = vault.enqueue()
    in_session(vault, lambda s: revoke(s, run_id))
    assert vault.kept() == 0
    with pytest.raises(ConflictError, match="erased"):
        in_session(vault, lambda s: replay(s, run_id))


def test_a_run_that_waits_or_is_purged_or_gone(vault: Vault) -> None:
    waiting, purged, gone = (vault.enqueue() for _ in range(3))
    vault.house.set_run(purged, state="FAILURE", dead_lettered_at=None)
    with vault.house.session() as session:
        session.delete(session.get_one(TaskRun, gone))
    with vault.house.session() as session:
        assert RunSecrets(session).erase_ended() == 2
    with vault.house.session(vault.house.people.acme) as session:
        assert RunSecrets(session).is_kept(vault.house.people.acme.tenant_id, waiting)
        RunSecrets(session).erase(vault.house.people.acme.tenant_id, [waiting])
    assert vault.kept() == 0


def test_a_sealed_secret_of_another_run_does_not_open(vault: Vault) -> None:
    one, other = vault.enqueue(), vault.enqueue(token="else")
    with vault.house.session() as session:
        stolen = session.query(RunSecret).filter_by(run_id=one).one().sealed
        session.execute(update(RunSecret).where(RunSecret.run_id == other).values(sealed=stolen))
    acme = vault.house.people.acme
    claim = Claim(other, acme.tenant_id, None, "whisper", "default", vault.house.run(other).args, 1, 1, 1, None, None, None)
    set_current_run(claim)
    with acting_as(acme), pytest.raises(CredentialError):
        vault.whisper(**claim.args)
    set_current_run(None)
    with vault.house.session() as session, pytest.raises(InvalidInputError, match="no key ring"):
        RunSecrets(session).of_run(acme.tenant_id, one)


def test_the_hash_of_a_request_does_not_give_a_short_secret_away(vault: Vault) -> None:
    def hashed(token: str) -> str | None:
        return call_of(vault.whisper, {"name": "x", "token": token}, {}, "key").request_hash

    plain = orjson.dumps(["whisper", {"name": "x", "token": "123456"}, {}], option=orjson.OPT_SORT_KEYS)
    assert hashed("123456") != hashlib.sha256(plain).hexdigest()
    assert hashed("123456") == hashed("123456") != hashed("123457")
    assert call_of(vault.house.toys.add, {"x": 1}, {}, "key").request_hash is not None


def test_a_secret_that_is_missing_or_none(vault: Vault) -> None:
    with pytest.raises(InvalidInputError, match="needs the argument token"):
        vault.house.enqueue(vault.whisper, name="x")
    with pytest.raises(InvalidInputError, match="the argument token is wrong") as error:
        vault.house.enqueue(vault.whisper, name="x", token="")
    assert TOKEN not in str(error.value)
    assert vault.house.run(vault.enqueue()).args["hint"] is None
    both = vault.house.enqueue(vault.whisper, name="x", token=TOKEN, hint="h")
    assert vault.house.run(both).args == {"name": "x", "token": MASK, "hint": MASK}
    assert secrets_of(vault.whisper) == ("token", "hint")
    schema = arguments_model(vault.whisper).model_json_schema()["properties"]["token"]
    assert (schema["format"], schema["writeOnly"]) == ("password", True)


def plain_send(vault: Vault, tenant_id: str) -> tuple[str, bytes]:
    run_id = new_id()
    fields = {
        "queue_name": "default",
        "actor_name": "whisper",
        "args": [],
        "kwargs": {"name": "x", "token": TOKEN},
        "options": {"tenant_id": tenant_id, "user_id": None},
        "message_id": run_id,
        "message_timestamp": 1,
    }
    return run_id, vault.house.toys.encoder.encode(fields)


def test_a_secret_in_a_message_of_another_service_is_taken_over_and_not_left_there(vault: Vault) -> None:
    vault.house.start_worker()
    good_id, good = plain_send(vault, vault.house.people.acme.tenant_id)
    _, bad = plain_send(vault, new_id())
    vault.house.stub.queues["default"].extend([bad, good])
    vault.house.wait_for(vault.enqueue())  # wakes the consumer
    deadline = time.monotonic() + 20
    while len(vault.told) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert vault.house.wait_for(good_id).args["token"] == MASK
    assert TOKEN.encode() not in vault.everything()
    assert not any(TOKEN.encode() in body for bodies in vault.house.stub.queues.values() for body in bodies)
    erased_soon(vault)
