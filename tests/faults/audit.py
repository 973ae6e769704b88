"""The auditor: compares what was accepted, what the record says and what was really done, and names everything that does not agree.

It shares no code with what it judges. It reads the database as a superuser, past every repository, and the effects as the tasks
themselves wrote them; what it decides is a function of those, so that it can be shown false books.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from tests.faults.effects import Execution

SHOWN = 3
RESCUE_SECONDS = 45.0
"""What 99 of 100 orphans of a killed worker may wait for their next execution."""


class AuditError(AssertionError):
    """The books do not balance; the text says where, a line each."""


class Run(NamedTuple):
    """A row of task_runs."""

    id: str
    state: str
    reason: str | None
    attempt: int
    fence: int
    worker_id: str | None
    token: str | None
    waiting_for: str | None


class Attempt(NamedTuple):
    """A row of task_attempts; the moments are the database's."""

    run_id: str
    fence: int
    attempt: int
    worker_id: str | None
    state: str
    error_type: str | None
    started_at: Any
    finished_at: Any


@dataclass(frozen=True)
class Allowed:
    """What a fault excuses. Nothing excuses a lost run, an unrecorded one, or two executions of one run at the same time."""

    losses: bool = False
    """Runs may be lost with their worker. Those, and no others, may have been executed to their end and be executed again."""
    refusals: bool = False
    """Calls may be answered 503: the database was away, too."""
    unspent: frozenset[str] = frozenset()
    """Runs that may be lost with a worker and must not have paid for it: one attempt is all they count."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Runs that must end in FAILURE with the reason `crashed`, after exactly so many executions."""


