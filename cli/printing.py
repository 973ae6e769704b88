"""What commands print: data on stdout, as aligned columns for people or JSON for programs; messages on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="As JSON; lists one object a line.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many.")]
Row = Sequence[Any]


def say(sentence: str) -> None:
    """For people, on stderr."""
    sys.stderr.write(sentence + "\n")


def table(head: Sequence[str], rows: Iterable[Row], empty: str) -> None:
    """Columns as wide as their widest value; numbers to the right. Without a row, `empty` is said instead."""
    kept = list(rows)
    cells = [[_text(value) for value in row] for row in kept]
    if not cells:
        say(empty)
        return
    widths = [max(len(line[place]) for line in [list(head), *cells]) for place in range(len(head))]
    is_number = [all(isinstance(row[place], int | None) for row in kept) for place in range(len(head))]
    for line in [[word.upper() for word in head], *cells]:
        padded = [word.rjust(width) if right else word.ljust(width) for word, width, right in zip(line, widths, is_number, strict=True)]
        print("  ".join(padded).rstrip())


def lines(items: Iterable[Any]) -> None:
    """One JSON object a line."""
    for item in items:
        print(json.dumps(item, ensure_ascii=False))


def facts(pairs: dict[str, Any]) -> None:
    """Name and value, a line each; what is None is left out."""
    shown = {name: value for name, value in pairs.items() if value is not None}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        print(f"{name.ljust(width)}  {_text(value)}")


def age(moment: str | None) -> str:
    """How long ago, or `in` how long: `3 min`, `in 20 s`."""
    if moment is None:
        return "-"
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    return f"in {span(-seconds)}" if seconds < -0.5 else span(max(0.0, seconds))


def span(seconds: float | None) -> str:
    """One unit: `340 ms`, `12 s`, `5 min`, `3 h`, `2 d`."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{round(seconds * 1000)} ms"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def confirmed(question: str, *, yes: bool) -> bool:
    """Asks on the terminal; without one only `--yes` agrees."""
    if yes:
        return True
    if not sys.stdin.isatty():
        say(f"{question} Nothing was done: repeat it with --yes.")
        return False
    return typer.confirm(question, err=True)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split(" "))
