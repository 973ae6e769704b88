"""How the commands reach Mailroom: a remote API over HTTP, or the same application in this process, for whoever has the database.

In this process there is no key: whoever can read the database is the operator already. No caller over the network can claim that,
because what says so is set on the ASGI scope and not in the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer

from core.errors import MailroomError, NotFoundError, UnavailableError
from core.settings import get_settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

SECONDS = 60.0
Json = dict[str, Any]
UrlOption = Annotated[str | None, typer.Option("--url", envvar="MAILROOM_URL", help="A remote API; default: this machine's database.")]
KeyOption = Annotated[str | None, typer.Option("--key", envvar="MAILROOM_KEY", help="The key for --url.", show_envvar=True)]
TenantOption = Annotated[str | None, typer.Option("--tenant", help="Act for this tenant (name or id); with an admin key or here.")]


class RefusedError(MailroomError):
    """The API said no; the sentence is its own. `count` where it told how many there are now."""

    code = "refused"

    def __init__(self, sentence: str, status: int, count: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.count = count


@dataclass(frozen=True, slots=True)
class Target:
    """Whom the commands speak to."""

    url: str | None = None
    key: str | None = None
    tenant: str | None = None


def choose(context: typer.Context, url: UrlOption = None, key: KeyOption = None, tenant: TenantOption = None) -> None:
    """Mailroom: background tasks for e-mail products. Start with: ./manage.py quickstart"""
    context.obj = Target(url, key, tenant)


def call(context: typer.Context, method: str, path: str, **options: Any) -> Any:
    """The answer's JSON. Raises NotFoundError, UnavailableError, or RefusedError with the API's sentence."""
    target = context.find_root().obj or Target()
    headers = {"X-Tenant-Id": target.tenant} if target.tenant else {}
    if target.url is not None:
        if target.key is None:
            raise typer.BadParameter("with --url a key is needed: --key before the command, or MAILROOM_KEY")
        answer = _over_http(target.url, method, path, headers | {"Authorization": f"Bearer {target.key}"}, options)
    else:
        answer = _here(method, path, headers, options)
    if answer.status_code in range(200, 300) or (path.startswith("/health") and answer.status_code == httpx.codes.SERVICE_UNAVAILABLE):
        return answer.json() if answer.content else None
    raise _error_of(answer)


def pages(context: typer.Context, path: str, limit: int, **query: Any) -> Iterator[Json]:
    """Up to so many items of a list, page after page."""
    cursor = None
    while limit > 0:
        given = {name: value for name, value in {**query, "cursor": cursor}.items() if value}
        page = call(context, "GET", path, params={**given, "limit": min(limit, 200)})
        yield from page["items"]
        limit -= len(page["items"])
        cursor = page["nextCursor"]
        if cursor is None:
            return


def _over_http(url: str, method: str, path: str, headers: dict[str, str], options: Json) -> httpx.Response:
    try:
        return httpx.request(method, url.rstrip("/") + path, headers=headers, timeout=SECONDS, **options)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnavailableError(f"{url} cannot be reached ({type(error).__name__}).") from None


def _here(method: str, path: str, headers: dict[str, str], options: Json) -> httpx.Response:
    with _application() as application:

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(application)
            async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=SECONDS) as client:
                return await client.request(method, path, headers=headers, **options)

        return asyncio.run(ask())


@contextmanager
def _application() -> Iterator[ASGIApp]:
    """The application with us as its operator; what was enqueued is published before it is left."""
    from cli.processes import check_database
    from core.logging import configure_logging

    settings = get_settings()
    check_database(settings)
    configure_logging("ERROR", settings.log_format)

    import actors
    from actors.sources import fetch_source
    from api.app import create_app
    from api.auth import OPERATOR

    application = create_app(settings, fetch_source=fetch_source)

    async def as_operator(scope: Any, receive: Any, send: Any) -> None:
        scope[OPERATOR] = True
        await application(scope, receive, send)

    try:
        yield as_operator
    finally:
        actors.broker.close()


def _error_of(answer: httpx.Response) -> MailroomError:
    try:
        problem = answer.json()
    except ValueError:
        problem = {}
    sentence = str(problem.get("detail") or f"The API answered {answer.status_code}.")
    if answer.status_code == httpx.codes.NOT_FOUND:
        return NotFoundError(sentence)
    if answer.status_code in {502, 503, 504}:
        return UnavailableError(sentence)
    return RefusedError(sentence, answer.status_code, problem.get("count"))
