"""Probes. Liveness looks at nothing outside the process: a broker's outage must not restart what would survive it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from api.auth import ActingNow
from api.bodies import JsonRoute
from api.health import Health, Report
from api.version import version
from core.errors import UnavailableError
from storage.states import HealthStatus


class WithoutDatabase(JsonRoute):
    """Where nobody's key can be checked, the answer is what `/health/ready` tells anybody, in this route's shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI's, but for a database that is away."""
        answer = super().get_route_handler()

        async def answered(request: Request) -> Response:
            try:
                return await answer(request)
            except UnavailableError:
                report = await run_in_threadpool(_health(request).ready)
                return JSONResponse(_document(report, status=HealthStatus.UNHEALTHY), 503)

        return answered


router = APIRouter(tags=["health"])
private = APIRouter(route_class=WithoutDatabase, tags=["health"])
WORDS = {HealthStatus.HEALTHY: "ok", HealthStatus.DEGRADED: "ok", HealthStatus.UNHEALTHY: "down"}


@router.get("/health")
def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok", "version": version()}


@router.get("/health/live")
def live() -> dict[str, str]:
    """The process answers; for liveness probes."""
    return {"status": "ok"}


@router.get("/health/ready")
def ready(request: Request, response: Response) -> dict[str, str]:
    """Whether requests can be taken: the database and a broker can be reached, and the process is not about to stop."""
    report = _health(request).ready()
    is_ready = report.status != HealthStatus.UNHEALTHY and not request.app.state.stopping.is_set()
    response.status_code = 200 if is_ready else 503
    components = {name: WORDS[facts["status"]] if "configured" not in facts else "off" for name, facts in report.components.items()}
    return {"status": "ok" if is_ready else "down"} | components


@private.get("/health/detailed")
def detailed(request: Request, response: Response, acting: ActingNow) -> dict[str, Any]:
    """Every component as the last check found it: its status, latency, and reason where it is not healthy."""
    report = _health(request).detailed(acting.identity)
    response.status_code = 503 if report.components["database"]["status"] == HealthStatus.UNHEALTHY else 200
    return _document(report)


def _document(report: Report, status: HealthStatus | None = None) -> dict[str, Any]:
    facts = {"checkedAt": report.checked_at, "ageSeconds": report.age_seconds, "reason": report.reason}
    return {"status": status or report.status, **facts, "components": report.components}


def _health(request: Request) -> Health:
    health: Health = request.app.state.health
    return health
