"""How many runs wait, run and failed, told in milliseconds whatever the table holds.

What waits, runs, or failed is counted from partial indexes, exactly up to a cap; what has ended well or was revoked is told of the
newest runs only. Nobody waits for `count(*)` over millions of rows, least of all a page that asks every second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Select, TextClause, and_, func, literal, select, text, union_all

from storage import postgres
from storage.models import TaskRun
from storage.models.runs import DEAD, EXCEPTIONS, HELD, LIMITED, LIMITED_BY_HOST, PUBLISHED
from storage.repositories.base import Repository
from storage.states import State, WaitingFor

BUDGET = 50_000
"""So many index entries are read at most of what waits in queues: about 20 ms."""
LOWEST_CAP = 5_000
CAPS = ((1, BUDGET), (2, BUDGET // 2), (5, BUDGET // 5))
"""Up to so many busy queues, each is counted so far; more share LOWEST_CAP each."""
NEWEST = 1_000
LOOKED_AT = 1_000
PRIORITIES = (0, 1, 2)
ELSEWHERE = {
    LIMITED: None,
    LIMITED_BY_HOST: None,
    "waiting_for = 'pause'": None,
    "waiting_for = 'run'": None,
    "publish_at IS NOT NULL": (WaitingFor.ETA, WaitingFor.BROKER),
}
"""What waits for something else than its queue, by the condition of its index; a tuple narrows what the index holds."""

_QUEUES = """
    WITH RECURSIVE found (queue) AS (
        SELECT (SELECT queue FROM task_runs WHERE {condition} ORDER BY queue LIMIT 1)
        UNION ALL
        SELECT (SELECT run.queue FROM task_runs run WHERE {condition} AND run.queue > found.queue ORDER BY run.queue LIMIT 1)
        FROM found WHERE found.queue IS NOT NULL
    ) SELECT queue FROM found WHERE queue IS NOT NULL"""
Numbers = dict[str, Counter[str]]
Condition = ColumnElement[bool] | TextClause


@dataclass(frozen=True, slots=True)
class RunCounts:
    """Queue to state to number. `live`: PENDING, RETRY, STARTED, and dead letters as FAILURE. `recent`: any state, of the newest
    `looked_at` runs. `capped`: the (queue, state) whose number says "so many at least". `oldest`: since when a due run waits."""

    live: Numbers
    recent: Numbers
    looked_at: int
    capped: frozenset[tuple[str, str]]
    oldest: dict[str, datetime]


class Counts(Repository):
    """Of the runs the identity may see."""

    _known: Iterable[str] = ()

    def by_queue(self, known: Sequence[str]) -> RunCounts:
        """Every queue that has runs. `known` are those there should be; a tenant's others are found among its newest runs only."""
        recent = self._recent()
        self._known = {*known, *recent}
        in_queue, are_short = self._in_queues()
        elsewhere, are_cut = self._elsewhere()
        retries, dead = self._behind(f"{EXCEPTIONS} AND state = 'RETRY'"), self._behind(DEAD)
        running = self._count_up_to(text("state = 'STARTED'"), BUDGET)
        live: Numbers = {}
        capped = set()
        for queue in {*in_queue, *elsewhere, *retries, *dead, *running}:
            waiting = in_queue[queue] + elsewhere[queue]
            numbers = {State.PENDING: waiting - retries[queue], State.RETRY: retries[queue], State.STARTED: running[queue]}
            live[queue] = +Counter({str(state): max(0, number) for state, number in {**numbers, State.FAILURE: dead[queue]}.items()})
            if queue in are_short or are_cut:
                capped.add((queue, str(State.PENDING)))
            capped |= {
                (queue, str(state)) for state, found in ((State.RETRY, retries), (State.FAILURE, dead)) if found[queue] >= LOWEST_CAP
            }
        looked_at = sum(numbers.total() for numbers in recent.values())
        return RunCounts(live, recent, looked_at, frozenset(capped), self.oldest_waiting(sorted(+in_queue)))

    def oldest_waiting(self, queues: Sequence[str]) -> dict[str, datetime]:
        """Queue to the creation time of its longest waiting run that is due: of the published ones, and the first held of each lane."""
        oldest: dict[str, datetime] = {}
        for queue, moment in [*self._oldest_published(queues), *self._oldest_held(queues)]:
            if moment is not None:
                oldest[queue] = min(moment, oldest.get(queue, moment))
        return oldest

    def _in_queues(self) -> tuple[Counter[str], set[str]]:
        """How many wait in each queue, and in which there may be more."""
        busy = self._busy_queues()
        cap = next((cap for number, cap in CAPS if len(busy) <= number), LOWEST_CAP)
        counted = self._each(busy, (text(PUBLISHED), text(HELD)), cap)
        return counted, {queue for queue, number in counted.items() if number >= cap}

    def _busy_queues(self) -> list[str]:
        return sorted({queue for condition in (PUBLISHED, HELD) for queue in self._queues_of(condition)})

    def _queues_of(self, condition: str) -> Iterable[str]:
        """A loose scan of an index that begins with the queue: a probe for each queue, whatever it holds.

        Not for a tenant: it would step over everything the others have.
        """
        return self.session.scalars(text(_QUEUES.format(condition=condition))) if self.identity.is_system else self._known

    def _behind(self, condition: str) -> Counter[str]:
        """By queue, what an index that begins with it holds; without a further condition no row is looked at."""
        return self._each(list(self._queues_of(condition)), (text(condition),), LOWEST_CAP)

    def _each(self, queues: Sequence[str], conditions: Sequence[Condition], cap: int) -> Counter[str]:
        """Queue to number, each of the conditions counted up to the cap."""
        parts = [
            select(
                literal(queue),
                select(func.count()).select_from(self._some(queue, condition).limit(cap).subquery()).scalar_subquery(),
            )
            for queue in queues
            for condition in conditions
        ]
        found: Counter[str] = Counter()
        for queue, number in self.session.execute(union_all(*parts)) if parts else ():
            found[queue] += number
        return found

    def _elsewhere(self) -> tuple[Counter[str], bool]:
        """By queue, and whether there may be more."""
        found: Counter[str] = Counter()
        is_cut = False
        for condition, kinds in ELSEWHERE.items():
            narrowed = text(condition) if kinds is None else and_(text(condition), TaskRun.waiting_for.in_(kinds))
            some = self._count_up_to(narrowed, LOWEST_CAP)
            is_cut |= some.total() >= LOWEST_CAP
            found += some
        return found, is_cut

    def _count_up_to(self, condition: Condition, cap: int) -> Counter[str]:
        some = select(TaskRun.queue).where(condition, self.owns(TaskRun)).limit(cap).subquery()
        rows = self.session.execute(select(some.c.queue, func.count()).group_by(some.c.queue))
        return Counter({row[0]: row[1] for row in rows})

    def _recent(self) -> Numbers:
        newest = select(TaskRun.queue, TaskRun.state).where(self.owns(TaskRun)).order_by(TaskRun.id.desc()).limit(NEWEST).subquery()
        numbers: Numbers = {}
        for queue, state, number in self.session.execute(
            select(newest.c.queue, newest.c.state, func.count()).group_by(newest.c.queue, newest.c.state)
        ):
            numbers.setdefault(queue, Counter())[state] = number
        return numbers

    def _oldest_published(self, queues: Sequence[str]) -> list[tuple[str, datetime | None]]:
        found = []
        for queue in queues:
            some = self._some(queue, text(PUBLISHED)).with_only_columns(TaskRun.created_at).limit(LOOKED_AT).subquery()
            found.append((queue, self.session.scalar(select(func.min(some.c.created_at)))))
        return found

    def _oldest_held(self, queues: Sequence[str]) -> list[tuple[str, datetime | None]]:
        """The lanes are found by a loose scan; a tenant's own are known."""
        if self.identity.is_system:
            first = TaskRun.id.in_(self._first_held())
            rows = self.session.execute(select(TaskRun.queue, func.min(TaskRun.created_at)).where(first).group_by(TaskRun.queue))
            return [(row[0], row[1]) for row in rows]
        return [(queue, self.session.scalar(self._first_of_lane(queue, priority))) for queue in queues for priority in PRIORITIES]

    def _first_held(self) -> list[str]:
        connection = self.session.connection()
        if connection.dialect.name == "postgresql":
            return postgres.first_held(connection, LOOKED_AT)
        lanes = (TaskRun.queue, TaskRun.tenant_id, TaskRun.priority)
        return list(self.session.scalars(select(func.min(TaskRun.id)).where(text(HELD)).group_by(*lanes).limit(LOOKED_AT)))

    def _first_of_lane(self, queue: str, priority: int) -> Select[datetime]:
        lane = self._some(queue, and_(text(HELD), TaskRun.priority == priority))
        return lane.with_only_columns(TaskRun.created_at).order_by(TaskRun.id).limit(1)

    def _some(self, queue: str, condition: Condition) -> Select[str]:
        return select(TaskRun.queue).where(condition, self.owns(TaskRun), TaskRun.queue == queue)
