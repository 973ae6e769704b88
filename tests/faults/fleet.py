"""The processes of the fault tests: `fleet` supervises workers that know the chores, `produce` is a service that enqueues them."""

from __future__ import annotations

import sys
import time

from core.settings import environment, get_settings
from core.tenancy import Identity, acting_as


def worker() -> int:
    """Mailroom's own worker process, with the chores declared."""
    from cli import worker_process
    from tests.faults import chores

    assert chores.CHORES
    del sys.argv[1:]
    return worker_process.main()


def fleet(processes: int) -> int:
    """Mailroom's own supervisor over such workers."""
    from cli.processes import start_logging
    from cli.supervisor import Child, Supervisor

    start_logging(get_settings())
    command = [sys.executable, "-m", "tests.faults.fleet", "worker"]
    supervisor = Supervisor([Child(f"worker-{number}", command, environment()) for number in range(processes)])
    supervisor.handle_signals()
    supervisor.start()
    supervisor.run()
    return 0


def produce(number: int, seconds: float, tenants: list[str]) -> int:
    """Enqueue so many runs over so many seconds, ten to a transaction, and print the id of each that was accepted."""
    from cli.processes import start_logging
    from runs.enqueue import enqueue
    from storage.engine import session_scope
    from tests.faults.chores import CHORES, actors

    start_logging(get_settings())  # unconfigured, the publisher's thread would print into the middle of our lines

    began = time.monotonic()
    for first in range(0, number, 10):
        time.sleep(max(0.0, began + seconds * first / number - time.monotonic()))
        with acting_as(Identity(tenants[first // 10 % len(tenants)])):
            with session_scope() as session:
                accepted = [enqueue(session, CHORES[each % len(CHORES)], number=each) for each in range(first, first + 10)]
            sys.stdout.write("\n".join([*accepted, ""]))
            sys.stdout.flush()
    actors.broker.close()
    return 0


def main(words: list[str]) -> int:
    if words[0] == "worker":
        return worker()
    if words[0] == "fleet":
        return fleet(int(words[1]))
    return produce(int(words[1]), float(words[2]), words[3:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
