"""The auditor: reads the record and what was really done, and says whether the two agree about everything that was accepted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.acceptance.installation import Installation
from tests.faults.chores import EFFECTS


@dataclass(frozen=True)
class Audit:
    """`states` counts the accepted runs by state, `executions` how often each was executed to its end."""

    accepted: Sequence[str]
    states: Counter[str]
    executions: Counter[str]
    successes: Counter[str]
    """Attempts in the record that ended in SUCCESS, by run."""
    succeeded: frozenset[str]

    @property
    def waiting(self) -> int:
        """Runs that are not at their end."""
        return self.states["PENDING"] + self.states["RETRY"] + self.states["STARTED"]

    @property
    def executed_twice(self) -> list[str]:
        """Runs that were executed to their end more than once."""
        return [run_id for run_id in self.accepted if self.executions[run_id] > 1]

    def must_balance(self) -> None:
        """accepted = succeeded + failed + revoked + waiting, and nothing is recorded as done that was not, or done unrecorded."""
        assert len(set(self.accepted)) == len(self.accepted), "an id was given twice"
        ended = self.states["SUCCESS"] + self.states["FAILURE"] + self.states["REVOKED"]
        assert len(self.accepted) == ended + self.waiting, f"{len(self.accepted)} accepted, recorded: {dict(self.states)}"
        undone = [run_id for run_id in self.succeeded if not self.executions[run_id]]
        assert not undone, f"recorded as SUCCESS and never executed: {undone[:5]}"
        unrecorded = [run_id for run_id in self.accepted if self.executions[run_id] and run_id not in self.succeeded]
        assert not unrecorded or self.waiting, f"executed and not recorded: {unrecorded[:5]}"
        assert all(self.successes[run_id] == 1 for run_id in self.succeeded), "a run succeeded more than once in the record"


def audit(installation: Installation, accepted: Sequence[str]) -> Audit:
    """Read everything now."""
    ids = list(accepted)
    rows = installation.query("SELECT id::text, state FROM task_runs WHERE id = ANY(%s::uuid[])", ids)
    attempts = installation.query("SELECT run_id::text FROM task_attempts WHERE state = 'SUCCESS' AND run_id = ANY(%s::uuid[])", ids)
    effects = installation.directory / "data" / EFFECTS
    lines = effects.read_text().splitlines() if effects.exists() else []
    return Audit(
        accepted=ids,
        states=Counter(state for _, state in rows),
        executions=Counter(line.split()[0] for line in lines),
        successes=Counter(run_id for (run_id,) in attempts),
        succeeded=frozenset(run_id for run_id, state in rows if state == "SUCCESS"),
    )
