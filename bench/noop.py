# ruff: noqa: ARG001  (the arguments travel; nothing is done with them)
"""Tasks that only tell when they were started, in Mailroom's own processes: `python -m bench.noop workers|api|fill|singles|trickle ...`.

The last three take a tenant's id and go on as in bench/peers/produce.py. BENCH_QUEUES: of how many queues there is a task.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import actors  # declares the broker that the settings describe
from bench.marks import mark
from bench.peers.produce import TENANT, TEXT, TOGETHER, singles, trickle
from brokers.queues import Queue
from core.tenancy import Identity, acting_as
from runs import enqueue as enqueueing
from runs.task import task
from storage.engine import session_scope

FLUSH_SECONDS = 120


@task(queue=Queue.DEFAULT)
def noop(tenant: str, text: str, asked: str) -> None:
    """Tell when it was started."""
    mark(asked)


@task(queue=Queue.DEFAULT)
def nap(tenant: str, text: str, asked: str) -> None:
    """Tell, and sleep as many seconds as the text says."""
    mark(asked)
    time.sleep(float(text))


def declare_idle_tasks(queues: int) -> None:
    """So many queues, the standard one included, have a task and are consumed."""
    for queue in [each for each in Queue if each is not Queue.DEFAULT][: queues - 1]:
        task(queue=queue, actor_name=f"idle_{queue}")(noop.fn)


def fill(name: str, text: str, runs: int) -> dict[str, float]:
    """A thousand to a transaction; the seconds until the last is committed, and until it is confirmed."""
    chosen = {"noop": noop, "nap": nap}[name]
    began = time.perf_counter()
    for sent in range(0, runs, TOGETHER):
        asked = repr(time.time())
        enqueue_many(chosen, [{"tenant": TENANT, "text": text, "asked": asked}] * min(TOGETHER, runs - sent))
    committed = time.perf_counter() - began
    assert actors.broker.publisher.flush(FLUSH_SECONDS), "not confirmed in time"
    return {"committed": committed, "seconds": time.perf_counter() - began}


def enqueue_many(chosen: Any, arguments: list[dict[str, str]]) -> None:
    """One transaction."""
    together = getattr(enqueueing, "enqueue_many", None)
    with session_scope() as session:
        if together is not None:
            together(session, chosen, arguments)
        else:
            for each in arguments:
                enqueueing.enqueue(session, chosen, **each)


def send() -> None:
    """One run in a transaction of its own."""
    with session_scope() as session:
        enqueueing.enqueue(session, noop, tenant=TENANT, text=TEXT, asked=repr(time.time()))


def produce(word: str, tenant_id: str, words: list[str]) -> object:
    """What the producers' words mean here."""
    with acting_as(Identity(tenant_id)):
        if word == "fill":
            return fill(words[0], words[1], int(words[2]))
        if word == "trickle":
            return trickle(send, int(words[0]), float(words[1]))

    def send_as_tenant() -> None:
        with acting_as(Identity(tenant_id)):
            send()

    return singles(send_as_tenant, int(words[0]), int(words[1]))


def main(words: list[str]) -> int:
    """One process."""
    declare_idle_tasks(int(os.environ.get("BENCH_QUEUES", "1")))
    if words[0] == "workers":
        from cli import workers

        sys.argv = words
        return workers.main()
    if words[0] == "api":
        from cli import api_process

        sys.argv = ["api"]
        return api_process.main()
    answer = produce(words[0], words[1], words[2:])
    actors.broker.close()
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
