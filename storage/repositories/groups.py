"""Groups and chains as people look at them: their members counted and listed, and who stands before and behind a run.

A group has no row of its own: it is the runs that name it, as members (`group_id`) or as what follows it (`after_group_id`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, literal, select
from sqlalchemy.orm import aliased

from core.errors import NotFoundError
from core.ids import is_id
from storage.models import TaskRun
from storage.repositories.base import Repository
from storage.states import FINAL, LIVE, State

NO_GROUP = "There is no group with this id."


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """A group: how many members are in each state, and the run that follows it (None: it is a chain, or its callback is forgotten).

    `finished_at`: when its last member ended, once all have.
    """

    id: str
    states: dict[State, int]
    callback: TaskRun | None
    created_at: datetime
    finished_at: datetime | None

    @property
    def members(self) -> int:
        """How many runs it has."""
        return sum(self.states.values())

    @property
    def ended(self) -> int:
        """How many of them have ended, however."""
        return sum(number for state, number in self.states.items() if state in FINAL)


@dataclass(frozen=True, slots=True)
class Member:
    """A run of a group or a chain, and what it follows."""

    run_id: str
    queue: str
    state: State
    after_run_id: str | None


class Groups(Repository):
    """Of the runs the identity may see."""

    def summary(self, group_id: str) -> GroupSummary:
        """Raises NotFoundError for a group of which the identity sees neither a member nor the callback."""
        if not is_id(group_id):
            raise NotFoundError(NO_GROUP)
        rows = self.session.execute(
            select(TaskRun.state, func.count().label("number"), func.min(TaskRun.created_at), func.max(TaskRun.finished_at))
            .where(self.owns(TaskRun), TaskRun.group_id == group_id)
            .group_by(TaskRun.state)
        ).all()
        callback = self.session.scalar(self.scoped(TaskRun).where(TaskRun.after_group_id == group_id).order_by(TaskRun.id).limit(1))
        beginnings = [row[2] for row in rows] or ([callback.created_at] if callback is not None else [])
        if not beginnings:
            raise NotFoundError(NO_GROUP)
        states = {State(row.state): int(row.number) for row in rows}
        ends = [row[3] for row in rows if row[3] is not None]
        is_over = bool(ends) and not states.keys() & LIVE
        return GroupSummary(group_id, states, callback, min(beginnings), max(ends) if is_over else None)

    def page(self, group_id: str, states: Sequence[State], *, after: str | None = None, limit: int = 50) -> list[TaskRun]:
        """Members in the order given to the group, behind one of them."""
        some = self.scoped(TaskRun).where(TaskRun.group_id == group_id)
        if states:
            some = some.where(TaskRun.state.in_(list(states)))
        if after is not None:
            some = some.where(TaskRun.id > after)
        return list(self.session.scalars(some.order_by(TaskRun.id).limit(limit)))

    def members(self, group_id: str) -> list[Member]:
        """All of them, in their order."""
        return self._members(self.owns(TaskRun), TaskRun.group_id == group_id)

    def of_ids(self, run_ids: Sequence[str]) -> list[Member]:
        """The runs with these ids, in the order of the ids."""
        return self._members(self.owns(TaskRun), TaskRun.id.in_(run_ids))

    def live_callbacks(self, group_id: str) -> list[str]:
        """The runs that follow the group and have not ended."""
        waiting = select(TaskRun.id).where(self.owns(TaskRun), TaskRun.after_group_id == group_id, TaskRun.state.in_(sorted(LIVE)))
        return list(self.session.scalars(waiting))

    def before(self, run: TaskRun, limit: int) -> list[TaskRun]:
        """The runs that this one follows through each other, at most so many; the farthest first."""
        line = select(TaskRun.after_run_id.label("id"), literal(1).label("depth")).where(TaskRun.id == run.id, self.owns(TaskRun))
        steps = line.cte("before", recursive=True)
        earlier = aliased(TaskRun)
        steps = steps.union_all(
            select(earlier.after_run_id, steps.c.depth + 1)
            .join(steps, earlier.id == steps.c.id)
            .where(self.owns(earlier), steps.c.depth < limit)
        )
        return self._along(steps, descending=True, limit=limit)

    def behind(self, run: TaskRun, limit: int) -> list[TaskRun]:
        """The runs that follow this one, directly or through each other, at most so many; the nearest first."""
        line = select(TaskRun.id, literal(1).label("depth")).where(TaskRun.after_run_id == run.id, self.owns(TaskRun))
        steps = line.cte("behind", recursive=True)
        later = aliased(TaskRun)
        steps = steps.union_all(
            select(later.id, steps.c.depth + 1).join(steps, later.after_run_id == steps.c.id).where(self.owns(later), steps.c.depth < limit)
        )
        return self._along(steps, descending=False, limit=limit)

    def _along(self, steps: Any, *, descending: bool, limit: int) -> list[TaskRun]:
        order = (steps.c.depth.desc() if descending else steps.c.depth, TaskRun.id)
        return list(self.session.scalars(self.scoped(TaskRun).join(steps, steps.c.id == TaskRun.id).order_by(*order).limit(limit)))

    def _members(self, *conditions: Any) -> list[Member]:
        columns = (TaskRun.id, TaskRun.queue, TaskRun.state, TaskRun.after_run_id)
        rows = self.session.execute(select(*columns).where(*conditions).order_by(TaskRun.id))
        return [Member(row.id, row.queue, State(row.state), row.after_run_id) for row in rows]
