"""Clean-ups of files: what is old goes, what is new, needed, used or elsewhere stays."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from core.errors import InvalidInputError, NotFoundError
from files import retention
from files.retention import Cleaned, Rule, clean, clean_parts

DAY = 86_400.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def put(root: Path, path: str, *, old: bool = True, size: int = 10) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * size)
    if old:
        os.utime(file, (1, 1))
    return file


def left(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def cleaned(root: Path, *parts: str, **rule: Any) -> tuple[int, int]:
    found = clean(root, parts, Rule(DAY, **rule), "directory")
    return found.deleted_count, found.freed_bytes


def test_old_files_go_and_new_ones_stay(root: Path) -> None:
    put(root, "old", size=7)
    put(root, "deep/down/old", size=5)
    put(root, "new", old=False)
    assert cleaned(root) == (2, 12)
    assert left(root) == {"new"}


def test_a_dry_run_tells_and_does_nothing(root: Path) -> None:
    put(root, "deep/old", size=5)
    assert cleaned(root, dry_run=True) == (1, 5)
    assert left(root) == {"deep", "deep/old"}


def test_nothing_is_followed_out_of_the_tree(root: Path, tmp_path: Path) -> None:
    outside = put(tmp_path, "outside/old")
    put(root, "old")
    (root / "link").symlink_to(outside.parent)
    (root / "file_link").symlink_to(outside)
    os.mkfifo(root / "pipe")
    assert cleaned(root) == (1, 10)
    assert outside.exists()
    assert left(root) == {"link", "file_link", "pipe"}
    with pytest.raises(InvalidInputError, match="symbolic link"):
        cleaned(root, "link")
    with pytest.raises(NotFoundError, match="directory: there is no such directory"):
        cleaned(root, "nowhere")


def test_only_what_is_below_the_directory_is_looked_at(root: Path) -> None:
    put(root, "mine/old")
    put(root, "others/old")
    assert cleaned(root, "mine") == (1, 10)
    assert left(root) == {"mine", "others", "others/old"}


def test_what_is_in_use_stays(root: Path) -> None:
    with put(root, "open").open() as open_file, put(root, "locked").open() as locked_file:
        fcntl.flock(locked_file, fcntl.LOCK_SH)
        assert open_file.fileno()
        found = clean(root, [], Rule(DAY), "directory")
        assert found.deleted_count + found.in_use == 2
        assert "locked" in left(root)
    assert cleaned(root)[0] == found.in_use


def test_without_leases_only_locks_tell(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def no_leases(descriptor: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETLEASE:
            raise OSError(22, "Invalid argument")
        return int(real(descriptor, command, argument))

    monkeypatch.setattr(fcntl, "fcntl", no_leases)
    put(root, "old")
    assert cleaned(root) == (1, 10)


def test_what_somebody_needs_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    asked: list[int] = []

    def kept(names: Sequence[str]) -> list[str]:
        asked.append(len(names))
        return [name for name in names if name == "c"]

    for name in "abcde":
        put(root, name)
    assert cleaned(root, kept=kept)[0] == 4
    assert left(root) == {"c"}
    assert asked == [2, 2, 1]


def test_progress_is_told_and_may_end_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 1)

    def told(found: Cleaned) -> None:
        if found.deleted_count == 2:
            raise InterruptedError

    for name in "abcde":
        put(root, name)
    with pytest.raises(InterruptedError):
        cleaned(root, on_batch=told)
    assert len(left(root)) == 3


def test_what_vanishes_meanwhile_is_no_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [put(root, name) for name in ("a", "deep/b")]

    def kept(_names: Sequence[str]) -> list[str]:
        for file in files:
            file.unlink(missing_ok=True)
        return []

    assert cleaned(root, kept=kept) == (0, 0)


def test_what_was_touched_meanwhile_stays(root: Path) -> None:
    file = put(root, "a")

    def kept(_names: Sequence[str]) -> list[str]:
        os.utime(file)
        return []

    assert cleaned(root, kept=kept) == (0, 0)
    assert left(root) == {"a"}


def test_empty_directories_go_once_they_are_old(root: Path) -> None:
    for name in ("old/inner", "new"):
        (root / name).mkdir(parents=True)
    for name in ("old/inner", "old"):
        os.utime(root / name, (1, 1))
    assert cleaned(root) == (0, 0)
    assert left(root) == {"new"}


def test_a_second_name_of_a_file_frees_nothing(root: Path) -> None:
    os.link(put(root, "a"), root / "b")
    assert cleaned(root) == (2, 10)


def test_it_does_not_descend_for_ever(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "DEEPEST", 1)
    put(root, "one/old")
    put(root, "one/two/old")
    assert cleaned(root) == (1, 10)
    assert "one/two/old" in left(root)


def test_of_parts_only_old_ones_go(root: Path) -> None:
    put(root, "t/.a.jpg.1234.part")
    put(root, "t/.b.jpg.5678.part", old=False)
    put(root, "t/picture.jpg")
    assert clean_parts(root, ["t"], Rule(DAY)).deleted_count == 1
    assert left(root) == {"t", "t/.b.jpg.5678.part", "t/picture.jpg"}
    assert clean_parts(root, ["nobody"], Rule(DAY)) == Cleaned()
