"""The statements of limits: how many runs of a tenant or over a mail host may be under way, and which of the waiting ones are next.

A run is under way from its admission until it has ended, failed or been put off: while it is published or held, and while it is
STARTED; a suspect keeps its place until it has run alone. Whoever sees room locks the rows of the limits, in one order, and counts
again: any number of relays admit no more than one would. Nothing that waits stands before another: each lane (a tenant's
runs over one mail host, in one queue, of one priority) is looked at for itself.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, literal, or_, select, text, tuple_, union_all, update

from storage.barriers import TENANT_NAME, is_paused, is_unswept
from storage.dispatch import BATCH, MESSAGE_COLUMNS, NOT_ON_A_BROKER, Publishable, let_through, wait_behind
from storage.expressions import db_now
from storage.models import Limit, TaskRun
from storage.models.runs import HELD, LIMITED, LIMITED_BY_HOST, PUBLISHED, QUEUED_BY_HOST
from storage.states import WaitingFor
from storage.walks import PAGE, beginnings, queues_in_use

AHEAD_SECONDS = 5.0
"""So many seconds' worth of starts may be on their way at most: no more pile up while nobody works."""
FEW = 10
LimitKey = tuple[str, str]
"""Kind and name."""
Urgency = Callable[[str, int], tuple[int, int]]
"""Of a queue and a priority; smaller is sooner."""


@dataclass(frozen=True, slots=True)
class LimitedLane:
    """Where limited runs wait, the longest waiting first."""

    tenant_id: str
    mail_host: str | None
    queue: str
    priority: int

    @property
    def limits(self) -> list[LimitKey]:
        """What may be in its way."""
        return [("tenant", self.tenant_id), *([("host", self.mail_host)] if self.mail_host is not None else [])]


@dataclass(slots=True)
class Allowance:
    """A locked limit and what is under way of it: `queued` on their way to a worker, `running` in one (or to run alone)."""

    concurrency: int | None
    per_minute: int | None
    tokens: float
    now: datetime
    running: int = 0
    queued: int = 0
    taken: int = 0

    @property
    def room(self) -> float:
        """How many more may be admitted; less than none when too many are queued already (the tokens are no matter then)."""
        free = self.most_queued - self.queued
        return min(free, math.floor(self.tokens + 1e-6)) - self.taken if self.per_minute is not None and free > 0 else free - self.taken

    @property
    def most_queued(self) -> float:
        """How many may be on their way to a worker."""
        by_number = math.inf if self.concurrency is None else max(0, self.concurrency - self.running)
        return by_number if self.per_minute is None else min(by_number, max(1, int(self.per_minute / 60 * AHEAD_SECONDS)))

    @property
    def excess(self) -> int:
        """How many too many are."""
        return int(max(0, self.queued - self.most_queued))


def limited_lanes(connection: Connection, after: LimitedLane | None = None) -> list[LimitedLane]:
    """A page of the lanes with waiting runs, from behind `after`; those without a mail host come first."""
    lanes = []
    if after is None or after.mail_host is None:
        behind = None if after is None else (after.tenant_id, after.queue, after.priority)
        plain = beginnings(connection, ("tenant_id", "queue", "priority"), LIMITED, behind)
        lanes = [LimitedLane(tenant_id, None, queue, priority) for tenant_id, queue, priority in plain]
        after = None
    if len(lanes) < PAGE:
        start = None if after is None else (after.tenant_id, after.mail_host, after.queue, after.priority)
        columns = ("tenant_id", "mail_host", "queue", "priority")
        lanes += [LimitedLane(*row) for row in beginnings(connection, columns, LIMITED_BY_HOST, start, PAGE - len(lanes))]
    return lanes