@dataclass(frozen=True)
class Books:
    """Everything the auditor judges. `recorded` are the ids of all runs that these producers can have caused."""

    accepted: Sequence[str]
    recorded: Sequence[str]
    runs: Sequence[Run]
    attempts: Sequence[Attempt]
    executions: Sequence[Execution]
    workers: frozenset[str] = frozenset()

    @property
    def states(self) -> Counter[str]:
        """The accepted runs by state."""
        return Counter(run.state for run in self.runs)

    @property
    def waiting(self) -> int:
        """Runs that are not at their end."""
        return sum(self.states[state] for state in ("PENDING", "RETRY", "STARTED"))

    @property
    def executed_twice(self) -> set[str]:
        """Runs that were executed to their end more than once."""
        ends = Counter(execution.run_id for execution in self.executions if execution.ended)
        return {run_id for run_id, times in ends.items() if times > 1}

    @property
    def lost(self) -> set[str]:
        """Runs that were lost with their worker at least once, says the record."""
        return {attempt.run_id for attempt in self.attempts if attempt.error_type == "WorkerLost"}

    def rescues(self, killed: Mapping[int, float]) -> list[float]:
        """Seconds from the kill of a process (by its id) to the next execution of each run that it was executing then."""
        found = []
        for executions in by_run(self.executions).values():
            for one, following in pairwise(executions):
                if one.pid in killed and not (one.ended or one.failed):
                    found.append(following.began - killed[one.pid])
        return sorted(found)

    def judge(self, allowed: Allowed, rescues: Sequence[float] = ()) -> list[str]:
        """Every disagreement, one sentence each; none when the books balance."""
        late = [f"{seconds:.1f} s" for seconds in rescues if seconds > RESCUE_SECONDS]
        return [
            *self._accepted_is_recorded(),
            *self._everything_ended(),
            *self._states_are_right(allowed),
            *self._success_was_executed(),
            *self._history_is_whole(),
            *self._executions_are_claims(),
            *self._executed_once(allowed),
            *complaint("orphans waited too long", late if len(late) * 100 > len(rescues) else []),
        ]

    def must_balance(self, allowed: Allowed, rescues: Sequence[float] = ()) -> None:
        """Raises AuditError with every disagreement."""
        if problems := self.judge(allowed, rescues):
            raise AuditError("\n".join(problems))

    def _accepted_is_recorded(self) -> Iterable[str]:
        """accepted = succeeded + failed + revoked + still waiting, and nothing else is there."""
        given = Counter(self.accepted)
        yield from complaint("ids were given twice", [run_id for run_id, times in given.items() if times > 1])
        yield from complaint("accepted and not in the record", given.keys() - {run.id for run in self.runs})
        yield from complaint("in the record and never accepted", set(self.recorded) - given.keys())
        ended = sum(self.states[state] for state in ("SUCCESS", "FAILURE", "REVOKED"))
        if len(given) != ended + self.waiting:
            yield f"{len(given)} accepted are not {ended} ended and {self.waiting} waiting"

    def _everything_ended(self) -> Iterable[str]:
        stuck = [f"{run.id} {run.state} {run.waiting_for or run.worker_id}" for run in self.runs if run.state in {"PENDING", "RETRY"}]
        yield from complaint("wait, and nothing comes of it", stuck)
        started = [run for run in self.runs if run.state == "STARTED"]
        dead = [f"{run.id} {run.worker_id}" for run in started if run.worker_id not in self.workers]
        yield from complaint("STARTED, by a worker that is no more", dead)
        yield from complaint("still STARTED", [run.id for run in started if run.worker_id in self.workers])

    def _states_are_right(self, allowed: Allowed) -> Iterable[str]:
        expected = dict.fromkeys(allowed.failures, "FAILURE crashed")
        ended = {run.id: f"{run.state} {run.reason or ''}".strip() for run in self.runs if run.state in {"SUCCESS", "FAILURE", "REVOKED"}}
        wrong = [f"{run_id} {state}" for run_id, state in ended.items() if state != expected.get(run_id, "SUCCESS")]
        yield from complaint("ended in a state that is not theirs", wrong)
        begun = Counter(execution.run_id for execution in self.executions)
        counted = [f"{run_id} {begun[run_id]} times, not {times}" for run_id, times in allowed.failures.items() if begun[run_id] != times]
        yield from complaint("executed more or less often than they have attempts", counted)
        paid = [f"{run.id} {run.attempt}" for run in self.runs if run.id in allowed.unspent and run.attempt > 1]
        yield from complaint("paid with an attempt for a crash that was not theirs", paid)

    def _success_was_executed(self) -> Iterable[str]:
        """A success in the record is one execution that came to its end, and the very one whose result is kept."""
        by_token = {execution.token: execution for execution in self.executions if execution.ended}
        successes = {(each.run_id, each.fence): each for each in self.attempts if each.state == "SUCCESS"}
        times = Counter(run_id for run_id, _ in successes)
        succeeded = {run.id: run for run in self.runs if run.state == "SUCCESS"}
        yield from complaint("succeeded more or less than once in the record", [run_id for run_id in succeeded if times[run_id] != 1])
        unexecuted, foreign = [], []
        for run in succeeded.values():
            execution = by_token.get(run.token or "")
            if execution is None:
                unexecuted.append(run.id)
            elif not _is_credited((execution.run_id, execution.fence), execution.pid, successes):
                foreign.append(f"{run.id} fence {execution.fence} pid {execution.pid}")
        yield from complaint("SUCCESS in the record and never executed to the end", unexecuted)
        yield from complaint("the result is of an execution that did not hold the run", foreign)
        done = {execution.run_id for execution in self.executions if execution.ended}
        ended = {run.id for run in self.runs if run.state in {"FAILURE", "REVOKED"}}
        yield from complaint("executed to the end and not recorded as SUCCESS", done & ended)

    def _history_is_whole(self) -> Iterable[str]:
        """Every claim of an ended run has its line, in the order of the fences, and the attempts that were spent add up."""
        history: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in sorted(self.attempts, key=lambda each: each.fence):
            history[attempt.run_id].append(attempt)
        gaps, unordered, unbalanced = [], [], []
        for run in self.runs:
            lines = history[run.id]
            if run.state in {"SUCCESS", "FAILURE"} and [line.fence for line in lines] != list(range(1, run.fence + 1)):
                gaps.append(f"{run.id} {[line.fence for line in lines]} of {run.fence}")
            if any(later.started_at < earlier.finished_at for earlier, later in pairwise(lines)):
                unordered.append(run.id)
            spent = sum(line.state in {"SUCCESS", "FAILURE", "RETRY"} for line in lines)
            pardonable = sum(line.error_type == "WorkerLost" for line in lines)
            if run.state in {"SUCCESS", "FAILURE"} and not spent - pardonable <= run.attempt <= spent:
                unbalanced.append(f"{run.id} {run.attempt} counted, {spent} in the history")
        yield from complaint("claims without a line in the history", gaps)
        yield from complaint("an attempt began in the record before the one before had ended", unordered)
        yield from complaint("attempts do not add up", unbalanced)

    def _executions_are_claims(self) -> Iterable[str]:
        """Each execution has a fence of its own, higher than the one before."""
        repeated = []
        for run_id, executions in by_run(self.executions).items():
            fences = [execution.fence for execution in executions]
            if any(later <= earlier for earlier, later in pairwise(fences)):
                repeated.append(f"{run_id} {fences}")
        yield from complaint("a fence was executed twice or out of order", repeated)

    def _executed_once(self, allowed: Allowed) -> Iterable[str]:
        excused = self.lost if allowed.losses else set()
        yield from complaint("executed to the end twice", self.executed_twice - excused)
        if not allowed.losses:
            yield from complaint("lost with a worker although none was lost", self.lost - allowed.failures.keys())
        beside = []
        for run_id, executions in by_run(self.executions).items():
            for one, following in pairwise(executions):
                if following.began < one.seen:
                    beside.append(f"{run_id} {one.seen - following.began:.2f} s (pids {one.pid}, {following.pid})")
        yield from complaint("executed beside their own retry", beside)


def _is_credited(claim: tuple[str, int], pid: int, successes: Mapping[tuple[str, int], Attempt]) -> bool:
    attempt = successes.get(claim)
    return attempt is not None and f"-{pid}-" in (attempt.worker_id or "")


def by_run(executions: Iterable[Execution]) -> dict[str, list[Execution]]:
    """Each run's executions, the first first."""
    found: dict[str, list[Execution]] = defaultdict(list)
    for execution in sorted(executions, key=lambda each: each.began):
        found[execution.run_id].append(execution)
    return found


def complaint(what: str, whom: Iterable[str]) -> Iterable[str]:
    """One sentence about all of them, with the first few by name; nothing about nobody."""
    named = sorted(whom)
    if named:
        yield f"{len(named)} {what}: {', '.join(named[:SHOWN])}{', …' if len(named) > SHOWN else ''}"
