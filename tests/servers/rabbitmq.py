"""A private RabbitMQ node from Debian's package: own home, cookie, node name and port mapper, no plugins."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import ClassVar

from tests.servers.process import Process, Server, find_program, free_port, talk

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.relative = 0.4
log.console = true
log.console.level = warning
log.file = false
"""


class RabbitMq(Server):
    """Ready in about five seconds; a `Process` of its own for epmd, which would otherwise stay behind as a daemon."""

    package: ClassVar[str] = "rabbitmq-server"
    start_timeout: ClassVar[float] = 120.0

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._programs = find_program(self.package, "/usr/lib/rabbitmq/lib/*/sbin/rabbitmq-server").parent
        self._epmd_program = find_program(self.package, "epmd")
        self._epmd: Process | None = None
        self._epmd_port = 0
        self._distribution_port = 0

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def ctl(self, *args: str, timeout: float = 60.0) -> str:
        """The output of one `rabbitmqctl -q` command (about two seconds each)."""
        done = subprocess.run(
            [self._programs / "rabbitmqctl", "-q", *args],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(args)}: {done.stdout}{done.stderr}")
        return done.stdout

    def close_all_connections(self, reason: str = "closed by the test") -> None:
        """The broker closes every client's connection with CONNECTION_FORCED and stays up."""
        self.ctl("close_all_connections", reason)

    def wipe(self) -> None:
        """Lose everything: queues, messages, users' changes. Only while stopped."""
        if self.running:
            raise RuntimeError("stop RabbitMQ before wiping it")
        shutil.rmtree(self.directory / "mnesia", ignore_errors=True)

    def pids(self) -> list[int]:
        return super().pids() + (self._epmd.tree() if self._epmd else [])

    def stop(self) -> None:
        super().stop()
        self._stop_epmd()

    def kill(self) -> None:
        super().kill()
        self._stop_epmd()

    def _stop_epmd(self) -> None:
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd = None

    def _spawn(self) -> Process:
        self._epmd_port = self._epmd_port or free_port()
        self._distribution_port = self._distribution_port or free_port()
        (self.directory / "rabbitmq.conf").write_text(CONFIGURATION.format(port=self.port))
        (self.directory / "enabled_plugins").write_text("[].")
        self._epmd = Process(
            [self._epmd_program, "-port", str(self._epmd_port), "-address", "127.0.0.1"],
            log=self.directory / "epmd.log",
            env=self._environment(),
        )
        return Process([self._programs / "rabbitmq-server"], log=self.log, env=self._environment())

    def _answers(self) -> bool:
        return talk(self.port, PROTOCOL_HEADER)[:1] == b"\x01"  # a method frame: connection.start

    def _environment(self) -> dict[str, str]:
        home = str(self.directory)
        return {
            "HOME": home,
            "PATH": "/usr/lib/rabbitmq/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODENAME": f"mailroom{self.port}@localhost",
            "RABBITMQ_BASE": home,
            "RABBITMQ_MNESIA_BASE": f"{home}/mnesia",
            "RABBITMQ_LOG_BASE": home,
            "RABBITMQ_CONFIG_FILE": f"{home}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home}/enabled_plugins",
            "RABBITMQ_PID_FILE": f"{home}/rabbitmq.pid",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # The start script then becomes the Erlang machine instead of waiting for it: one process, and SIGTERM is a clean stop.
            "RUNNING_UNDER_SYSTEMD": "true",
            # Busy waiting of idle schedulers would eat a small machine.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none",
        }
