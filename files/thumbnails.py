"""Thumbnails: for one file a small picture for each wanted size, kept under a name made of the file's content.

The same content has the same names, so it is drawn once, whatever it is called. A picture appears under its name whole or not at all.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import InvalidInputError, TransientError
from files.limited_child import Drawn
from files.tree import enter, name_of, open_file, opened_directory, parts_of

FOLDER = "thumbnails"
PART = ".part"
"""What a file is called at its end until it is whole; clean-ups know it."""
KINDS = ("jpg", "png")
TRIES = 3
Size = tuple[int, int]
Draw = Callable[[int, Sequence[Size]], list[Drawn]]
"""From a file's descriptor and the wanted boxes to pictures; raises PermanentError for an image that cannot be drawn."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A kept picture; `path` is relative to its owner's files."""

    path: str
    width: int
    height: int


def make_thumbnails(
    root: Path, owner: Sequence[str], file_path: str, stored_filename: str, *, sizes: Sequence[Size], largest: int, draw: Draw
) -> list[Thumbnail]:
    """A thumbnail of each size. `owner` are the names from the root down to the owner's files, which nothing here leaves.

    `file_path` is the file, or the directory that holds `stored_filename`. `largest`: bytes that the file may have. Raises
    InvalidInputError, NotFoundError, and what `draw` raises.
    """
    parts = parts_of(file_path, "file_path")
    name = name_of(stored_filename, "stored_filename")
    source = _opened(root, owner, parts, name)
    try:
        digest = _digest(source, largest)
        with opened_directory(root, [*owner, FOLDER, digest[:2]], "thumbnails", create=True) as directory:
            kept = {size: _kept(directory, digest, size) for size in sizes}
            missing = [size for size in sizes if kept[size] is None]
            drawn = dict(zip(missing, draw(source, missing), strict=True)) if missing else {}
        found = []
        for size in sizes:
            thumbnail = kept[size] or _store(root, owner, digest, size, drawn[size])
            found.append(thumbnail)
        return found
    finally:
        os.close(source)


def _opened(root: Path, owner: Sequence[str], parts: Sequence[str], name: str) -> int:
    with opened_directory(root, owner, "file_path") as top:
        if _is_directory(top, parts):
            parts = [*parts, name]
    with opened_directory(root, [*owner, *parts[:-1]], "file_path") as directory:
        return open_file(directory, parts[-1], "file_path")


def _is_directory(top: int, parts: Sequence[str]) -> bool:
    """Only what kind of thing it is; whether the way there is allowed is found out when it is gone."""
    descriptor = os.dup(top)
    try:
        for part in parts:
            following = enter(descriptor, part)
            os.close(descriptor)
            descriptor = following
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _digest(source: int, largest: int) -> str:
    """SHA-256 of the whole file, in little memory. Raises InvalidInputError for one that is too large, also if it grows meanwhile."""
    digest, left, buffer = hashlib.sha256(), largest, bytearray(2**18)
    view = memoryview(buffer)
    while size := os.readv(source, [buffer]):
        left -= size
        if left < 0:
            raise InvalidInputError(f"The file is larger than {largest // 2**20} MB; no thumbnail is made of it.")
        digest.update(view[:size])
    return digest.hexdigest()


def _kept(directory: int, digest: str, size: Size) -> Thumbnail | None:
    """The picture, if there is one; from now on it counts as new, so that no clean-up takes it from whoever asked."""
    for kind in KINDS:
        name = _name(digest, size, kind)
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # a clean-up that looks at it holds it for a moment
            os.utime(descriptor)
            measures = _measured(os.read(descriptor, 4096))
            if measures is not None and os.fstat(descriptor).st_nlink:
                return Thumbnail(f"{FOLDER}/{digest[:2]}/{name}", *measures)
        finally:
            os.close(descriptor)
    return None


def _store(root: Path, owner: Sequence[str], digest: str, size: Size, drawn: Drawn) -> Thumbnail:
    name = _name(digest, size, drawn.kind)
    for _ in range(TRIES):
        try:
            with opened_directory(root, [*owner, FOLDER, digest[:2]], "thumbnails", create=True) as directory:
                write_whole(directory, name, drawn.content)
            return Thumbnail(f"{FOLDER}/{digest[:2]}/{name}", drawn.width, drawn.height)
        except FileNotFoundError:  # a clean-up removed the empty directory between two steps
            continue
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise TransientError("There is no room left for files.") from None
            raise
    raise TransientError("The directory of the thumbnails does not stay.")


def write_whole(directory: int, name: str, content: bytes) -> None:
    """Puts a file under its name at once; one of that name is replaced. After a power cut there is all of it or none: its content is
    synchronised, its name is not, for what can be drawn again may be missing but must not be wrong."""
    part = f".{name}.{secrets.token_hex(4)}{PART}"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        try:
            with memoryview(content) as left:
                written = 0
                while written < len(content):
                    written += os.write(descriptor, left[written:])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(part, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:  # a time limit too, which may strike anywhere
        os.unlink(part, dir_fd=directory)
        raise


def _name(digest: str, size: Size, kind: str) -> str:
    return f"{digest}-{size[0]}x{size[1]}.{kind}"


def _measured(start: bytes) -> Size | None:
    """Width and height of a picture of ours, from its first bytes (PNG: IHDR; JPEG: the frame header, ITU-T T.81 B.2.2)."""
    if start[:8] == b"\x89PNG\r\n\x1a\n" and len(start) >= 24:
        return int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")
    place = 2
    while start[:2] == b"\xff\xd8" and place + 9 <= len(start) and start[place] == 0xFF:
        if start[place + 1] in {0xC0, 0xC1, 0xC2}:
            return int.from_bytes(start[place + 7 : place + 9], "big"), int.from_bytes(start[place + 5 : place + 7], "big")
        place += 2 + int.from_bytes(start[place + 2 : place + 4], "big")
    return None
