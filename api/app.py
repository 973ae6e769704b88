"""The application: routes, pages and what surrounds them, put together from values.

The tasks must have been declared before (`import actors`): the routes find them in dramatiq's broker.
"""

from __future__ import annotations

import threading

from fastapi import FastAPI
from sqlalchemy import Engine

from api import openapi, problems
from api.auth import FailedLogins
from api.callers import KnownCallers
from api.context import RequestContext
from api.dashboard import pages
from api.downloads import FetchSource
from api.health import Health
from api.limits import BodyLimit
from api.routes import (
    attachments,
    batches,
    chains,
    clients,
    controls,
    dkim_keys,
    email,
    events,
    groups,
    health,
    mail_settings,
    mail_templates,
    outbound,
    queues,
    schedules,
    spam,
    suppressions,
    sweeps,
    tasks,
    webhooks,
    workers,
)
from api.version import version
from core.settings import Settings, get_settings
from storage.engine import get_engine, make_engine

LARGEST_BODY = 2**20
LARGEST_BODIES = {attachments.PATH: attachments.LARGEST + attachments.ENVELOPE, batches.PATH: batches.LARGEST, groups.PATH: groups.LARGEST}
ROUTERS = (
    health.router,
    health.private,
    batches.router,
    sweeps.router,
    events.router,
    tasks.router,
    groups.router,
    chains.router,
    clients.router,
    attachments.router,
    email.router,
    outbound.router,
    mail_templates.router,
    mail_settings.router,
    suppressions.router,
    spam.router,
    dkim_keys.router,
    queues.router,
    controls.router,
    workers.router,
    schedules.router,
    webhooks.router,
)


def create_app(settings: Settings, engine: Engine | None = None, *, fetch_source: FetchSource | None = None) -> FastAPI:
    """The HTTP API and the dashboard. Opens no connection before the first request. `fetch_source` asks a mail server for what was
    not kept."""
    app = FastAPI(
        title="Mailroom",
        version=version(),
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.engine = engine or _engine_of(settings)
    app.state.failed_logins = FailedLogins()
    app.state.known_callers = KnownCallers()
    app.state.health = Health(settings, app.state.engine)
    app.state.fetch_source = fetch_source
    app.state.stopping = threading.Event()
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]  # FastAPI's documented way
    problems.install(app)
    pages.install(app)
    app.add_middleware(BodyLimit, default=LARGEST_BODY, limits=LARGEST_BODIES)
    app.add_middleware(RequestContext)
    return app


def _engine_of(settings: Settings) -> Engine:
    """The process' own engine, unless the application is made for another database than the environment names."""
    if settings.database == get_settings().database:
        return get_engine()
    return make_engine(settings.database, pool_size=settings.db_pool_size, max_overflow=settings.db_max_overflow)
