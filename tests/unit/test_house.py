"""The rules of the house that no linter knows: names, sizes, and who may do what."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import site
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
HOUSE: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"]
OUTBUILDINGS = ["tests", "bench"]
CORE = {"__init__", "settings", "errors", "tenancy", "logging", "clock", "ids", "hosts"}
MAY_READ_THE_ENVIRONMENT = {
    "core/settings.py",
    "cli/quality.py",  # hands it on to the tools it starts
}
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


def modules(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(), str(path)))


def reads_environment(path: Path) -> bool:
    """Whether the module takes something from the process's environment: os.environ, os.getenv, however imported."""
    wanted = {"environ", "environb", "getenv", "getenvb"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in wanted and isinstance(node.value, ast.Name) and node.value.id == "os")
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and any(alias.name in wanted for alias in node.names))
        for node in nodes(path)
    )


def selects(path: Path) -> bool:
    """Whether the module builds SQL queries with SQLAlchemy's `select`."""
    return any(
        (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] == "sqlalchemy"
            and any(alias.name == "select" for alias in node.names)
        )
        or (
            isinstance(node, ast.Attribute)
            and node.attr == "select"
            and isinstance(node.value, ast.Name)
            and node.value.id in {"sa", "sqlalchemy"}
        )
        for node in nodes(path)
    )


@pytest.mark.parametrize("name", HOUSE)
def test_a_package_of_the_house_is_found_in_the_house(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).resolve().is_relative_to(ROOT / name)


def test_no_installed_distribution_claims_a_name_of_the_house() -> None:
    claimed = set(importlib.metadata.packages_distributions())
    for folder in filter(Path.is_dir, map(Path, site.getsitepackages())):  # Debian's Python names some that do not exist
        claimed |= {path.name.removesuffix(".py") for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert claimed & {*HOUSE, *OUTBUILDINGS, "manage", "conftest"} == set()


def test_modules_stay_short() -> None:
    written = [path for path in modules(*HOUSE) if not named(path).startswith("storage/migrations/versions")]  # those are lists
    limits = [(path, 350) for path in written] + [(path, 500) for path in modules(*OUTBUILDINGS)]
    long = {named(path): lines for path, limit in limits if (lines := len(path.read_text().splitlines())) > limit}
    assert long == {}


def test_the_environment_is_read_in_the_settings_only() -> None:
    readers = {named(path) for path in modules(*HOUSE) if reads_environment(path)}
    assert readers - MAY_READ_THE_ENVIRONMENT == set()


def test_queries_are_built_in_storage_only() -> None:
    assert [named(path) for path in modules(*(set(HOUSE) - {"storage"})) if selects(path)] == []


def test_core_is_a_closed_list() -> None:
    assert {path.stem for path in modules("core")} == CORE


def test_tests_are_no_package() -> None:
    assert [named(path) for path in modules(*OUTBUILDINGS) if path.name == "__init__.py"] == []


def test_every_module_has_a_name_that_says_what_it_decides() -> None:
    assert [named(path) for path in modules(*HOUSE, "tests") if path.stem in NAMES_THAT_SAY_NOTHING] == []


def test_every_module_opens_with_what_it_decides() -> None:
    silent = [
        named(path) for path in modules(*HOUSE, "tests") if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []
