"""The processes of the fault tests: `fleet` supervises workers that know the chores, `api` serves them, `produce` and `post` enqueue.

All of them are Mailroom's own, started as its commands start them; the chores are declared besides, and a mutant may be made.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Iterator

from cli.processes import start_logging
from core.errors import UnavailableError
from core.settings import get_settings
from core.tenancy import Identity, acting_as

BATCH = 10
CALLERS = 4
TIMEOUT_SECONDS = 20.0
AGAIN_SECONDS = 0.2


def worker() -> int:
    """One worker process."""
    from cli import worker_process

    _prepare()
    return worker_process.main()


def api() -> int:
    """One API process."""
    from cli import api_process

    _prepare()
    return api_process.main()


def fleet(processes: int) -> int:
    """Such workers, forked and kept alive as `./manage.py worker` does."""
    from cli import workers
    from cli.worker_process import serve

    start_logging(get_settings())
    _prepare()
    return workers.keep_alive(processes, lambda: serve(get_settings().worker_threads, None))


def produce(first: int, number: int, seconds: float, tenants: list[str]) -> int:
    """A service that shares the database: enqueue so many runs over so many seconds, ten to a transaction.

    A transaction that finds no database is tried again with the same keys, as a careful caller does.
    """
    from runs.enqueue import enqueue
    from storage.engine import session_scope
    from tests.faults.chores import CHORES, actors

    _prepare()
    start_logging(get_settings())  # unconfigured, the publisher's thread would print into the middle of our lines
    for batch in _paced(first, number, seconds, BATCH):
        began = time.monotonic()
        while True:
            try:
                with acting_as(Identity(tenants[batch[0] // BATCH % len(tenants)])), session_scope() as session:
                    chores = [CHORES[each % len(CHORES)].options(idempotency_key=f"produced-{each}") for each in batch]
                    accepted = [enqueue(session, chore, number=each) for chore, each in zip(chores, batch, strict=True)]
                break
            except UnavailableError:
                _say(f"refused {batch[0]}")
                time.sleep(AGAIN_SECONDS)
            except Exception as error:
                _say(f"failed {batch[0]} {type(error).__name__}")
                time.sleep(AGAIN_SECONDS)
        took = time.monotonic() - began
        _say("\n".join(f"accepted {run_id} {took:.4f}" for run_id in accepted))
    actors.broker.close()
    return 0


def post(first: int, number: int, seconds: float, keys: list[str]) -> int:
    """A service that knows only the HTTP API: one run to a call, each call repeated with its Idempotency-Key until it is accepted.

    503 is a refusal (the database is away); any other answer than 202, and no answer, is a failed call.
    """
    import httpx

    from tests.faults.chores import CHORES

    settings = get_settings()
    numbers = itertools.chain.from_iterable(_paced(first, number, seconds, 1))
    lock = threading.Lock()

    def call(client: httpx.Client, each: int) -> None:
        body = {"task": CHORES[each % len(CHORES)].actor_name, "args": {"number": each}}
        headers = {"Authorization": f"Bearer {keys[each % len(keys)]}", "Idempotency-Key": f"posted-{each}"}
        began = time.monotonic()
        while True:
            try:
                answer = client.post("/api/tasks", json=body, headers=headers)
            except httpx.HTTPError as error:
                _say(f"failed {each} {type(error).__name__}")
            else:
                if answer.status_code == httpx.codes.ACCEPTED:
                    _say(f"accepted {answer.json()['taskId']} {time.monotonic() - began:.4f}")
                    return
                _say(f"{'refused' if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else 'failed'} {each} {answer.status_code}")
            time.sleep(AGAIN_SECONDS)

    def caller() -> None:
        with httpx.Client(base_url=f"http://{settings.api_host}:{settings.api_port}", timeout=TIMEOUT_SECONDS) as client:
            while True:
                with lock:
                    each = next(numbers, None)
                if each is None:
                    return
                call(client, each)

    callers = [threading.Thread(target=caller) for _ in range(CALLERS)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    return 0


def _prepare() -> None:
    """Declare the chores; then make the mutant, if one is asked for. The words that chose the process are not its options."""
    from tests.faults import chores, mutants

    assert chores.CHORES
    mutants.bear_a_false_clock()
    mutants.hurry()
    mutants.mutate()
    del sys.argv[1:]


def _paced(first: int, number: int, seconds: float, size: int) -> Iterator[range]:
    """The numbers in portions, evenly over the seconds."""
    began = time.monotonic()
    for start in range(0, number, size):
        time.sleep(max(0.0, began + seconds * start / number - time.monotonic()))
        yield range(first + start, first + min(start + size, number))


def _say(text: str) -> None:
    os.write(1, f"{text}\n".encode())  # one write: callers are many threads


def main(words: list[str]) -> int:
    if words[0] == "worker":
        return worker()
    if words[0] == "api":
        return api()
    if words[0] == "fleet":
        return fleet(int(words[1]))
    first, number, seconds = int(words[1]), int(words[2]), float(words[3])
    return {"produce": produce, "post": post}[words[0]](first, number, seconds, words[4:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
