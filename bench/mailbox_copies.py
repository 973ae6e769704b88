"""The peer of `bench.sync`: mbsync, which copies a mailbox into a Maildir (Debian package isync)."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

CONFIGURATION = """\
FSync {fsync}

IMAPAccount there
Host 127.0.0.1
Port {port}
User {user}
Pass {password}
SSLType None

IMAPStore remote
Account there

MaildirStore local
Path {directory}/
Inbox {directory}/INBOX

Channel all
Far :remote:
Near :local:
Patterns INBOX
Create Near
Expunge Near
Sync Pull
SyncState *
"""


class Mbsync:
    """One copy of one mailbox. Without fsync it writes like a program that may lose a night's work; its default is with."""

    def __init__(self, directory: Path, port: int, user: str, password: str, *, fsync: bool) -> None:
        directory.mkdir(parents=True)
        self._configuration = directory / "mbsyncrc"
        values = {"port": port, "user": user, "password": password, "directory": directory / "mail", "fsync": "yes" if fsync else "no"}
        (directory / "mail").mkdir()
        self._configuration.write_text(CONFIGURATION.format(**values))
        self._inbox = directory / "mail" / "INBOX"

    @staticmethod
    def is_installed() -> bool:
        """Whether there is a peer at all."""
        return shutil.which("mbsync") is not None

    def sync(self) -> float:
        """Seconds of one run. Raises AssertionError with its words when it fails."""
        before = time.perf_counter()
        done = subprocess.run(["mbsync", "-q", "-c", self._configuration, "-a"], capture_output=True, text=True, timeout=600, check=False)
        seconds = time.perf_counter() - before
        assert done.returncode == 0, done.stdout + done.stderr
        return seconds

    def count(self) -> int:
        """How many messages it has."""
        return sum(1 for folder in ("cur", "new") for _ in (self._inbox / folder).iterdir())
