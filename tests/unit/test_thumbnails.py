"""Where thumbnails come from and go to: paths that lead nowhere else, names made of content, files that are whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.errors import InvalidInputError, NotFoundError, PermanentError, TransientError
from files import thumbnails
from files.limited_child import Drawn
from files.thumbnails import Size, Thumbnail, make_thumbnails
from tests.unit.image_files import picture

OWNER = ["tenant"]


class Pen:
    """Draws without looking, and remembers how often."""

    def __init__(self, kind: str = "JPEG", suffix: str = "jpg") -> None:
        self.kind, self.suffix = kind, suffix
        self.asked: list[Sequence[Size]] = []

    def __call__(self, descriptor: int, sizes: Sequence[Size]) -> list[Drawn]:
        assert os.fstat(descriptor).st_size
        self.asked.append(list(sizes))
        return [Drawn(*size, self.suffix, picture(self.kind, size)) for size in sizes]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "tenant" / "inner").mkdir(parents=True)
    (tmp_path / "root" / "other").mkdir()
    for path in ("tenant/a", "tenant/b", "tenant/inner/c", "other/x"):
        (tmp_path / "root" / path).write_bytes(b"the same" if path[-1] in "ab" else b"another")
    return tmp_path / "root"


def make(
    root: Path, path: str, name: str = "a", pen: Pen | None = None, sizes: Sequence[Size] = ((16, 8),), largest: int = 100
) -> list[Thumbnail]:
    return make_thumbnails(root, OWNER, path, name, sizes=sizes, largest=largest, draw=pen or Pen())


def test_the_same_content_is_one_file_and_drawn_once(root: Path) -> None:
    pen = Pen()
    first = make(root, "a", pen=pen)
    assert make(root, "b", "b", pen) == make(root, ".", "b", pen) == first
    assert pen.asked == [[(16, 8)]]
    (made,) = first
    assert (made.width, made.height) == (16, 8)
    assert (root / "tenant" / made.path).read_bytes()[:2] == b"\xff\xd8"
    assert [path.name for path in (root / "tenant" / "thumbnails").rglob("*.*")] == [Path(made.path).name]


def test_a_png_is_known_again_too(root: Path) -> None:
    pen = Pen("PNG", "png")
    assert make(root, "a", pen=pen) == make(root, "a", pen=pen)
    assert len(pen.asked) == 1


def test_only_missing_sizes_are_drawn(root: Path) -> None:
    pen = Pen()
    make(root, "a", pen=pen)
    assert [each.width for each in make(root, "a", pen=pen, sizes=[(32, 8), (16, 8)])] == [32, 16]
    assert pen.asked == [[(16, 8)], [(32, 8)]]


def test_a_file_that_is_no_picture_of_ours_is_drawn_again(root: Path) -> None:
    (made,) = make(root, "a")
    for content in (b"", b"\xff\xd8nonsense", b"\xff\xd8" + b"\xff\xe0\0\2" * 3):
        (root / "tenant" / made.path).write_bytes(content)
        assert make(root, "a") == [made]


def test_the_directory_may_be_named_with_the_file_in_it(root: Path) -> None:
    assert make(root, "inner", "c") == make(root, "inner/c", "whatever") == make(root, "./inner//c", "c")


def test_what_is_asked_for_again_counts_as_new(root: Path) -> None:
    (made,) = make(root, "a")
    os.utime(root / "tenant" / made.path, (1, 1))
    make(root, "a")
    assert (root / "tenant" / made.path).stat().st_mtime > 1e9


@pytest.mark.parametrize(
    ("path", "kind", "sentence"),
    [
        ("../other/x", InvalidInputError, "file_path must not contain '..'."),
        ("inner/../../other/x", InvalidInputError, "'..'"),
        ("/etc/passwd", InvalidInputError, "file_path must be relative"),
        ("a\0b", InvalidInputError, "file_path is not a path"),
        ("", InvalidInputError, "file_path is not a path"),
        ("\ud800", InvalidInputError, "file_path is not a path"),
        ("x" * 2000, InvalidInputError, "file_path is not a path"),
        ("n" * 300, NotFoundError, "file_path: there is no such file."),
        ("nothing", NotFoundError, "file_path: there is no such file."),
        ("a/b", NotFoundError, "file_path: there is no such directory."),
        ("nowhere/a", NotFoundError, "file_path: there is no such directory."),
        ("link", InvalidInputError, "file_path leads over a symbolic link"),
        ("links/x", InvalidInputError, "file_path leads over a symbolic link"),
        ("pipe", InvalidInputError, "file_path is not a regular file."),
    ],
)
def test_no_path_leads_elsewhere(root: Path, path: str, kind: type[Exception], sentence: str) -> None:
    (root / "tenant" / "link").symlink_to(root / "other" / "x")
    (root / "tenant" / "links").symlink_to(root / "other")
    os.mkfifo(root / "tenant" / "pipe")
    with pytest.raises(kind, match=sentence):
        make(root, path)


@pytest.mark.parametrize("name", ["a/b", "..", ".", "", "/", "a/"])
def test_the_stored_name_is_a_name(root: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match="stored_filename"):
        make(root, "inner", name)


def test_a_directory_that_is_a_link_to_another_tenant_is_not_entered(root: Path) -> None:
    (root / "tenant" / "thumbnails").symlink_to(root / "other")
    with pytest.raises(InvalidInputError, match="symbolic link"):
        make(root, "a")
    assert [path.name for path in (root / "other").iterdir()] == ["x"]


def test_a_file_that_is_exchanged_while_it_is_opened_is_noticed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def slow(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "a" and not flags & os.O_DIRECTORY:
            (root / "tenant" / "a").unlink()
            os.mkfifo(root / "tenant" / "a")
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", slow)
    with pytest.raises(InvalidInputError, match="is not a regular file"):
        make(root, "a")


def test_a_large_file_is_refused_before_it_is_drawn(root: Path) -> None:
    pen = Pen()
    with pytest.raises(InvalidInputError, match="larger than"):
        make(root, "a", pen=pen, largest=7)
    assert pen.asked == []


def test_an_image_that_cannot_be_drawn_leaves_nothing(root: Path) -> None:
    def refuse(*_: object) -> list[Drawn]:
        raise PermanentError("no")

    with pytest.raises(PermanentError):
        make_thumbnails(root, OWNER, "a", "a", sizes=[(8, 8)], largest=100, draw=refuse)
    assert [path for path in (root / "tenant" / "thumbnails").rglob("*") if path.is_file()] == []


def test_a_write_that_fails_leaves_no_part(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(TransientError, match="no room left"):
        make(root, "a")
    assert [path for path in (root / "tenant" / "thumbnails").rglob("*") if path.is_file()] == []
    monkeypatch.setattr(os, "rename", lambda *_, **__: (_ for _ in ()).throw(PermissionError(1, "no")))
    with pytest.raises(PermissionError):
        make(root, "a")


def test_a_directory_that_a_clean_up_removes_is_made_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tries = thumbnails.write_whole, []

    def removed(directory: int, name: str, content: bytes) -> None:
        tries.append(name)
        if len(tries) == 1:
            raise FileNotFoundError
        real(directory, name, content)

    monkeypatch.setattr(thumbnails, "write_whole", removed)
    assert make(root, "a")
    assert len(tries) == 2
    monkeypatch.setattr(thumbnails, "write_whole", lambda *_: (_ for _ in ()).throw(FileNotFoundError))
    with pytest.raises(TransientError, match="does not stay"):
        make(root, "b", sizes=[(9, 9)])
