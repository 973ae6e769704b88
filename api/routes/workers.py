"""The worker processes that live."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter

from api.auth import ActingNow
from api.bodies import JsonRoute
from api.shapes import Shape
from runs.control import WorkerInfo, get_workers

router = APIRouter(route_class=JsonRoute, tags=["operations"])


class WorkerView(Shape):
    """A worker process. `busyThreads` counts the runs the key may see."""

    id: str
    host: str
    pid: int
    threads: int
    busy_threads: int
    queues: list[str]
    state: str
    started_at: datetime
    heartbeat_at: datetime

    @classmethod
    def of(cls, info: WorkerInfo) -> WorkerView:
        """As it last said itself."""
        fields = {name: getattr(info.worker, name) for name in cls.model_fields if name != "busy_threads"}
        return cls(**fields, busy_threads=info.busy_threads)


@router.get("/api/workers")
def list_workers(acting: ActingNow) -> dict[str, list[WorkerView]]:
    """Those that were heard of in the last seconds."""
    with acting.session() as session:
        return {"items": [WorkerView.of(info) for info in get_workers(session)]}
