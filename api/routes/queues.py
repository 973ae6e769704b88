"""The queues: their policies and how many runs are in which state."""

from __future__ import annotations

from fastapi import APIRouter

from api.auth import ActingNow
from api.bodies import JsonRoute
from api.shapes import Shape
from brokers.queues import policy_of
from runs.control import QueueStats, get_queue_stats
from storage.states import State

router = APIRouter(route_class=JsonRoute, tags=["operations"])


class QueueView(Shape):
    """A queue. `oldestWaitSeconds` is the wait of its longest waiting run that is due."""

    name: str
    priority: int
    waiting: int
    running: int
    succeeded: int
    failed: int
    revoked: int
    oldest_wait_seconds: float | None
    soft_limit: float
    hard_limit: float
    retries: int
    base_backoff: float

    @classmethod
    def of(cls, stats: QueueStats) -> QueueView:
        """The numbers and the policy together."""
        policy = policy_of(stats.name)
        return cls(
            name=stats.name,
            priority=stats.priority,
            waiting=stats.waiting,
            running=stats.counts.get(State.STARTED, 0),
            succeeded=stats.counts.get(State.SUCCESS, 0),
            failed=stats.counts.get(State.FAILURE, 0),
            revoked=stats.counts.get(State.REVOKED, 0),
            oldest_wait_seconds=stats.oldest_seconds,
            soft_limit=policy.soft_limit,
            hard_limit=policy.hard_limit,
            retries=policy.retries,
            base_backoff=policy.base_backoff,
        )


@router.get("/api/queues")
def list_queues(acting: ActingNow) -> dict[str, list[QueueView]]:
    """All queues, the most urgent first; a tenant's key counts the tenant's runs."""
    with acting.session() as session:
        return {"items": [QueueView.of(stats) for stats in get_queue_stats(session)]}