def admit(connection: Connection, lanes: Sequence[LimitedLane], window: int, urgency: Urgency) -> tuple[list[Publishable], bool]:
    """Admits what the limits allow, the most urgent first and the tenants in turn. What has room in its lane's window counts as
    published from now on and is returned, the rest is held. Also returns whether there may be more at once."""
    seen = _allowances_of(connection, lanes)
    lanes = [lane for lane in lanes if _room(lane, seen) >= 1]
    allowances = _allowances_of(connection, lanes, lock=True)
    by_urgency: dict[tuple[int, int], list[LimitedLane]] = defaultdict(list)
    for lane in lanes:
        by_urgency[urgency(lane.queue, lane.priority)].append(lane)
    admitted: list[Any] = []
    paused: list[str] = []
    for level in sorted(by_urgency):
        rows = list(_longest_waiting(connection, by_urgency[level], allowances, BATCH - len(admitted)))
        paused += [row.id for row in rows if row.is_paused]
        admitted += [row for row in _in_turn([row for row in rows if not row.is_paused]) if _take(_limits_of(row, allowances))]
    wait_behind(connection, WaitingFor.PAUSE, paused)
    for (kind, name), allowance in allowances.items():
        if allowance.taken and allowance.per_minute is not None:
            spent = {"tokens": allowance.tokens - allowance.taken, "refilled_at": allowance.now}
            connection.execute(update(Limit).where(Limit.kind == kind, Limit.name == name).values(**spent))
    return let_through(connection, admitted, window), bool(paused) or len(admitted) >= BATCH


def sweep(connection: Connection) -> bool:
    """Takes back what limits have too much of on its way, a batch of a few of them. False when there is no limit left to be swept."""
    unswept = _limits(is_unswept(Limit)).order_by(Limit.swept_at.is_not(None)).limit(PAGE)
    found = _allowances(connection, connection.execute(unswept.with_for_update(skip_locked=True)).all())
    crowded = [key for key, allowance in found.items() if allowance.excess]
    turned = [key for key in crowded[:FEW] if _take_back(connection, *key, found[key].excess)]
    quiet = [key for key in found if key not in turned and key not in crowded[FEW:]]
    if quiet:
        connection.execute(update(Limit).where(tuple_(Limit.kind, Limit.name).in_(quiet)).values(swept_at=db_now()))
    return bool(found)


def take_back(connection: Connection, kind: str, name: str) -> None:
    """A limit that is new or lower: a batch of what waits for a worker, the newest first, waits to be admitted as far as it is too
    much. What is STARTED goes on."""
    rows = connection.execute(_limits(and_(Limit.kind == kind, Limit.name == name)).with_for_update()).all()
    _take_back(connection, kind, name, _allowances(connection, rows)[kind, name].excess)


def _take_back(connection: Connection, kind: str, name: str, excess: int) -> bool:
    taken: list[str] = []
    for place in _queued(connection, kind):
        scope = TaskRun.tenant_id == name if kind == "tenant" else TaskRun.mail_host == name
        newest = select(TaskRun.id).where(place, scope).order_by(TaskRun.id.desc()).limit(min(BATCH, excess) - len(taken))
        taken += connection.scalars(newest.with_for_update(skip_locked=True)).all()
    wait_behind(connection, WaitingFor.LIMIT, taken)
    return bool(taken)


def _allowances_of(connection: Connection, lanes: Sequence[LimitedLane], *, lock: bool = False) -> dict[LimitKey, Allowance]:
    """What the limits of these lanes allow now; locked until the end of the transaction, so that nobody else admits meanwhile."""
    wanted = sorted({key for lane in lanes for key in lane.limits})
    is_wanted = or_(*[and_(Limit.kind == kind, Limit.name.in_([name for of, name in wanted if of == kind])) for kind in ("host", "tenant")])
    statement = _limits(is_wanted).order_by(Limit.kind, Limit.name)
    return _allowances(connection, connection.execute(statement.with_for_update() if lock else statement).all())


def _limits(condition: ColumnElement[bool]) -> Select[Any]:
    columns: list[Any] = [Limit.kind, Limit.name, Limit.concurrency, Limit.per_minute, Limit.tokens, Limit.refilled_at]
    return select(*columns, db_now().label("now")).where(condition)


def _allowances(connection: Connection, rows: Sequence[Any]) -> dict[LimitKey, Allowance]:
    found = {}
    for row in rows:
        now = max(row.now, row.refilled_at)  # it may have been spent from while this statement waited for the lock
        per_second = (row.per_minute or 0) / 60
        tokens = min(max(1.0, per_second), row.tokens + per_second * (now - row.refilled_at).total_seconds())
        found[row.kind, row.name] = Allowance(row.concurrency, row.per_minute, tokens, now)
    for kind, name, is_queued, number in _under_way(connection, list(found)):
        if is_queued:
            found[kind, name].queued += number
        else:
            found[kind, name].running += number
    return found


