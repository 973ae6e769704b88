"""The middleware of a worker, written once and in order.

dramatiq calls `before_*` in this order and `after_*` in the reverse, so the first is the outermost. One that must stop a run
raises SkipMessage with the outcome set: any other exception of a `before_*` hook would be logged and the run started anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runs.middleware.outcomes import Outcomes
from runs.middleware.periodic import Periodic
from runs.middleware.request_context import RequestContext
from runs.middleware.results import results
from runs.middleware.tenant import TenantBinding
from runs.middleware.worker_process import WorkerProcess

if TYPE_CHECKING:
    from dramatiq import Middleware


def middleware() -> list[Middleware]:
    """A fresh list for one broker."""
    return [
        WorkerProcess(),  # boots and stops the recorder; sees no single run
        results(),  # keeps dramatiq from warning about every returned value; stores nothing
        Periodic(),  # only declares the option `periodic`
        RequestContext(),  # outermost of a run: every line below carries its ids, the line about its outcome too
        Outcomes(),  # outside the tenant, so that a refused tenant still gets an outcome
        TenantBinding(),  # innermost: nothing but the actor runs as the tenant
    ]
