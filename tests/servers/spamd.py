"""A private SpamAssassin: Debian's own rules, local tests only, one child, learning allowed, Bayes in files."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import ClassVar

from tests.servers.process import Process, Server, find_program

PLUGINS = (
    "Check",
    "HTMLEval",
    "MIMEEval",
    "HeaderEval",
    "BodyEval",
    "MIMEHeader",
    "URIEval",
    "RelayEval",
    "Bayes",
    "FreeMail",
    "ReplaceTags",
)
SITE = """\
use_auto_welcomelist 0
use_bayes 1
bayes_auto_learn 0
bayes_path {directory}/state/bayes
bayes_min_spam_num 1
bayes_min_ham_num 1
"""


class Spamd(Server):
    """Over TCP at `url`, without DNS and without anybody's own rules."""

    package: ClassVar[str] = "spamd"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._program = find_program(self.package, "spamd", "/usr/sbin/spamd")

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def _spawn(self) -> Process:
        site = self.directory / "site"
        site.mkdir(exist_ok=True)
        (site / "init.pre").write_text("".join(f"loadplugin Mail::SpamAssassin::Plugin::{name}\n" for name in PLUGINS))
        (site / "local.cf").write_text(SITE.format(directory=self.directory))
        state = self.directory / "state"
        state.mkdir(exist_ok=True)
        root = ["--username=nobody"] if os.geteuid() == 0 else []
        if root:
            shutil.chown(state, "nobody")
        options = ["--local", "--nouser-config", "--allow-tell", "--max-children=1", "--min-children=1", "--syslog=stderr"]
        where = ["--ipv4", f"--listen=127.0.0.1:{self.port}", f"--siteconfigpath={site}", f"--helper-home-dir={self.directory}"]
        return Process([self._program, *options, *root, *where], log=self.log, env={**os.environ, "HOME": str(self.directory)})

    def _answers(self) -> bool:
        """PING (SPAMC/1.2)."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(b"PING SPAMC/1.2\r\n\r\n")
            return b"PONG" in connection.recv(1024)
