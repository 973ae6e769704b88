"""Chains: runs of which each starts once the one before it has succeeded."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from api.auth import ActingNow
from api.group_shapes import STEPS, AcceptedChain, ChainView, GroupRoute, body_of, chain_of, started
from api.routes.tasks import IdempotencyKey, RevokeRequest, unquoted
from runs.groups import get_chain, revoke_group, start_chain

router = APIRouter(route_class=GroupRoute, tags=["groups"])


@router.post("/api/chains", status_code=202, openapi_extra=body_of(steps=STEPS))
def create_chain(request: Request, acting: ActingNow, response: Response, idempotency_key: IdempotencyKey = None) -> AcceptedChain:
    """Record a chain: all `steps` or none. The first starts at once, or once the run `after` has succeeded."""
    asked = chain_of(request)
    (steps,) = asked.members
    made = started(acting, asked, partial(start_chain, parts=steps, after=asked.after, idempotency_key=unquoted(idempotency_key)))
    answer = AcceptedChain.of(made)
    response.headers["Location"] = answer.href or answer.items[-1].href
    return answer


@router.get("/api/chains/{chain_id}")
def show_chain(chain_id: str, acting: ActingNow) -> ChainView:
    """Its steps in their order. A first step that was live before, under its unique key, is another's and not among them."""
    with acting.session() as session:
        return ChainView.of(chain_id, get_chain(session, chain_id))


@router.post("/api/chains/{chain_id}/revoke")
def end_chain(chain_id: str, acting: ActingNow, body: RevokeRequest | None = None) -> ChainView:
    """End a chain as a whole: the steps that wait at once, one that runs at its next checkpoint, with `terminate` by force."""
    with acting.session() as session:
        get_chain(session, chain_id)
        revoke_group(session, chain_id, terminate=body is not None and body.terminate, keeps_callback=True)
        return ChainView.of(chain_id, get_chain(session, chain_id))
