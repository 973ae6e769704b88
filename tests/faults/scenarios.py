"""The faults as one table: the name, what happens, what it breaks, and what it excuses. Nothing excuses a lost run."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from brokers.queues import Queue
from tests.acceptance.installation import eventually
from tests.faults.audit import Allowed
from tests.faults.effects import POISON_ATTEMPTS
from tests.faults.ground import STOP_GRACE, kill_process, small_volume, through
from tests.faults.trial import Trial, terminate
from tests.servers.process import find_program
from tests.servers.proxy import FaultProxy

QUEUES = (Queue.SYNC, Queue.SEND, Queue.DEFAULT)
NOTHING: frozenset[str] = frozenset()
WORKERS, RABBITMQ, POSTGRES, NETWORK = (frozenset({each}) for each in ("workers", "rabbitmq", "postgres", "network"))
BROKERS = RABBITMQ | {"redis"}
EVERYTHING = WORKERS | BROKERS | POSTGRES | NETWORK


@dataclass(frozen=True)
class Scenario:
    """`breaks` names what it lays hands on; two scenarios that share nothing may be tried together."""

    name: str
    does: str
    fault: Callable[[Trial], None]
    breaks: frozenset[str]
    allowed: Allowed = field(default_factory=Allowed)


def nothing(trial: Trial) -> None:
    """The control."""


# Workers.


def worker_sigkill(trial: Trial) -> None:
    trial.again_while_producing(lambda: _amid_work(trial, trial.kill_a_worker), every=15)


def tree_sigkill(trial: Trial) -> None:
    trial.again_while_producing(lambda: _amid_work(trial, trial.kill_the_tree), every=15)


def _amid_work(trial: Trial, kill: Callable[[], None]) -> None:
    """While some runs that take a while are certainly going on, so that there are orphans."""
    runs = [trial.enqueue("lingers", seconds=0.7) for _ in range(8)]
    trial.begun(runs[-1])
    kill()


def sigterm_under_load(trial: Trial) -> None:
    """A rolling deploy: the new fleet is there before the old one goes."""

    def roll() -> None:
        old, trial.ground.fleet = trial.ground.fleet, trial.ground.start_fleet()
        terminate(old)

    trial.again_while_producing(roll, every=10)


def sigterm_long_runs(trial: Trial) -> None:
    """Runs that do not end within the grace are handed back: their attempt is not spent, and nobody runs them beside the old one."""
    old, trial.ground.fleet = trial.ground.fleet, trial.ground.start_fleet()
    runs = [trial.enqueue("lingers", seconds=4.0 * STOP_GRACE) for _ in range(12)]
    eventually(lambda: len(trial.executions_of(*runs)) == len(runs), "all of them begin", 20)
    leaving = set(old.children())
    interrupted = [execution.run_id for execution in trial.executions_of(*runs) if execution.pid in leaving]
    assert interrupted, "the workers that are to go got nothing to do"
    terminate(old)
    for run_id in interrupted:
        trial.begun(run_id, 2, timeout=40)
    trial.allowed = replace(trial.allowed, unspent=frozenset(runs))
    trial.note(f"{len(interrupted)} runs were handed back")


def poison(trial: Trial) -> None:
    """Two that kill their process, in company of others that take a while."""
    neighbours = [trial.enqueue("lingers", seconds=1.0) for _ in range(4)]
    poisons = [trial.enqueue("poison") for _ in range(2)]
    neighbours += [trial.enqueue("lingers", seconds=0.3) for _ in range(8)]
    trial.allowed = replace(trial.allowed, failures=dict.fromkeys(poisons, POISON_ATTEMPTS), unspent=frozenset(neighbours))
    eventually(lambda: trial.ground.unfinished([*poisons, *neighbours]) == 0, "poison and neighbours have ended", 150)


def clock_jump(trial: Trial) -> None:
    """A worker's wall clock jumps an hour ahead, then two hours back; what counts is the database's."""
    library = find_program("libfaketime", "/usr/lib/*/faketime/libfaketimeMT.so.1")
    offset = trial.ground.mailroom.directory / "clock-offset"
    offset.write_text("+0")
    false_clock = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    worker = trial.ground.start_worker(None, false_clock)
    for jump in ("+3600", "-3600", "+0"):
        before = trial.executed_by(worker.pid)
        offset.write_text(jump)
        runs = [trial.enqueue("slow") for _ in range(40)]
        trial.pause(4)
        eventually(lambda: trial.ground.unfinished(runs) == 0, "they end", 30)  # noqa: B023  (called at once)
        trial.note(f"{trial.executed_by(worker.pid) - before} runs by the worker whose clock is {jump} s off")
    assert trial.executed_by(worker.pid), "the worker with the false clock did nothing"


def disk_full(trial: Trial) -> None:
    """The log volume is full: nobody reads the logs now, the work goes on, and the end is in good order."""
    with small_volume(trial.ground.mailroom.directory) as log:
        worker = trial.ground.start_worker(log)
        for _ in range(2):
            runs = [trial.enqueue("slow") for _ in range(60)]
            eventually(lambda: trial.ground.unfinished(runs) == 0, "they end", 30)  # noqa: B023  (called at once)
        trial.note(f"{trial.executed_by(worker.pid)} runs by the worker that logs to {log}")
        assert trial.executed_by(worker.pid) > 20, "the worker without a log does next to nothing"
        assert log.is_char_device() or shutil.disk_usage(log).free == 0, "the volume never was full"
        terminate(worker)


# RabbitMQ.


def rabbitmq_restart(trial: Trial) -> None:
    trial.ground.rabbitmq.stop()
    trial.pause(4)
    trial.ground.rabbitmq.start()


def rabbitmq_sigkill(trial: Trial) -> None:
    trial.ground.rabbitmq.kill()
    trial.pause(4)
    trial.ground.rabbitmq.start()


def rabbitmq_frozen(trial: Trial) -> None:
    trial.ground.rabbitmq.freeze()
    trial.pause(30)
    trial.ground.rabbitmq.thaw()


def connections_closed(trial: Trial) -> None:
    for _ in range(3):
        trial.ground.rabbitmq.close_all_connections()


def queues_deleted(trial: Trial) -> None:
    with trial.ground.frozen_workers():
        trial.waits_on_a_broker(lambda: trial.ground.on_rabbitmq(QUEUES))
        trial.note(f"{trial.ground.on_rabbitmq(QUEUES, delete=True)} messages deleted with their queues")


def queues_purged(trial: Trial) -> None:
    with trial.ground.frozen_workers():
        trial.waits_on_a_broker(lambda: trial.ground.on_rabbitmq(QUEUES))
        trial.note(f"{trial.ground.on_rabbitmq(QUEUES, purge=True)} messages purged")


def rabbitmq_wiped(trial: Trial) -> None:
    with trial.ground.frozen_workers():
        held = trial.waits_on_a_broker(lambda: trial.ground.on_rabbitmq(QUEUES))
        trial.ground.rabbitmq.kill()
    trial.ground.rabbitmq.wipe()
    trial.note(f"{held} messages wiped")
    trial.ground.rabbitmq.start()


# Redis, while it is needed, and both.


def redis_sigkill(trial: Trial) -> None:
    def kill() -> None:
        trial.ground.redis.kill()

    _while_redis_carries(trial, kill)
    trial.ground.redis.start()


def redis_flushed(trial: Trial) -> None:
    _while_redis_carries(trial, trial.ground.flush_redis)


def _while_redis_carries(trial: Trial, hit: Callable[[], None]) -> None:
    """RabbitMQ is cut off, so messages gather on Redis; then it is hit. RabbitMQ comes back some seconds later."""
    with trial.ground.frozen_workers():
        for link in trial.ground.rabbitmq_links:
            link.refuse()
        held = trial.waits_on_a_broker(trial.ground.on_redis)
        hit()
        trial.note(f"Redis was hit when it held {held} messages")
    trial.pause(8)
    for link in trial.ground.rabbitmq_links:
        link.heal()


def both_brokers_gone(trial: Trial) -> None:
    trial.ground.rabbitmq.kill()
    trial.ground.redis.kill()
    trial.pause(60)
    trial.ground.redis.start()
    trial.ground.rabbitmq.start()


# PostgreSQL.


def postgres_restart(trial: Trial) -> None:
    trial.ground.postgres.restart()


def postgres_crash(trial: Trial) -> None:
    trial.ground.postgres.kill()
    trial.pause(8)
    trial.ground.postgres.start()


def postgres_away_at_start(trial: Trial) -> None:
    """Workers are replaced while the database is away: what starts then has to work once it is back."""
    trial.ground.postgres.kill()
    for pid in trial.ground.workers():
        trial.killed[pid] = kill_process(pid)
    trial.pause(20)
    trial.ground.postgres.start()


# The network.


def network_cut(trial: Trial) -> None:
    for _ in range(5):
        for link in trial.ground.links:
            link.cut()
        time.sleep(0.7)


def network_slow(trial: Trial) -> None:
    ground = trial.ground
    for link in ground.rabbitmq_links:
        link.delay, link.rate = 0.1, 100_000
    ground.redis_link.delay, ground.postgres_link.delay = 0.1, 0.02
    trial.pause(20)
    for link in ground.links:
        link.heal()


def brokers_black_hole(trial: Trial) -> None:
    for link in trial.ground.rabbitmq_links:
        link.hold()
    trial.pause(20)
    trial.ground.redis_link.hold()
    trial.pause(20)
    for link in trial.ground.links:
        link.heal()


def brokers_half_open(trial: Trial) -> None:
    for link in (*trial.ground.rabbitmq_links, trial.ground.redis_link):
        link.forget()


def postgres_black_hole(trial: Trial) -> None:
    trial.ground.postgres_link.hold()
    trial.pause(30)
    trial.ground.postgres_link.heal()


def postgres_half_open(trial: Trial) -> None:
    trial.ground.postgres_link.forget()


def worker_cut_off(trial: Trial) -> None:
    """A worker loses the database while it works, is given up and robbed, and comes back with its outcome while another is at it."""
    ground = trial.ground
    with FaultProxy(ground.postgres.port) as link:
        worker = ground.start_worker(None, {"DATABASE_URL": through(link, ground.mailroom.environment["DATABASE_URL"])})
        runs: list[str] = []
        robbed: list[str] = []

        def have_begun() -> bool:
            return len(trial.executions_of(*runs)) == len(runs)

        while not robbed:  # it lives, but it may not consume yet
            assert len(runs) < 40, "the worker that is to be cut off got nothing to do"
            runs.extend(trial.enqueue("lingers", seconds=4.0) for _ in range(8))
            eventually(have_begun, "all of them begin", 20)
            robbed = [execution.run_id for execution in trial.executions_of(*runs) if execution.pid == worker.pid]
        link.refuse()
        trial.begun(robbed[0], 2, timeout=45)
        link.heal()
        trial.note(f"the worker was cut off with {len(robbed)} runs and came back while another was at them")
        eventually(lambda: ground.unfinished(runs) == 0, "they end", 30)
        worker.terminate()  # while its link is there


# Two at once.


def pair(trial: Trial) -> None:
    """Two faults that lay hands on different things, chosen and timed by chance."""
    combinations = [
        (one, other)
        for one in SCENARIOS
        for other in SCENARIOS
        if one.name < other.name and one.breaks and other.breaks and not one.breaks & other.breaks
    ]
    chosen = trial.chance.choice(combinations)
    broken = chosen[0].breaks | chosen[1].breaks
    unwritable = {"workers", "postgres"} <= broken  # a worker that must go and cannot say goodbye
    trial.allowed = Allowed(
        losses=unwritable or any(each.allowed.losses for each in chosen), refusals=any(each.allowed.refusals for each in chosen)
    )
    trial.note(" with ".join(each.name for each in chosen))
    raised: list[BaseException] = []

    def begin(each: Scenario, after: float) -> None:
        time.sleep(after)
        try:
            each.fault(trial)
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=begin, args=(each, trial.chance.uniform(0, 2))) for each in chosen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in raised:
        raise error


LOSSES, REFUSALS = Allowed(losses=True), Allowed(refusals=True)
SCENARIOS = (
    Scenario("nothing", "Nothing: the control.", nothing, NOTHING),
    Scenario("worker-sigkill", "A worker is killed, every 15 s.", worker_sigkill, WORKERS, LOSSES),
    Scenario("tree-sigkill", "The supervisor and all workers are killed at once, every 15 s.", tree_sigkill, WORKERS, LOSSES),
    Scenario("sigterm-under-load", "A rolling restart, every 10 s.", sigterm_under_load, WORKERS),
    Scenario("sigterm-long-runs", "A restart while runs go on for longer than the grace.", sigterm_long_runs, EVERYTHING),
    Scenario("rabbitmq-restart", "RabbitMQ stops and starts.", rabbitmq_restart, RABBITMQ),
    Scenario("rabbitmq-sigkill", "RabbitMQ is killed and starts.", rabbitmq_sigkill, RABBITMQ),
    Scenario("rabbitmq-frozen", "RabbitMQ is frozen (SIGSTOP) for 30 s.", rabbitmq_frozen, RABBITMQ),
    Scenario("connections-closed", "RabbitMQ closes every connection, three times.", connections_closed, RABBITMQ),
    Scenario("queues-deleted", "The queues are deleted with their messages.", queues_deleted, EVERYTHING),
    Scenario("queues-purged", "The queues are purged.", queues_purged, EVERYTHING),
    Scenario("rabbitmq-wiped", "RabbitMQ is killed and loses its data directory.", rabbitmq_wiped, EVERYTHING),
    Scenario("redis-sigkill", "Redis is killed while it carries the messages.", redis_sigkill, EVERYTHING),
    Scenario("redis-flushed", "FLUSHALL while Redis carries the messages.", redis_flushed, EVERYTHING),
    Scenario("both-brokers-gone", "Both brokers are killed and away for a minute.", both_brokers_gone, BROKERS),
    Scenario("postgres-restart", "PostgreSQL stops fast and starts.", postgres_restart, POSTGRES, REFUSALS),
    Scenario("postgres-crash", "PostgreSQL is killed and away for 8 s.", postgres_crash, POSTGRES, REFUSALS),
    Scenario(
        "postgres-away-at-start",
        "PostgreSQL is killed and away for 20 s; all workers are killed meanwhile.",
        postgres_away_at_start,
        EVERYTHING,
        Allowed(losses=True, refusals=True),
    ),
    Scenario("network-cut", "Every connection is reset, five times.", network_cut, NETWORK, REFUSALS),
    Scenario("network-slow", "0.1 s each way and 100 kB/s to the brokers, 20 ms to PostgreSQL, for 20 s.", network_slow, NETWORK),
    Scenario(
        "brokers-black-hole", "Nothing passes to RabbitMQ for 40 s, nor to Redis for the last 20 of them.", brokers_black_hole, NETWORK
    ),
    Scenario("brokers-half-open", "Every connection to the brokers is dead and nobody is told; new ones pass.", brokers_half_open, NETWORK),
    Scenario("postgres-black-hole", "Nothing passes to PostgreSQL for 30 s.", postgres_black_hole, EVERYTHING, REFUSALS),
    Scenario("postgres-half-open", "Every connection to PostgreSQL is dead and nobody is told.", postgres_half_open, EVERYTHING, REFUSALS),
    Scenario("worker-cut-off", "A worker loses the database, is robbed of its runs, and comes back.", worker_cut_off, EVERYTHING, LOSSES),
    Scenario("clock-jump", "A worker's clock jumps an hour ahead, then back.", clock_jump, EVERYTHING),
    Scenario("disk-full", "A worker's log volume is full.", disk_full, EVERYTHING),
    Scenario("poison", "Two runs kill whatever process runs them.", poison, EVERYTHING, LOSSES),
    Scenario("pair", "Two of these at once, by chance.", pair, EVERYTHING),
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
