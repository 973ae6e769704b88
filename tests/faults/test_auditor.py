"""Who audits the auditor: it must go red on false books, and on Mailroom with any one of three promises broken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.acceptance.installation import eventually, tell
from tests.faults.audit import Allowed, Attempt, AuditError, Books, Run
from tests.faults.effects import Execution
from tests.faults.ground import Ground, kill_process
from tests.faults.scenarios import BY_NAME
from tests.faults.trial import Report, Size, Trial

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

# False books.

WORKER, OTHER = "host-11-aaaaaa", "host-22-bbbbbb"
SUCCEEDED = Run("a", "SUCCESS", None, 1, 1, WORKER, "t1", None)
DONE = Attempt("a", 1, 1, WORKER, "SUCCESS", None, 1.0, 2.0)
EXECUTED = Execution("a", 1, 1, 11, "t1", began=1.1, seen=1.9, ended=True)
BALANCED = Books(accepted=["a"], recorded=["a"], runs=[SUCCEEDED], attempts=[DONE], executions=[EXECUTED], workers=frozenset({WORKER}))

LOST = Attempt("a", 1, 1, WORKER, "RETRY", "WorkerLost", 1.0, 20.0)
DONE_AGAIN = Attempt("a", 2, 2, OTHER, "SUCCESS", None, 21.0, 22.0)
EXECUTED_AGAIN = Execution("a", 2, 2, 22, "t2", began=21.1, seen=21.9, ended=True)
RESCUED = replace(
    BALANCED,
    runs=[SUCCEEDED._replace(attempt=2, fence=2, worker_id=OTHER, token="t2")],
    attempts=[LOST, DONE_AGAIN],
    executions=[EXECUTED, EXECUTED_AGAIN],
)

FALSE = {
    "accepted and lost": (replace(BALANCED, accepted=["a", "b"]), "1 accepted and not in the record: b"),
    "recorded and never accepted": (replace(BALANCED, recorded=["a", "b"]), "in the record and never accepted"),
    "an id given twice": (replace(BALANCED, accepted=["a", "a"]), "ids were given twice"),
    "waiting for ever": (
        replace(BALANCED, runs=[SUCCEEDED._replace(state="PENDING", waiting_for="queue")]),
        "wait, and nothing comes of it",
    ),
    "held by a dead worker": (
        replace(BALANCED, runs=[SUCCEEDED._replace(state="STARTED", worker_id=OTHER)], attempts=[], executions=[]),
        "STARTED, by a worker that is no more",
    ),
    "failed without a reason to": (
        replace(BALANCED, runs=[SUCCEEDED._replace(state="FAILURE", reason="crashed")], executions=[]),
        "ended in a state that is not theirs: a FAILURE crashed",
    ),
    "never executed": (replace(BALANCED, executions=[]), "SUCCESS in the record and never executed to the end"),
    "not executed to the end": (replace(BALANCED, executions=[replace(EXECUTED, ended=False)]), "never executed to the end"),
    "done and not recorded": (
        replace(BALANCED, runs=[SUCCEEDED._replace(state="FAILURE", reason="crashed")]),
        "executed to the end and not recorded as SUCCESS",
    ),
    "a result of somebody else": (
        replace(RESCUED, runs=[RESCUED.runs[0]._replace(token="t1")]),
        "the result is of an execution that did not hold the run",
    ),
    "an attempt too many": (replace(BALANCED, runs=[SUCCEEDED._replace(attempt=2)]), "attempts do not add up"),
    "a claim without history": (replace(RESCUED, attempts=[DONE_AGAIN]), "claims without a line in the history"),
    "a fence used twice": (
        replace(BALANCED, executions=[EXECUTED, replace(EXECUTED, token="t3", began=2.0, seen=2.1)]),
        "a fence was executed twice or out of order",
    ),
    "history out of order": (
        replace(RESCUED, attempts=[LOST, DONE_AGAIN._replace(started_at=19.0)]),
        "an attempt began in the record before the one before had ended",
    ),
    "beside its own retry": (
        replace(RESCUED, executions=[replace(EXECUTED, seen=21.5), EXECUTED_AGAIN]),
        "executed beside their own retry",
    ),
}


@pytest.mark.parametrize(("books", "complaint"), FALSE.values(), ids=FALSE)
def test_false_books_are_found_false(books: Books, complaint: str) -> None:
    with pytest.raises(AuditError, match=complaint):
        books.must_balance(Allowed(losses=True))


def test_books_that_balance_are_left_in_peace() -> None:
    BALANCED.must_balance(Allowed())
    RESCUED.must_balance(Allowed(losses=True))


def test_a_second_execution_is_excused_only_where_a_worker_may_be_lost() -> None:
    with pytest.raises(AuditError, match="executed to the end twice: a"):
        RESCUED.must_balance(Allowed())
    planned = replace(RESCUED, attempts=[LOST._replace(error_type=None), DONE_AGAIN])
    with pytest.raises(AuditError, match="executed to the end twice: a"):
        planned.must_balance(Allowed(losses=True))


def test_poison_is_executed_exactly_as_often_as_it_has_attempts() -> None:
    failed = SUCCEEDED._replace(state="FAILURE", reason="crashed", attempt=2, fence=2)
    attempts = [LOST, DONE_AGAIN._replace(state="FAILURE", error_type="WorkerLost")]
    cut_short = [replace(EXECUTED, ended=False), replace(EXECUTED_AGAIN, ended=False)]
    books = replace(BALANCED, runs=[failed], attempts=attempts, executions=cut_short)
    books.must_balance(Allowed(losses=True, failures={"a": 2}))
    with pytest.raises(AuditError, match="a 2 times, not 3"):
        books.must_balance(Allowed(losses=True, failures={"a": 3}))


def test_a_rescue_is_counted_from_the_kill_and_may_not_take_long() -> None:
    books = replace(RESCUED, executions=[replace(EXECUTED, ended=False), EXECUTED_AGAIN])
    assert books.rescues({11: 1.1}) == [20.0]
    with pytest.raises(AuditError, match=r"orphans waited too long: 46\.0 s"):
        books.must_balance(Allowed(losses=True), [46.0])


# Mutants.

SIZE = Size(runs=200, rate=400.0, scale=0.25, patience=14.0)


@contextmanager
def mutated(ground: Ground, mutant: str) -> Iterator[Trial]:
    """A trial on which every process is the mutant; everything is itself again afterwards."""
    own = dict(ground.mailroom.environment)
    ground.mailroom.environment["FAULTS_MUTANT"] = mutant
    try:
        with ground.other_fleet():
            yield Trial(ground, SIZE, mutant, seed=1)
    finally:
        ground.mailroom.environment.clear()
        ground.mailroom.environment.update(own)
        ground.heal()


def without_confirms(ground: Ground) -> Report:
    def kill_rabbitmq(trial: Trial) -> None:
        with ground.frozen_workers():
            ground.rabbitmq.freeze()  # what is written now is lost
            eventually(lambda: not trial.producing, "the producers are done")
            ground.rabbitmq.kill()
        ground.rabbitmq.start()

    with mutated(ground, "no-confirms") as trial:
        return trial.run(kill_rabbitmq)


def acknowledged_early(ground: Ground) -> Report:
    def kill_everybody(trial: Trial) -> None:
        runs = [trial.enqueue("lingers", seconds=2.0) for _ in range(8)]
        trial.begun(runs[-1])
        for pid in ground.workers():
            kill_process(pid)

    with mutated(ground, "early-ack") as trial:
        trial.allowed = Allowed(losses=True)
        return trial.run(kill_everybody, produce=False)


def without_fence(ground: Ground) -> Report:
    scenario = BY_NAME["worker-cut-off"]
    with mutated(ground, "no-fence") as trial:
        trial.allowed = scenario.allowed
        return trial.run(scenario.fault, produce=False)


@pytest.mark.trial("no-confirms", without_confirms)
def test_without_confirms_messages_are_lost_and_the_auditor_sees_it(report: Report) -> None:
    """The runs are in the record, so they wait, and nobody looks for them any more."""
    tell(report.line())
    assert any("wait, and nothing comes of it" in problem for problem in report.problems)


@pytest.mark.trial("early-ack", acknowledged_early)
def test_acknowledged_before_the_outcome_runs_vanish_and_the_auditor_sees_it(report: Report) -> None:
    tell(report.line())
    assert any("SUCCESS in the record and never executed" in problem for problem in report.problems)


@pytest.mark.trial("no-fence", without_fence)
def test_without_the_fence_a_robbed_worker_overrules_and_the_auditor_sees_it(report: Report) -> None:
    tell(report.line())
    assert any("the result is of an execution that did not hold the run" in problem for problem in report.problems)
