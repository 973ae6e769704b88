"""Paths below a root, walked name by name from open directories: neither `..` nor a symbolic link nor a race leads out of it.

A path that was checked and then opened by its name may be another file by then. Here every directory is opened relative to the one
before it and without following links (openat(2), O_NOFOLLOW), so what was checked is what is used.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from core.errors import InvalidInputError, NotFoundError

LONGEST_PATH = 1024
LINK = "{what} leads over a symbolic link, and those are not followed."
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def parts_of(path: str, what: str) -> list[str]:
    """The names of a relative path; none for `.`. Raises InvalidInputError, naming the argument, for one that could lead elsewhere."""
    if not path or len(path) > LONGEST_PATH or "\0" in path or _is_unspeakable(path):
        raise InvalidInputError(f"{what} is not a path; give one relative to your files, as an upload's is.")
    if path.startswith("/"):
        raise InvalidInputError(f"{what} must be relative to your files, without a leading slash.")
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise InvalidInputError(f"{what} must not contain '..'.")
    return parts


def name_of(name: str, what: str) -> str:
    """A single name. Raises InvalidInputError for anything with a slash, or none."""
    parts = parts_of(name, what)
    if len(parts) != 1 or parts[0] != name:
        raise InvalidInputError(f"{what} must be a file's name, without a slash.")
    return name


@contextmanager
def opened_directory(root: Path, parts: Sequence[str], what: str, *, create: bool = False) -> Iterator[int]:
    """A descriptor of the directory. Only `root` itself may be a link: it is the operator's. Raises NotFoundError, InvalidInputError."""
    if create:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _missing(what, "directory"):
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            following = _entered(descriptor, part, what, create=create)
            os.close(descriptor)
            descriptor = following
        yield descriptor
    finally:
        os.close(descriptor)


def enter(directory: int, name: str) -> int:
    """A descriptor of a directory in a directory. Raises OSError, for a symbolic link too."""
    return os.open(name, _DIRECTORY, dir_fd=directory)


def open_file(directory: int, name: str, what: str) -> int:
    """A descriptor of a regular file for reading. Devices and pipes are never opened: that alone may have an effect, or take for ever.

    Raises NotFoundError, InvalidInputError.
    """
    with _missing(what, "file"):
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            raise _not_regular(found, what)
        descriptor = os.open(name, _FILE, dir_fd=directory)
    now = os.fstat(descriptor)
    if not stat.S_ISREG(now.st_mode):  # it was exchanged meanwhile
        os.close(descriptor)
        raise _not_regular(now, what)
    return descriptor


def _entered(directory: int, name: str, what: str, *, create: bool) -> int:
    if create:
        try:
            os.mkdir(name, mode=0o700, dir_fd=directory)
        except FileExistsError:
            pass
    with _missing(what, "directory"):
        try:
            return enter(directory, name)
        except NotADirectoryError:  # so Linux says of a link, too
            if stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                raise InvalidInputError(LINK.format(what=what)) from None
            raise


def _not_regular(found: os.stat_result, what: str) -> InvalidInputError:
    if stat.S_ISLNK(found.st_mode):
        return InvalidInputError(LINK.format(what=what))
    return InvalidInputError(f"{what} is not a regular file.")


def _is_unspeakable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return True
    return False


@contextmanager
def _missing(what: str, kind: str) -> Iterator[None]:
    """What the system says of a path, as an error for whoever named it."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InvalidInputError(LINK.format(what=what)) from None
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENXIO}:
            raise NotFoundError(f"{what}: there is no such {kind}.") from None
        raise
