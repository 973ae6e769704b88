"""Many runs at once: revoke by filter, dead letters replayed and purged. The count first, then the deed for exactly that count."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.auth import ActingNow
from api.bodies import JsonRoute
from api.filters import DeadLetters, RevokeMany, tenant_id_of
from api.shapes import RunPageView, RunRow, Shape
from runs.control import list_runs
from runs.sweep import count_dead, count_live, purge_dead_letters, replay_dead_letters, revoke_many
from storage.repositories.runs import RunFilter

router = APIRouter(route_class=JsonRoute, tags=["tasks"])
Text = Annotated[str | None, Query(max_length=200)]


class Swept(Shape):
    """`count`: how many runs the filter met. Of the deed: how many were revoked at once, marked (they run and will be), replayed,
    skipped (another run holds their unique key), purged."""

    dry_run: bool
    count: int
    revoked: int = 0
    marked: int = 0
    replayed: int = 0
    skipped: int = 0
    purged: int = 0


@router.post("/api/tasks/revoke")
def revoke_tasks(body: RevokeMany, acting: ActingNow) -> Swept:
    """End runs that wait and mark those that run. 409 with the new `count` when there are not as many as `expect` says."""
    with acting.session() as session:
        narrowed = body.narrowed(session, acting)
        if body.dry_run:
            return Swept(dry_run=True, count=count_live(session, narrowed))
        done = revoke_many(session, narrowed, expect=body.confirmed, terminate=body.terminate)
    return Swept(dry_run=False, count=body.confirmed, revoked=done.revoked, marked=done.marked)


@router.get("/api/dead-letters")
def list_dead_letters(
    acting: ActingNow,
    *,
    queue: Text = None,
    task: Text = None,
    reason: Text = None,
    tenant: Text = None,
    cursor: Annotated[str | None, Query(max_length=300)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> RunPageView:
    """Failed runs that nobody has replayed or purged, the newest first."""
    with acting.session() as session:
        tenant_id = tenant_id_of(session, acting, tenant)
        narrowed = RunFilter((), queue or None, task or None, tenant_id, dead_letters_only=True, reason=reason or None)
        page = list_runs(session, narrowed, cursor=cursor, limit=limit)
    return RunPageView(items=[RunRow.of(run) for run in page.runs], next_cursor=page.next_cursor)


@router.post("/api/dead-letters/replay")
def replay_letters(body: DeadLetters, acting: ActingNow) -> Swept:
    """Give dead letters a full set of attempts, by filter or ids."""
    with acting.session() as session:
        narrowed = body.narrowed(session, acting)
        if body.dry_run:
            return Swept(dry_run=True, count=count_dead(session, narrowed))
        done = replay_dead_letters(session, narrowed, expect=body.confirmed)
    return Swept(dry_run=False, count=body.confirmed, replayed=done.replayed, skipped=done.skipped)


@router.post("/api/dead-letters/purge")
def purge_letters(body: DeadLetters, acting: ActingNow) -> Swept:
    """Take dead letters off the list; the history keeps them as failed."""
    with acting.session() as session:
        narrowed = body.narrowed(session, acting)
        if body.dry_run:
            return Swept(dry_run=True, count=count_dead(session, narrowed))
        purged = purge_dead_letters(session, narrowed, expect=body.confirmed)
    return Swept(dry_run=False, count=body.confirmed, purged=purged)
