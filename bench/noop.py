"""A task that does nothing but tell when, in Mailroom's own processes: `python -m bench.noop worker|api|enqueue|trickle`."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import actors  # declares the broker that the settings describe
from brokers.queues import Queue
from core.tenancy import Identity, acting_as
from runs.enqueue import enqueue
from runs.task import task
from storage.engine import session_scope


@task(queue=Queue.DEFAULT)
def noop() -> float:
    """Tell when it was started, in seconds since the epoch."""
    return time.time()


def accept(tenant_id: str, runs: int = 1) -> list[str]:
    """So many runs in one transaction."""
    with acting_as(Identity(tenant_id)), session_scope() as session:
        return [enqueue(session, noop) for _ in range(runs)]


def fill(tenant_id: str, runs: int, per_transaction: int, threads: int) -> float:
    """Enqueue from several threads; the seconds until the last commit."""
    accept(tenant_id)
    began = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: accept(tenant_id, per_transaction), range(runs // per_transaction)))
    return time.monotonic() - began


def trickle(tenant_id: str, runs: int, pause: float) -> list[tuple[str, float, float]]:
    """One run at a time: its id, when it was asked for, and when it was accepted."""
    told = []
    for _ in range(runs):
        asked = time.time()
        (run_id,) = accept(tenant_id)
        told.append((run_id, asked, time.time()))
        time.sleep(pause)
    return told


def main(words: list[str]) -> int:
    """One process."""
    if words[0] == "worker":
        from cli import worker_process

        sys.argv = ["worker", *words[1:]]
        return worker_process.main()
    if words[0] == "api":
        from cli import api_process

        sys.argv = ["api"]
        return api_process.main()
    if words[0] == "enqueue":
        answer: object = fill(words[1], int(words[2]), int(words[3]), int(words[4]))
    else:
        answer = trickle(words[1], int(words[2]), float(words[3]))
    actors.broker.close()
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
