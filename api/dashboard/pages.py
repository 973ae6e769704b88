"""The pages. Each renders its regions once; the stream keeps them current."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy.orm import Session
from starlette.staticfiles import StaticFiles

from api.auth import refused
from api.dashboard import letters, live, messages, regions, webhooks
from api.dashboard.sessions import FromHere, FromLogin, PageRoute, Viewer, ViewerNow, close_session, login_token, open_session, resume
from api.dashboard.templating import page, render, stream_of, tenants_of
from api.problems import Problem
from api.routes.controls import pause_queue, resume_queue
from api.routes.schedules import pause_schedule, resume_schedule, run_schedule
from brokers.queues import Queue
from runs.control import replay, revoke
from runs.groups import revoke_group
from runs.registry import task_names
from runs.sweep import count_dead, purge_dead_letters, replay_dead_letters

public = APIRouter(include_in_schema=False)
pages = APIRouter(route_class=PageRoute, include_in_schema=False)
Queued = Annotated[str, Form(max_length=100)]
Expected = Annotated[int, Form(ge=0)]
Narrowing = Annotated[str, Form(max_length=200)]
STATES = ("pending", "started", "retry", "success", "failure", "revoked")


def _chosen(
    queue: Narrowing = "", task: Narrowing = "", reason: Narrowing = "", tenant: Narrowing = "", group: Narrowing = ""
) -> regions.Filters:
    return regions.Filters(queue=queue, task=task, reason=reason, tenant=tenant, group=group)


Chosen = Annotated[regions.Filters, Depends(_chosen)]


def install(app: FastAPI) -> None:
    """Adds the dashboard to the application."""
    app.state.looks = {}
    app.state.error_page = error_page
    for router in (public, pages, letters.router, messages.router, webhooks.router, live.router):
        app.include_router(router)
    app.mount("/static", _Static(directory=Path(__file__).parent / "static"), name="static")


class _Static(StaticFiles):
    """Kept by browsers, but asked about: a new release shows at once."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


@public.get("/login")
def login_page(request: Request) -> Response:
    """The form; whoever is logged in goes on."""
    target = _inside(request.query_params.get("next", ""))
    return RedirectResponse(target, 303) if resume(request) is not None else _login(request, target)


@public.post("/login", dependencies=[FromLogin])
def login(request: Request, key: Annotated[str, Form(max_length=500)] = "", target: Annotated[str, Form(alias="next")] = "/") -> Response:
    """Opens a session with a key. Wrong ones are counted as everywhere."""
    response = RedirectResponse(_inside(target), 303)
    if open_session(request, response, key):
        return response
    problem: Problem = refused(request)
    answer = _login(request, _inside(target), problem.detail, problem.status_code)
    answer.headers.update({name: value for name, value in (problem.headers or {}).items() if name == "Retry-After"})
    return answer


@pages.post("/logout", dependencies=[FromHere])
def logout(viewer: ViewerNow) -> Response:
    """Closes the session."""
    response = RedirectResponse("/login", 303)
    close_session(viewer, response)
    return response


@pages.get("/")
def overview(request: Request, viewer: ViewerNow) -> Response:
    """Counts, queues and runs."""
    filters = regions.Filters.of(request.query_params)
    parts = regions.overview(viewer, request.query_params)
    choices = {"states": STATES, "queue_names": [str(queue) for queue in Queue], "tasks": task_names(), "tenants": tenants_of(viewer)}
    stream = "" if filters.cursor else stream_of("overview", filters.query())
    return page("overview.html", viewer, stream, filters=filters, **parts, **choices)


@pages.get("/runs/{run_id}")
def run(run_id: str, viewer: ViewerNow) -> Response:
    """One run."""
    return page("run.html", viewer, stream_of("run", f"id={run_id}"), run_id=run_id, **regions.run(viewer, {"id": run_id}))


@pages.post("/runs/{run_id}/revoke", dependencies=[FromHere])
def revoke_run(run_id: str, viewer: ViewerNow) -> Response:
    """Ends a waiting run; a running one ends at its next checkpoint."""
    return _changed(viewer, partial(revoke, run_id=run_id), f"/runs/{run_id}")


@pages.post("/runs/{run_id}/terminate", dependencies=[FromHere])
def terminate_run(run_id: str, viewer: ViewerNow) -> Response:
    """Ends a running run by force."""
    return _changed(viewer, partial(revoke, run_id=run_id, terminate=True), f"/runs/{run_id}")


@pages.post("/runs/{run_id}/replay", dependencies=[FromHere])
def replay_run(run_id: str, viewer: ViewerNow) -> Response:
    """Gives a failed or revoked run a full set of attempts."""
    return _changed(viewer, partial(replay, run_id=run_id), f"/runs/{run_id}")


