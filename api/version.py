"""The version that is running. Mailroom is never installed as a package, so pyproject.toml is where it stands."""

from __future__ import annotations

import tomllib
from functools import cache

from core.settings import ROOT


@cache
def version() -> str:
    """As in pyproject.toml; `unknown` where a deployment left that file out."""
    try:
        return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return "unknown"
