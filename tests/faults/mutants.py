"""Mailroom with one of its promises broken on purpose, to show that the auditor sees it. Chosen by FAULTS_MUTANT, in test processes only.

Patched from outside and never a switch in the product. A patch whose target is no longer there raises, so a mutant cannot die quietly.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from brokers.message import Outgoing
from brokers.rabbitmq.publisher import RabbitPublisher
from runs.relay import Relay
from storage import dispatch
from storage.engine import system_connection
from storage.outcomes import Claim, Outcome
from storage.postgres import PostgresRecord
from storage.states import State

Turn = Callable[..., tuple[set[str], dict[str, Claim]]]


def without_confirms() -> None:
    """What was handed to the connection counts as taken. The relay's search for lost messages would repair it, so that is off, too."""
    sender = ThreadPoolExecutor(max_workers=1)
    publish = RabbitPublisher.publish

    def publish_and_forget(publisher: RabbitPublisher, messages: Sequence[Outgoing], timeout: float = 0.0) -> list[Outgoing]:
        sender.submit(publish, publisher, messages)
        return []

    _replace(RabbitPublisher, "publish", publish_and_forget)
    _replace(Relay, "_publish_lost", lambda _relay: None)


def acknowledged_early() -> None:
    """Success goes on record (and with it the message off the broker) at the claim, before the run was executed."""

    def wrapped(turn: Turn) -> Turn:
        def early(record: PostgresRecord, worker_id: str, *rest: Any) -> tuple[set[str], dict[str, Claim]]:
            written, claims = turn(record, worker_id, *rest)
            turn(record, worker_id, [Outcome(claim.run_id, claim.fence, State.SUCCESS) for claim in claims.values()], {}, ())
            return written, claims

        return early

    _replace(PostgresRecord, "turn", wrapped(PostgresRecord.turn))


def without_fence() -> None:
    """An outcome is written whoever holds the run by now."""

    def wrapped(turn: Turn) -> Turn:
        def unfenced(record: PostgresRecord, worker_id: str, outcomes: Sequence[Outcome], *rest: Any) -> tuple[set[str], dict[str, Claim]]:
            ids = [outcome.run_id for outcome in outcomes]
            with system_connection(record._engine) as connection:
                rows: Any = connection.exec_driver_sql("SELECT id::text, fence FROM task_runs WHERE id = ANY(%s::uuid[])", (ids,))
                fences = dict(tuple(row) for row in rows)
            return turn(record, worker_id, [replace(each, fence=fences[each.run_id]) for each in outcomes], *rest)

        return unfenced

    _replace(PostgresRecord, "turn", wrapped(PostgresRecord.turn))


MUTANTS = {"no-confirms": without_confirms, "early-ack": acknowledged_early, "no-fence": without_fence}


def mutate() -> None:
    """Become what the environment asks for; nothing, usually."""
    if name := os.environ.get("FAULTS_MUTANT"):
        MUTANTS[name]()


def hurry() -> None:
    """FAULTS_GRACE (seconds): look for lost messages sooner than a production would, where a test has minutes and not hours."""
    if grace := os.environ.get("FAULTS_GRACE"):
        _replace(dispatch, "PUBLISH_GRACE_SECONDS", float(grace))


def bear_a_false_clock() -> None:
    """Under libfaketime a sleep until a moment of the monotonic clock, which is Python's, fails with EINVAL once the wall clock is off."""
    if "FAKETIME_TIMESTAMP_FILE" in os.environ:
        _replace(time, "sleep", lambda seconds: select.select([], [], [], seconds) and None)


def _replace(owner: Any, name: str, new: Any) -> None:
    assert hasattr(owner, name), f"{owner} has no {name} any more: mend this mutant"
    setattr(owner, name, new)
