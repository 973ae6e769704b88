"""Jinja2 with everything escaped, the words of words.py as filters, and what every page is made of."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from api.dashboard import words
from api.dashboard.sessions import Viewer
from core.logging import safe_text
from storage.repositories.tenants import Tenants

HERE = Path(__file__).parent


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "state_word": words.state_word,
        "clock_time": words.clock_time,
        "duration": words.duration,
        "milliseconds": words.milliseconds,
        "number": words.number,
        "percent": words.percent,
        "codes": words.codes,
        "waited": words.waited,
        "took": words.took,
        "clean": safe_text,
    }
    return environment


def render(template: str, **values: Any) -> Markup:
    """A template's HTML."""
    return Markup(_environment().get_template(template).render(**values))  # noqa: S704  (escaped by the environment)


def page(template: str, viewer: Viewer, stream: str, **values: Any) -> Response:
    """A whole page for somebody who is logged in."""
    return HTMLResponse(render(template, viewer=viewer, stream=stream, **values))


def stream_of(name: str, query: str) -> str:
    """Where a page hears of changes to its regions."""
    return f"/live?page={name}" + (f"&{query}" if query else "")


def tenants_of(viewer: Viewer) -> list[str]:
    """The names an admin may choose from."""
    if not viewer.is_admin:
        return []
    with viewer.acting.system_session() as session:
        return [tenant.name for tenant in Tenants(session).all()]
