"""The peers as data: what each needs, how its workers are started, and what it is measured as.

A command's words are filled in by bench/systems.py: {bin} is where the environment keeps its programs, {app} the module. RabbitMQ messages
are persistent in durable classic queues everywhere; other settings are the peers' own defaults unless an app's first lines say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Peer:
    """`once_each`: the worker command starts one process and not all. `queues`: on RabbitMQ, emptied before each measurement."""

    environment: str
    app: str
    worker: str
    once_each: bool = False
    producer: str = "{bin}/python -m bench.peers.produce {app}"
    set_up: str = ""
    queues: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    def with_settings(self, **settings: str) -> Peer:
        """The same with environment variables for its app."""
        return replace(self, settings={**self.settings, **settings})

    @property
    def module(self) -> str:
        """The app's full name."""
        return f"bench.peers.apps.{self.app}"


def _celery(pool: str, *, once_each: bool) -> Peer:
    worker = f"{{bin}}/celery -A {{module}} worker -P {pool} -l WARNING --without-gossip --without-mingle -n bench{{number}}@localhost"
    return Peer("celery", "celery_app", worker, once_each=once_each, queues=("bench-celery",))


RESULTS = {"BENCH_RESULTS": "1"}
DRAMATIQ = Peer(
    "dramatiq",
    "dramatiq_app",
    "{bin}/dramatiq {module} -p {processes} -t {threads}",
    queues=("bench-dramatiq", "bench-dramatiq.DQ", "bench-dramatiq.XQ"),
)
CELERY_THREADS = _celery("threads -c {threads}", once_each=True)
CELERY_PREFORK = _celery("prefork -c {processes}", once_each=False)
TASKIQ = Peer(
    "taskiq",
    "taskiq_app",
    "{bin}/taskiq worker {module}:broker -w {processes} --log-level WARNING --max-async-tasks {threads} --max-threadpool-threads {threads}",
    queues=("bench-taskiq", "bench-taskiq.dead"),
)
PROCRASTINATE = "{bin}/procrastinate --app={module}.app --log-level=warning"

PEERS: dict[str, Peer] = {
    "dramatiq": DRAMATIQ,
    "dramatiq-confirm": DRAMATIQ.with_settings(BENCH_CONFIRM="1"),
    "dramatiq-results": DRAMATIQ.with_settings(**RESULTS),
    "celery-threads": CELERY_THREADS,
    "celery-threads-results": CELERY_THREADS.with_settings(**RESULTS),
    "celery-prefork": CELERY_PREFORK,
    "celery-prefork-results": CELERY_PREFORK.with_settings(**RESULTS),
    "celery-prefork16": _celery("prefork -c 16", once_each=False),
    "taskiq": TASKIQ,
    "taskiq-results": TASKIQ.with_settings(**RESULTS),
    "huey": Peer("huey", "huey_app", "{bin}/python -m huey.bin.huey_consumer {module}.huey -w {threads} -k thread -q", once_each=True),
    "procrastinate": Peer(
        "procrastinate",
        "procrastinate_app",
        f"{PROCRASTINATE} worker -c {{threads}}",
        once_each=True,
        set_up=f"{PROCRASTINATE} schema --apply",
    ),
    "bullmq": Peer(
        "node",
        "bull.cjs",
        "node {apps}/bull.cjs worker {threads}",
        once_each=True,
        producer="node {apps}/bull.cjs",
    ),
}
