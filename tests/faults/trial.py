"""One trial: producers at work, something breaks under them, everything settles, the auditor looks."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from tests.acceptance.installation import Program, eventually
from tests.faults.audit import Allowed, AuditError, Books
from tests.faults.effects import Execution
from tests.faults.ground import FLEET, THREADS, Ground, kill_process
from tests.servers.process import ServerStartError

ACCEPTED = re.compile(r"^accepted (\S+) (\S+)$", re.MULTILINE)
REFUSED = re.compile(r"^refused ", re.MULTILINE)
FAILED = re.compile(r"^failed \S+ (\S+)$", re.MULTILINE)
POSTED_AT_MOST = 5000
EXTRA_AT_MOST = 10_000
_numbers = itertools.count(1)
"""Every trial of a session has runs with numbers of its own."""


@dataclass(frozen=True)
class Size:
    """How many runs, how many a second, and by how much outages are shorter than the scenario's words say (1.0: not at all).

    `patience` (seconds): so long may nothing happen before what still waits counts as lost.
    """

    runs: int = 400
    rate: float = 200.0
    scale: float = 0.25
    patience: float = 60.0

    @property
    def seconds(self) -> float:
        """How long the producers produce."""
        return max(2.0, self.runs / self.rate)


@dataclass
class Report:
    """What came of a trial. `calls_refused` were answered 503 (or found no database); `calls_failed` anything else but success."""

    scenario: str
    seed: int
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    accepted: int = 0
    states: dict[str, int] = field(default_factory=dict)
    executed_twice: int = 0
    lost_with_worker: int = 0
    calls_refused: int = 0
    calls_failed: int = 0
    accept_p99_ms: float = 0.0
    settled_after: float = 0.0
    rescued: int = 0
    rescue_p99: float | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.problems

    def line(self) -> str:
        """For people."""
        rescue = "" if self.rescue_p99 is None else f", {self.rescued} orphans rescued, p99 {self.rescue_p99:.1f} s"
        refused = f", {self.calls_refused} calls refused" if self.calls_refused else ""
        return (
            f"{'ok' if self.ok else 'FAILED':<7}{self.scenario:<24}{self.accepted:>7} accepted {self.states} "
            f"{self.executed_twice} twice, {self.lost_with_worker} lost with a worker{rescue}{refused}, {self.calls_failed} calls failed, "
            f"accept p99 {self.accept_p99_ms:.0f} ms, settled after {self.settled_after:.1f} s; {self.seconds:.0f} s"
            + "".join(f"\n       {note}" for note in self.notes)
            + "".join(f"\n       PROBLEM {problem}" for problem in self.problems)
        )

    def facts(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "ok": self.ok}


class Trial:
    """What a scenario works with. Its chance is seeded, so that the same seed breaks the same things in the same order."""

    def __init__(self, ground: Ground, size: Size, name: str, seed: int) -> None:
        self.ground = ground
        self.size = size
        self.chance = random.Random(f"{name} {seed}")
        self.report = Report(name, seed)
        self.killed: dict[int, float] = {}
        self.allowed = Allowed()
        self._first = next(_numbers) * 10_000_000
        self._extra: list[str] = []
        self._producers: list[Program] = []
        self._effects_from = ground.effects_size()

    # What a scenario may do, besides breaking the ground's servers and links.

    def note(self, text: str) -> None:
        """A fact for the report."""
        self.report.notes.append(text)

    def pause(self, seconds: float) -> None:
        """Let an outage last as long as the scenario says, to the scale of this size."""
        time.sleep(seconds * self.size.scale)

    @property
    def producing(self) -> bool:
        """Whether there is still somebody who enqueues."""
        return any(producer.running for producer in self._producers)

    def again_while_producing(self, what: Callable[[], None], every: float) -> None:
        """Do it once, and again and again with such a pause (seconds, to no scale) for as long as runs come in."""
        what()
        deadline = time.monotonic() + every
        while self.producing:
            if time.monotonic() >= deadline:
                what()
                deadline = time.monotonic() + every
            time.sleep(0.1)

    def enqueue(self, task: str, **arguments: Any) -> str:
        """One run more, over HTTP, asked for again while the database is away; it counts as accepted. Its id."""
        number = self._first + self.size.runs + len(self._extra)
        body = {"task": task, "args": {"number": number, **arguments}}
        key = {"Idempotency-Key": f"extra-{number}"}

        def accepted() -> str | None:
            answer = self.ground.tenants[0].http.post("/api/tasks", json=body, headers=key)
            if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and self.allowed.refusals:
                return None
            assert answer.status_code == httpx.codes.ACCEPTED, answer.text
            return str(answer.json()["taskId"])

        run_id = str(eventually(accepted, "one run more is accepted", 60))
        self._extra.append(run_id)
        return run_id

    def kill_a_worker(self) -> None:
        """SIGKILL for one of the fleet, by chance."""
        victims = self.ground.workers()
        if victims:
            victim = self.chance.choice(victims)
            self.killed[victim] = kill_process(victim)

    def kill_the_tree(self) -> None:
        """SIGKILL for the supervisor and all its workers at once, and a new fleet."""
        for pid in self.ground.fleet.tree():
            with contextlib.suppress(ProcessLookupError):
                self.killed[pid] = kill_process(pid)
        self.ground.fleet.wait()
        self.ground.fleet = self.ground.start_fleet()

    def executions_of(self, *run_ids: str) -> list[Execution]:
        """Those that have begun by now."""
        return self.ground.executions(run_ids, self._effects_from)

    def begun(self, run_id: str, times: int = 1, timeout: float = 20.0) -> None:
        """Wait until an execution of the run begins, the so-manieth."""
        eventually(lambda: len(self.executions_of(run_id)) >= times, f"execution {times} of {run_id} begins", timeout)

    def executed_by(self, pid: int) -> int:
        """How many executions of this trial that process has begun."""
        return sum(execution.pid == pid for execution in self.executions_of(*self._accepted(), *self._extra))

    def waits_on_a_broker(self, how_many: Callable[[], int], timeout: float = 6.0) -> int:
        """Wait until some dozen messages have gathered (`how_many` counts them), so that there is something to lose."""
        enough = min(36, self.size.runs // 10)
        return int(eventually(lambda: (held := how_many()) >= enough and held, "messages gather on the broker", timeout))

    # Its course.

    def run(self, fault: Callable[[Trial], None], *, produce: bool = True) -> Report:
        """Produce, break, settle, audit. What the auditor found, and what kept it from looking, is in the report and never raised."""
        began = time.monotonic()
        try:
            if produce:
                self._produce()
            fault(self)
            self._settle()
        except (AssertionError, ServerStartError) as error:
            self.report.problems.append(str(error)[-1500:])
        finally:
            for producer in self._producers:
                producer.kill()
            self.report.seconds = time.monotonic() - began
        return self.report

    def _produce(self) -> None:
        """Two services, one in Python and one over HTTP; returns when a fifth of their runs is accepted."""
        posted = min(self.size.runs * 2 // 5, POSTED_AT_MOST)
        produced = self.size.runs - posted
        tenants = self.ground.tenants
        start = self.ground.mailroom.start_command
        for verb, first, number, whose in (
            ("produce", self._first, produced, [tenant.id for tenant in tenants]),
            ("post", self._first + produced, posted, [tenant.key for tenant in tenants]),
        ):
            words = [*FLEET, verb, str(first), str(number), str(self.size.seconds), *whose]
            self._producers.append(start(words, name=verb, LOG_LEVEL="ERROR"))
        eventually(lambda: len(self._accepted()) >= self.size.runs // 5, "a fifth is accepted", 30)

    def _settle(self) -> None:
        for producer in self._producers:
            self._wait_for(producer)
        accepted = [*self._accepted(), *self._extra]
        began = since = time.monotonic()
        left = self.ground.unfinished(accepted)
        while left and time.monotonic() - since < self.size.patience:
            time.sleep(0.2)
            now_left = self.ground.unfinished(accepted)
            if now_left != left:
                left, since = now_left, time.monotonic()
        self.report.settled_after = round(time.monotonic() - began, 1)
        self._judge(self._books())

    def _wait_for(self, producer: Program) -> None:
        """Raises AssertionError when it gets nowhere."""
        seen, since = -1, time.monotonic()
        while producer.running:
            output = producer.output()
            if len(ACCEPTED.findall(output)) != seen:
                seen, since = len(ACCEPTED.findall(output)), time.monotonic()
            failed = sorted(set(FAILED.findall(output)))
            assert time.monotonic() - since < self.size.patience, f"nothing was accepted for {self.size.patience} s; calls failed: {failed}"
            time.sleep(0.2)
        assert producer.wait() == 0, producer.output()[-1500:]

    def _judge(self, books: Books) -> None:
        report, output = self.report, "".join(producer.output() for producer in self._producers)
        rescues = books.rescues(self.killed)
        report.accepted, report.states = len(books.accepted), dict(sorted(books.states.items()))
        report.executed_twice, report.lost_with_worker = len(books.executed_twice), len(books.lost)
        report.calls_refused, report.calls_failed = len(REFUSED.findall(output)), len(FAILED.findall(output))
        report.accept_p99_ms = 1000 * percentile([float(took) for _, took in ACCEPTED.findall(output)], 0.99)
        report.rescued, report.rescue_p99 = len(rescues), percentile(rescues, 0.99) if rescues else None
        try:
            books.must_balance(self.allowed, rescues)
        except AuditError as error:
            report.problems += str(error).splitlines()
        if report.calls_failed:
            report.problems.append(f"{report.calls_failed} calls failed: {sorted(set(FAILED.findall(output)))}")
        if report.calls_refused and not self.allowed.refusals:
            report.problems.append(f"{report.calls_refused} calls were refused although the database was there")
        at_most = 2 * THREADS * len(self.killed)  # running, or ended and not yet written
        if self.allowed.losses and self.killed and report.lost_with_worker > at_most:
            report.problems.append(f"{report.lost_with_worker} runs were lost with {len(self.killed)} processes, which cannot hold so many")

    def _books(self) -> Books:
        numbers = range(self._first, self._first + self.size.runs + EXTRA_AT_MOST)
        return self.ground.books([*self._accepted(), *self._extra], numbers, self._effects_from)

    def _accepted(self) -> list[str]:
        return [run_id for producer in self._producers for run_id, _ in ACCEPTED.findall(producer.output())]


def percentile(values: Iterable[float], share: float) -> float:
    """The value that so great a share of them does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def terminate(program: Program) -> None:
    """SIGTERM, as a service manager sends it. Raises AssertionError unless the program ends in good order."""
    program.send(signal.SIGTERM)
    code = program.wait(40)
    assert code == 0, f"exit code {code}: {program.log.name}"
