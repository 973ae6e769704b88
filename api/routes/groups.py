"""Groups: many runs at once and one that starts when all of them have ended."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from api.auth import ActingNow
from api.group_shapes import MEMBERS, TASK, AcceptedGroup, GroupRoute, GroupView, RevokedGroup, body_of, group_of, started
from api.routes.tasks import IdempotencyKey, unquoted
from api.shapes import RunPageView, RunRow
from runs.control import parse_states
from runs.groups import get_group, list_members, revoke_group, start_group

PATH = "/api/groups"
LARGEST = 8 * 2**20
router = APIRouter(route_class=GroupRoute, tags=["groups"])


class RevokeGroup(BaseModel):
    """`terminate`: those that run by force. `keepCallback`: it starts, and can tell what became of the members."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)

    terminate: bool = False
    keep_callback: bool = False


@router.post(PATH, status_code=202, openapi_extra=body_of(members=MEMBERS, then=TASK))
def create_group(request: Request, acting: ActingNow, response: Response, idempotency_key: IdempotencyKey = None) -> AcceptedGroup:
    """Record a group: all `members` (a task, or a list of tasks that is a chain) and the callback `then`, or nothing.

    With `after` the members start once that run has succeeded.
    """
    asked = group_of(request)
    assert asked.then is not None
    key = unquoted(idempotency_key)
    made = started(acting, asked, partial(start_group, members=asked.members, then=asked.then, after=asked.after, idempotency_key=key))
    answer = AcceptedGroup.of(made, [isinstance(each, list) for each in request.state.body["members"]])
    response.headers["Location"] = answer.href
    return answer


@router.get(PATH + "/{group_id}")
def show_group(group_id: str, acting: ActingNow) -> GroupView:
    """How far its members are, and its callback."""
    with acting.session() as session:
        return GroupView.of(get_group(session, group_id))


@router.get(PATH + "/{group_id}/members")
def list_group(
    group_id: str,
    acting: ActingNow,
    *,
    state: Annotated[str | None, Query(max_length=200)] = None,
    cursor: Annotated[str | None, Query(max_length=300)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> RunPageView:
    """Its members in the order given. `state` takes several, separated by commas."""
    with acting.session() as session:
        page = list_members(session, group_id, parse_states(state), cursor=cursor, limit=limit)
    return RunPageView(items=[RunRow.of(run) for run in page.runs], next_cursor=page.next_cursor)


@router.post(PATH + "/{group_id}/revoke")
def end_group(group_id: str, acting: ActingNow, body: RevokeGroup | None = None) -> RevokedGroup:
    """End a group as a whole: what waits at once, what runs at its next checkpoint or by force, the callback first of all."""
    wish = body or RevokeGroup()
    with acting.session() as session:
        done = revoke_group(session, group_id, terminate=wish.terminate, keeps_callback=wish.keep_callback)
        return RevokedGroup.after(get_group(session, group_id), done.revoked, done.marked)
