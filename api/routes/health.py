"""Probes. Liveness looks at nothing outside the process: a broker's outage must not restart what would survive it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from api.auth import ActingNow
from api.bodies import JsonRoute
from api.health import Health, Report
from api.version import version

router = APIRouter(tags=["health"])
private = APIRouter(route_class=JsonRoute, tags=["health"])


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
    is_ready = report.status != "down" and not request.app.state.stopping.is_set()
    response.status_code = 200 if is_ready else 503
    return {"status": "ok" if is_ready else "down"} | {name: facts["status"] for name, facts in report.components.items()}


@private.get("/health/detailed")
def detailed(request: Request, acting: ActingNow) -> dict[str, Any]:  # noqa: ARG001  (any good key)
    """Every component and how long it took to answer."""
    report: Report = _health(request).detailed()
    return {"status": report.status, "checkedAt": report.checked_at, "components": report.components}


def _health(request: Request) -> Health:
    health: Health = request.app.state.health
    return health
