"""Everything on this machine: the embedded broker where none is configured, the API, workers, the scheduler."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from cli.embedded import valkey
from cli.processes import command
from cli.supervisor import Child
from core.errors import ConfigurationError, UnavailableError
from core.settings import Settings, environment, load_settings

KEY_NAMES = ("CREDENTIAL_ENCRYPTION_KEY", "TASK_SIGNING_KEY")
READY_SECONDS = 30.0
PORTS_TRIED = 50


def stack(settings: Settings, changes: Mapping[str, str], listening: socket.socket | None = None) -> list[Child]:
    """The processes in the order of their start. `changes` are what they see besides our own environment; `listening` is a socket
    for the API to serve, instead of opening its own."""
    logs = settings.data_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    child_environment = environment(**changes)
    children = [valkey(settings, logs / "valkey.log")] if settings.uses_embedded_broker else []
    grace = settings.stop_grace + 10  # it gives its processes five seconds less before it kills them
    children.append(Child("workers", command("workers"), child_environment, log=logs / "worker.log", grace=grace))
    children.append(Child("scheduler", command("scheduler_process"), child_environment, log=logs / "scheduler.log"))
    inherited = (listening,) if listening is not None else ()
    api = command("api_process", *(f"--fd={each.fileno()}" for each in inherited))
    children.append(Child("api", api, child_environment, log=logs / "api.log", inherited=inherited))
    return children


def local_keys(data_dir: Path) -> dict[str, str]:
    """Keys for a stack on this machine, made once and kept in a file that only this user can read."""
    path = data_dir / "keys.env"
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        lines = [f"{name}=k1:{base64.b64encode(secrets.token_bytes(32)).decode()}" for name in KEY_NAMES]
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write("\n".join(lines) + "\n")
    pairs = (line.partition("=") for line in path.read_text().splitlines() if "=" in line)
    return {name: value for name, _, value in pairs if name in KEY_NAMES}


def settings_with(changes: Mapping[str, str]) -> Settings:
    """The settings that a child with these changes of the environment will see."""
    return load_settings(**{name.lower(): value for name, value in changes.items()})


def listen_on(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigurationError when the address is not ours to listen on."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ConfigurationError(f"API_HOST, API_PORT: {host}:{port} cannot be listened on ({error.strerror}).") from error
    return listening


def listen_near(host: str, wanted: int) -> socket.socket:
    """A listening socket on the wanted port or the next free one. The API inherits it, so that nobody can take the port between
    the look and the start. Raises ConfigurationError when there is none near."""
    for port in range(wanted, wanted + PORTS_TRIED):
        with contextlib.suppress(ConfigurationError):
            return listen_on(host, port)
    raise ConfigurationError(f"API_PORT: no free port from {wanted} to {wanted + PORTS_TRIED - 1} on {host}.")


def wait_until_ready(url: str) -> None:
    """Raises UnavailableError when the API does not answer in time."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            time.sleep(0.05)
    raise UnavailableError("The API did not start; see .mailroom/logs/api.log.")
