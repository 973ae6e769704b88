"""The processes as commands: worker, scheduler, api, all of them (`up`), the database's schema, the settings in force."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer

from core.settings import Settings, environment, get_settings

database = typer.Typer(help="The database.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("up")(up)
    app.command("worker")(worker)
    app.command("scheduler")(scheduler)
    app.command("api")(api)
    app.command("config")(config)
    database.command("migrate")(migrate)
    app.add_typer(database, name="db")


def up() -> None:
    """Run everything on this machine: real services where their URLs are set, the embedded ones where not."""
    from cli.embedded import wait_for_valkey
    from cli.processes import check_before_start, start_logging
    from cli.stack import listen_on, stack
    from cli.supervisor import Supervisor
    from core.logging import get_logger

    settings = get_settings()
    start_logging(settings)
    assert settings.signing_keys
    assert settings.credential_keys
    children = stack(settings, {}, listen_on(settings.api_host, settings.api_port))
    supervisor = Supervisor(children[:1] if settings.uses_embedded_broker else [])
    supervisor.handle_signals()
    try:
        supervisor.start()
        if settings.uses_embedded_broker:
            wait_for_valkey(settings)
        migrate()
        check_before_start(settings)
        for child in children[len(supervisor.children) :]:
            child.spawn()
            supervisor.children.append(child)
        get_logger(__name__).info(
            "everything_started", api=f"http://{settings.api_host}:{settings.api_port}", logs=str(settings.data_dir / "logs")
        )
        supervisor.run()
    finally:
        supervisor.stop()


def worker(
    processes: Annotated[int | None, typer.Option("--processes", "-p", min=1, help="Worker processes.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Threads in each.")] = None,
    queues: Annotated[list[str] | None, typer.Option("--queues", "-Q", help="Only these queues; repeat or separate by commas.")] = None,
) -> None:
    """Run worker processes and keep them alive, each on its own."""
    from cli.processes import split_queues, start_logging

    settings = get_settings()
    split_queues(queues or [])
    start_logging(settings)
    numbers = [f"--processes={processes or settings.worker_processes}", f"--threads={threads or settings.worker_threads}"]
    _become("workers", *numbers, *(f"--queues={name}" for name in queues or []))


def scheduler() -> None:
    """Run a scheduler; any number of them may run."""
    _become("scheduler_process")


def api() -> None:
    """Serve the HTTP API and the dashboard."""
    from cli.stack import listen_on

    settings = get_settings()
    listen_on(settings.api_host, settings.api_port).close()  # a port in use is one line here and a traceback's worth later
    _become("api_process")


def migrate() -> None:
    """Bring the database to this version's schema; harmless when it is."""
    from cli.processes import schema_of
    from storage.engine import make_engine
    from storage.migrations import upgrade

    engine = make_engine(get_settings().database)
    before, newest = schema_of(engine)
    upgrade(engine)
    engine.dispose()
    message = "already there" if before == newest else f"from {before or 'an empty database'}"
    print(f"schema {newest}: {message}", file=sys.stderr)


def config(as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False) -> None:
    """Print the settings in force, secrets masked."""
    facts = in_force(get_settings())
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name}={'' if value is None else value}")


def in_force(settings: Settings) -> dict[str, Any]:
    """Every setting by its environment name. Secrets are masked, logins in URLs too."""
    from core.logging import URL_LOGIN

    facts: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if hasattr(value, "get_secret_value"):
            clear = value.get_secret_value()
            value = URL_LOGIN.sub("***@", clear) if name.endswith("_url") else "***" if clear else None
        facts[name.upper()] = value if isinstance(value, int | float | bool | None) else str(value)
    return facts


def _become(process: str, *arguments: str) -> None:
    """Checks first, then replaces this process: one process fewer, and signals reach the right one."""
    from cli.processes import check_before_start, command

    check_before_start(get_settings())
    words = command(process, *arguments)
    os.execve(words[0], words, environment())  # noqa: S606  (our own interpreter)
