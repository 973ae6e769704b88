"""A private PostgreSQL cluster with row-level security in force: the role of `url` owns its databases and is no superuser."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import psycopg2
from psycopg2 import sql

from tests.servers.process import Process, Server, ServerStartError, find_program

ROLE = "mailroom"
SUPERUSER = "postgres"
PASSWORD = "mailroom-test"  # loopback only, and thrown away with the directory


class Postgres(Server):
    """What a killed server had committed is in the kernel's hands: only a machine that dies loses it without `fsync`. Databases are made
    and dropped in a fraction of the time."""

    package: ClassVar[str] = "postgresql"

    def __init__(self, directory: Path, *, fsync: bool = False) -> None:
        super().__init__(directory)
        self._fsync = fsync
        self._programs = find_program(self.package, "/usr/lib/postgresql/*/bin/postgres", "/usr/local/pgsql/bin/postgres").parent
        self._data = directory / "pg"

    @property
    def url(self) -> str:
        return self._url(ROLE, "mailroom")

    @property
    def superuser_url(self) -> str:
        return self._url(SUPERUSER, "mailroom")

    def _url(self, role: str, database: str) -> str:
        return f"postgresql+psycopg2://{role}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str) -> str:
        """A new empty database owned by `mailroom`; its URL."""
        self._execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(ROLE)))
        return self._url(ROLE, name)

    def drop_database(self, name: str) -> None:
        """Drop it even while clients are connected."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        fresh = not self._data.exists()
        if fresh:
            self._initialise()
        super().start()
        if fresh:
            role = sql.Identifier(ROLE)
            self._execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} NOSUPERUSER NOBYPASSRLS").format(role, sql.Literal(PASSWORD)))
            self.create_database("mailroom")

    def stop(self) -> None:
        """A fast shutdown: clients are disconnected, a checkpoint is written."""
        if self._process is not None:
            self._process.terminate(signal.SIGINT)
            self._process = None

    def kill(self) -> None:
        super().kill()
        # The next postmaster refuses to start while a stale file names a process id that is in use again.
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _initialise(self) -> None:
        self._data.mkdir(mode=0o700)
        passwords = self.directory / "initial-password"
        passwords.write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (self._data, passwords):
                shutil.chown(path, SUPERUSER, SUPERUSER)
        options = ["-U", SUPERUSER, "--auth=scram-sha-256", f"--pwfile={passwords}", "--encoding=UTF8", "--locale=C", "--no-sync"]
        command = self._as_postgres([self._programs / "initdb", "-D", self._data, *options])
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
        if done.returncode:
            raise ServerStartError(f"initdb: {done.stdout}{done.stderr}")

    def _as_postgres(self, command: Sequence[str | Path]) -> Sequence[str | Path]:
        """PostgreSQL refuses to run as root."""
        if os.geteuid() != 0:
            return command
        user = pwd.getpwnam(SUPERUSER)
        return [find_program("util-linux", "setpriv"), f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups", *command]

    def _spawn(self) -> Process:
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "64MB",
            "log_min_messages": "warning",
            "fsync": "on" if self._fsync else "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return Process(self._as_postgres([self._programs / "postgres", "-D", self._data, *options]), log=self.log, cwd=Path("/"))

    def _answers(self) -> bool:
        try:
            self._execute(sql.SQL("SELECT 1"))
        except psycopg2.OperationalError:
            return False
        return True

    def _execute(self, statement: sql.Composable) -> None:
        connection = psycopg2.connect(
            host="127.0.0.1", port=self.port, user=SUPERUSER, password=PASSWORD, dbname="postgres", connect_timeout=2
        )
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()
