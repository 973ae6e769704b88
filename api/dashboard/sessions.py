"""Who looks at a page: a session cookie opened with an API key. Every form carries the session's token and must come from here."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated
from urllib.parse import quote, urlsplit

from fastapi import Depends, Form, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from api.auth import Acting, Handler, narrow
from api.problems import Problem
from storage.engine import session_scope
from storage.repositories.tenants import SESSION_HOURS, ApiKeys

COOKIE = "mailroom_session"
LOGIN_COOKIE = "mailroom_login"


@dataclass(frozen=True, slots=True)
class Viewer:
    """A person who is logged in."""

    acting: Acting
    csrf_token: str
    token: str

    @property
    def is_admin(self) -> bool:
        """Whether every tenant is shown."""
        return self.acting.caller.is_admin

    @property
    def who(self) -> str:
        """What the pages call them."""
        return "All tenants" if self.is_admin else self.acting.caller.tenant_name

    def looking_at(self, tenant: str | None) -> Viewer:
        """The same person acting for one tenant. Raises TenantError for one the key may not name."""
        if not tenant:
            return self
        with self.acting.system_session() as session:
            return replace(self, acting=replace(self.acting, identity=narrow(session, self.acting.identity, tenant, None)))


class PageRoute(APIRoute):
    """A page that sends whoever is not logged in to the login."""

    def get_route_handler(self) -> Handler:
        """The session first, then everything else."""
        answer = super().get_route_handler()

        async def with_viewer(request: Request) -> Response:
            viewer = await run_in_threadpool(resume, request)
            if viewer is None:
                return self.without_session(request)
            request.state.viewer = viewer
            request.state.tenant_id = viewer.acting.identity.tenant_id
            return await answer(request)

        return with_viewer

    def without_session(self, request: Request) -> Response:
        """To the login, and from there back here."""
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse("/login" if request.method != "GET" or here == "/" else f"/login?next={quote(here)}", 303)


def resume(request: Request) -> Viewer | None:
    """The viewer whose cookie this is."""
    return viewer_of(request.app.state.engine, request.cookies.get(COOKIE, ""))


def viewer_of(engine: object, token: str) -> Viewer | None:
    """None for no token, an unknown or expired one, and one whose key was revoked."""
    if not token:
        return None
    with session_scope(system=True, engine=engine) as session:  # type: ignore[arg-type]  # app.state is untyped
        found = ApiKeys(session).resume_session(token)
    return Viewer(Acting(found[0].identity, found[0], engine), found[1], token) if found else None  # type: ignore[arg-type]


def get_viewer(request: Request) -> Viewer:
    """What PageRoute found."""
    viewer: Viewer = request.state.viewer
    return viewer


def check_form(request: Request, csrf_token: Annotated[str, Form(max_length=200)] = "") -> None:
    """For forms of a session. Raises Problem 403 for one that is not ours."""
    check_origin(request)
    if not same(csrf_token, get_viewer(request).csrf_token):
        raise forged()


def check_login_form(request: Request, csrf_token: Annotated[str, Form(max_length=200)] = "") -> None:
    """For the login form, which has no session yet: the token must be the one in its own cookie."""
    check_origin(request)
    if not csrf_token or not same(csrf_token, request.cookies.get(LOGIN_COOKIE, "")):
        raise forged()


def check_origin(request: Request) -> None:
    """The browser says where a form stood. Only the host is compared: behind a proxy we do not know our own scheme."""
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site", "none")
    if (origin is not None and urlsplit(origin).netloc != request.headers.get("host")) or site not in {"same-origin", "none"}:
        raise forged()


def forged() -> Problem:
    """The answer to a form that was not made by us for this session."""
    return Problem(403, "forged_form", "This form is out of date or did not come from this site; go back, reload and try again.")


def same(one: str, other: str) -> bool:
    """Compares in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())


def open_session(request: Request, response: Response, acting_key: str) -> bool:
    """Logs in with an API key. False when the key is not good."""
    with session_scope(system=True, engine=request.app.state.engine) as session:
        keys = ApiKeys(session)
        caller = keys.authenticate(acting_key.strip())
        token = keys.open_session(caller)[0] if caller is not None else ""
    if token:
        set_cookie(request, response, COOKIE, token, SESSION_HOURS * 3600)
        response.delete_cookie(LOGIN_COOKIE)
    return bool(token)


def close_session(viewer: Viewer, response: Response) -> None:
    """Logs out."""
    with viewer.acting.system_session() as session:
        ApiKeys(session).close_session(viewer.token)
    response.delete_cookie(COOKIE)


def login_token(request: Request, response_of: Callable[[str], Response]) -> Response:
    """The login page with a token of its own, which its cookie repeats."""
    token = request.cookies.get(LOGIN_COOKIE) or secrets.token_urlsafe(24)
    response = response_of(token)
    set_cookie(request, response, LOGIN_COOKIE, token, 3600)
    return response


def set_cookie(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    """Never readable by a script, never sent by another site's form, and only over TLS where we are reached over TLS."""
    response.set_cookie(name, value, max_age=seconds, httponly=True, samesite="lax", secure=request.url.scheme == "https", path="/")


ViewerNow = Annotated[Viewer, Depends(get_viewer)]
FromHere = Depends(check_form)
FromLogin = Depends(check_login_form)
