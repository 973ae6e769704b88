"""The queues: their policies, how many runs are in which state, and emptying one. Pausing them is in routes/controls.py."""

from __future__ import annotations

from collections.abc import Collection

from fastapi import APIRouter

from api.auth import Acting, ActingNow
from api.bodies import JsonRoute
from api.filters import RevokeMany, Sweep
from api.routes.sweeps import Swept, revoke_tasks
from api.shapes import Shape
from brokers.queues import POLICIES, policy_of
from core.errors import NotFoundError
from runs.control import QueueStats, get_queue_stats
from storage.repositories.controls import Controls
from storage.states import State

router = APIRouter(route_class=JsonRoute, tags=["operations"])


class QueueView(Shape):
    """A queue. `oldestWaitSeconds` is the wait of its longest waiting run that is due.

    `waiting`, `running` and `failed` (dead letters) are counted; where `hasMore`, at least so many wait. `succeeded` and `revoked` are
    of the newest `lookedAt` runs of all queues.
    """

    name: str
    priority: int
    is_paused: bool
    waiting: int
    has_more: bool
    retrying: int
    running: int
    succeeded: int
    failed: int
    revoked: int
    looked_at: int
    oldest_wait_seconds: float | None
    soft_limit: float
    hard_limit: float
    retries: int
    base_backoff: float

    @classmethod
    def of(cls, stats: QueueStats, paused: Collection[str] = ()) -> QueueView:
        """The numbers and the policy together."""
        policy = policy_of(stats.name)
        return cls(
            name=stats.name,
            priority=stats.priority,
            is_paused=stats.name in paused,
            waiting=stats.waiting,
            has_more=stats.has_more,
            retrying=stats.counts.get(State.RETRY, 0),
            running=stats.counts.get(State.STARTED, 0),
            succeeded=stats.recent.get(State.SUCCESS, 0),
            failed=stats.counts.get(State.FAILURE, 0),
            revoked=stats.recent.get(State.REVOKED, 0),
            looked_at=stats.looked_at,
            oldest_wait_seconds=stats.oldest_seconds,
            soft_limit=policy.soft_limit,
            hard_limit=policy.hard_limit,
            retries=policy.retries,
            base_backoff=policy.base_backoff,
        )


@router.get("/api/queues")
def list_queues(acting: ActingNow) -> dict[str, list[QueueView]]:
    """All queues, the most urgent first; a tenant's key counts the tenant's runs."""
    paused = paused_queues(acting)
    with acting.session() as session:
        return {"items": [QueueView.of(stats, paused) for stats in get_queue_stats(session)]}


@router.post("/api/queues/{queue}/purge")
def purge_queue(queue: str, body: Sweep, acting: ActingNow) -> Swept:
    """Revoke every run that waits in a queue: due, delayed, retrying, limited or paused. What runs goes on."""
    if queue not in POLICIES:
        raise NotFoundError(f"There is no queue named {queue[:80]!r}. There are: {', '.join(POLICIES)}.")
    return revoke_tasks(RevokeMany(queue=queue, state="waiting", dry_run=body.dry_run, expect=body.expect), acting)


def paused_queues(acting: Acting) -> set[str]:
    """Everybody may know that a queue is paused: their runs say that they wait for it."""
    with acting.system_session() as session:
        return {pause.name for pause in Controls(session).pauses() if pause.kind == "queue"}