def _under_way(connection: Connection, keys: Sequence[LimitKey]) -> Sequence[Any]:
    """Kind, name, whether queued, how many. One statement: a run that starts meanwhile is counted once."""
    parts: list[Select[Any]] = []
    # The names are compared as text where the index is over something else, so that it is the one that is used.
    elsewhere = (text("state = 'STARTED'"), and_(text("is_suspect"), NOT_ON_A_BROKER, TaskRun.waiting_for.is_not(None)))
    for kind, as_text, column in (("tenant", TENANT_NAME, TaskRun.tenant_id), ("host", TaskRun.mail_host, TaskRun.mail_host)):
        names = [name for of, name in keys if of == kind]
        places = [(place, as_text, False) for place in elsewhere] + [(place, column, True) for place in _queued(connection, kind)]
        for place, compared, is_queued in places if names else []:
            counted: list[Any] = [literal(kind), as_text, literal(int(is_queued)), func.count()]
            parts.append(select(*counted).where(place, compared.in_(names)).group_by(as_text))
    return connection.execute(union_all(*parts)).all() if parts else []


def _queued(connection: Connection, kind: str) -> list[ColumnElement[bool]]:
    """Where a tenant's or a host's runs are on their way to a worker, in the terms of the index that finds them."""
    if kind == "host":
        return [and_(text(QUEUED_BY_HOST))]
    queues = TaskRun.queue.in_(queues_in_use(connection))
    return [and_(text(HELD), queues), and_(text(PUBLISHED), queues)]


def _longest_waiting(
    connection: Connection, lanes: Sequence[LimitedLane], allowances: dict[LimitKey, Allowance], limit: int
) -> Iterator[Any]:
    """The next runs of the lanes that are open, locked: no more of a lane than may be admitted, and its share of `limit`."""
    rooms = {lane: _room(lane, allowances) for lane in lanes}
    lanes = [lane for lane in lanes if rooms[lane] > 0]
    share = math.ceil(limit / len(lanes)) if lanes else 0
    for lane in lanes:
        has_host = text(LIMITED) if lane.mail_host is None else and_(text(LIMITED_BY_HOST), TaskRun.mail_host == lane.mail_host)
        is_in_time = or_(TaskRun.expires_at.is_(None), TaskRun.expires_at > db_now())
        yield from connection.execute(
            select(*MESSAGE_COLUMNS, TaskRun.mail_host, is_paused().label("is_paused"))
            .where(has_host, TaskRun.tenant_id == lane.tenant_id, TaskRun.queue == lane.queue, TaskRun.priority == lane.priority)
            .where(is_in_time)
            .order_by(TaskRun.id)
            .limit(int(min(rooms[lane], share)))
            .with_for_update(skip_locked=True)
        )


def _room(lane: LimitedLane, allowances: dict[LimitKey, Allowance]) -> float:
    return min([allowances[key].room for key in lane.limits if key in allowances], default=math.inf)


def _in_turn(rows: Sequence[Any]) -> Iterator[Any]:
    """One of each tenant, then the next of each; whose turn is first is drawn, for there may be room for one only."""
    by_tenant: dict[str, list[Any]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: str(row.id)):
        by_tenant[row.tenant_id].append(row)
    turns = list(by_tenant.values())
    random.shuffle(turns)
    for turn in zip_longest(*turns):
        yield from [row for row in turn if row is not None]


def _limits_of(row: Any, allowances: dict[LimitKey, Allowance]) -> list[Allowance]:
    lane = LimitedLane(row.tenant_id, row.mail_host, row.queue, row.priority)
    return [allowances[key] for key in lane.limits if key in allowances]


def _take(allowances: Sequence[Allowance]) -> bool:
    """A place of each, or of none."""
    has_room = all(allowance.room >= 1 for allowance in allowances)
    for allowance in allowances if has_room else []:
        allowance.taken += 1
    return has_room
