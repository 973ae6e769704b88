"""Jinja2 with everything escaped, and the words of words.py as filters."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from api.dashboard import words
from core.logging import safe_text

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