@pages.post("/groups/revoke", dependencies=[FromHere])
def end_group(viewer: ViewerNow, group: Annotated[str, Form(max_length=36)]) -> Response:
    """Ends a group or a chain as a whole."""
    return _changed(viewer, partial(revoke_group, group_id=group), f"/?group={group}")


@pages.post("/queues/pause", dependencies=[FromHere])
def pause(viewer: ViewerNow, queue: Queued) -> Response:
    """Starts nothing more of a queue."""
    pause_queue(queue, viewer.acting)
    return RedirectResponse("/", 303)


@pages.post("/queues/resume", dependencies=[FromHere])
def resume_paused(viewer: ViewerNow, queue: Queued) -> Response:
    """Starts a queue's runs again."""
    resume_queue(queue, viewer.acting)
    return RedirectResponse("/", 303)


@pages.get("/dead-letters")
def dead_letters(request: Request, viewer: ViewerNow) -> Response:
    """What failed, why, and how many there are to replay or purge."""
    filters = regions.Filters.of(request.query_params)
    with viewer.looking_at(filters.tenant).acting.session() as session:
        count = count_dead(session, filters.for_letters())
    choices = {"queue_names": [str(queue) for queue in Queue], "tasks": task_names(), "tenants": tenants_of(viewer)}
    stream = "" if filters.cursor else stream_of("letters", filters.query())
    return page("letters.html", viewer, stream, filters=filters, count=count, **regions.letters(viewer, request.query_params), **choices)


@pages.post("/dead-letters/replay-one", dependencies=[FromHere])
def replay_letter(viewer: ViewerNow, run_id: Annotated[str, Form(max_length=36)]) -> Response:
    """Gives one dead letter a full set of attempts."""
    return _changed(viewer, partial(replay, run_id=run_id), "/dead-letters")


@pages.post("/dead-letters/{action}", dependencies=[FromHere])
def sweep_letters(action: Literal["replay", "purge"], viewer: ViewerNow, expect: Expected, chosen: Chosen) -> Response:
    """Replays or purges as many as the page said there were."""
    change = {"replay": replay_dead_letters, "purge": purge_dead_letters}[action]
    with viewer.looking_at(chosen.tenant).acting.session() as session:
        change(session, chosen.for_letters(), expect=expect)
    return RedirectResponse(f"/dead-letters?{chosen.query()}", 303)


@pages.get("/mail")
def mail(request: Request, viewer: ViewerNow) -> Response:
    """The mail accounts."""
    tenant = request.query_params.get("tenant", "").strip()
    parts = regions.mail(viewer, request.query_params)
    filters = regions.Filters(tenant=tenant)
    return page("mail.html", viewer, stream_of("mail", filters.query()), filters=filters, tenants=tenants_of(viewer), **parts)


@pages.get("/schedules")
def schedules(request: Request, viewer: ViewerNow) -> Response:
    """When what fires."""
    return page("schedules.html", viewer, stream_of("schedules", ""), **regions.schedules(viewer, request.query_params))


@pages.post("/schedules/{action}", dependencies=[FromHere])
def change_schedule(action: Literal["run", "pause", "resume"], viewer: ViewerNow, schedule: Narrowing, response: Response) -> Response:
    """Starts one now, or fires it no more until it is resumed."""
    if action == "run":
        return RedirectResponse(f"/runs/{run_schedule(schedule, viewer.acting, response).task_id}", 303)
    (pause_schedule if action == "pause" else resume_schedule)(schedule, viewer.acting)
    return RedirectResponse("/schedules", 303)


@pages.get("/status")
def health(request: Request, viewer: ViewerNow) -> Response:
    """How everything is that Mailroom stands on."""
    return page("health.html", viewer, stream_of("health", ""), **regions.health(viewer, request.query_params))


def _changed(viewer: Viewer, change: Callable[[Session], object], target: str) -> Response:
    with viewer.acting.session() as session:
        change(session)
    return RedirectResponse(target, 303)


def error_page(request: Request, status: int, detail: str) -> Response:
    """For people, what a problem document is for programs."""
    facts = {"status": status, "detail": detail, "request_id": request.state.request_id}
    return HTMLResponse(render("error.html", **facts, viewer=None, stream=""), status)


def _login(request: Request, target: str, error: str = "", status: int = 200) -> Response:
    def with_token(token: str) -> Response:
        return HTMLResponse(render("login.html", csrf_token=token, target=target, error=error, viewer=None, stream=""), status)

    return login_token(request, with_token)


def _inside(target: str) -> str:
    """Only ever to one of our own pages: `//host` and `/\\host` lead elsewhere."""
    is_ours = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if is_ours else "/"
