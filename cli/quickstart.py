"""`./manage.py quickstart`: the whole system on this machine with two demo tenants, watched while it works.

It uses nothing but the embedded defaults in .mailroom/, whatever is configured: a demo must not find itself in a real database.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("quickstart")(quickstart)


def quickstart(
    once: Annotated[bool, typer.Option("--once", help="Stop when every demo run has ended; exit 0 if all ended as they should.")] = False,
) -> None:
    """Set everything up and run it: API, dashboard, worker, scheduler, two demo tenants with a local mail server."""
    with _show() as show:
        sys.exit(_run(show, once=once))


class Show:
    """Prints what happens as it happens, with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._is_terminal = sys.stdout.isatty()

    def step(self, text: str) -> None:
        """Something is done."""
        self.line("✔", text, typer.colors.GREEN)

    def line(self, sign: str, text: str, colour: str | None = None) -> None:
        """One line with its sign."""
        mark = typer.style(sign, fg=colour) if self._is_terminal and colour else sign
        print(f"[{time.monotonic() - self._began:5.1f}s] {mark} {text}", flush=True)

    def plain(self, text: str = "") -> None:
        """A line of its own."""
        print(text, flush=True)


@contextmanager
def _show() -> Iterator[Show]:
    """SIGTERM is Ctrl-C: both unwind through the `finally` that stops what was started."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: in a script's background job it would be ignored
        signal.signal(number, interrupt)
    yield Show()


def _run(show: Show, *, once: bool) -> int:
    from cli.embedded import wait_for_valkey
    from cli.stack import listen_near, local_keys, settings_with, stack, wait_until_ready
    from cli.supervisor import Supervisor
    from core.logging import configure_logging
    from core.settings import get_settings
    from demo.servers import DemoServers

    configured = get_settings()
    listening = listen_near("127.0.0.1", configured.api_port or 8000)
    port = listening.getsockname()[1]
    changes = _embedded(local_keys(configured.data_dir), port)
    settings = settings_with(changes)
    configure_logging("ERROR", "console")
    if port != configured.api_port:
        show.line("·", f"port {configured.api_port} is in use; taking {port}", typer.colors.YELLOW)

    children = {child.name: child for child in stack(settings, changes, listening)}
    mail = DemoServers(settings.data_dir / "demo-mail.json", log=settings.data_dir / "logs" / "demo-mail.log")
    supervisor = Supervisor([children.pop("valkey"), children.pop("api")])  # the API takes longest to start and needs nothing yet
    scheduler = children.pop("scheduler")  # last: it would sync what is due before the demo does, and spoil what that is to show
    try:
        supervisor.start()
        mail.start()
        show.step(f"IMAP and SMTP servers with two demo tenants' mail, on 127.0.0.1:{mail.imap_port} and :{mail.smtp_port}")
        show.step(f"Valkey {wait_for_valkey(settings)} (unix socket, append-only file)")
        keys, clients = _prepare_database(settings, mail)
        show.step(f"SQLite database and tenants acme, globex in {settings.data_dir.name}/")
        for child in children.values():
            supervisor.children.append(child)  # first: a Ctrl-C may come at any moment
            child.spawn()
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url)
        threads = settings.worker_processes * settings.worker_threads
        show.step(f"API and dashboard, {settings.worker_processes} worker processes ({threads} threads)")
        show.plain()
        wrong = _walk(show, url, keys, clients)
        show.plain()
        if once:
            return _verdict(show, wrong)
        supervisor.children.append(scheduler)
        scheduler.spawn()
        show.step("scheduler: every account is synced every five minutes")
        show.plain()
        _invite(show, settings, url, keys, clients)
        supervisor.handle_signals()
        supervisor.run()
        return 0
    finally:
        _stop(show, supervisor, mail)


def _embedded(keys: dict[str, str], port: int) -> dict[str, str]:
    return {
        "DATABASE_URL": "",
        "RABBITMQ_URL": "",
        "REDIS_URL": "",
        "API_HOST": "127.0.0.1",
        "API_PORT": str(port),
        "ALLOW_PRIVATE_MAIL_HOSTS": "true",
        "LOG_FORMAT": "json",
        **keys,
    }


def _prepare_database(settings: Any, mail: Any) -> Any:
    """Migrates and seeds in this process, with the settings that the children will see."""
    from core.settings import use_settings
    from demo.tenants import DemoPorts, seed
    from storage.engine import get_engine
    from storage.migrations import upgrade

    use_settings(settings)
    upgrade(get_engine())
    seeded = seed(
        settings.credential_keys, DemoPorts(mail.imap_port, mail.flaky_imap_port, mail.smtp_port), settings.data_dir / "demo-keys.json"
    )
    get_engine().dispose()
    return seeded


def _walk(show: Show, url: str, keys: Any, clients: Any) -> list[str]:
    """Runs the tour, printing it. Returns what did not end as it should."""
    from demo.tour import Step, Tour

    def on_change(step: Step, run: dict[str, Any]) -> None:
        error = run["attempts"][-1]["error"] if run["attempts"] else None
        reason = error["message"] if error else "it failed"
        show.line("↻", f"{step.tenant:7} {step.title}: {reason} It will be tried again.", typer.colors.YELLOW)

    wrong = []
    tour = Tour(url, keys, clients)
    try:
        for ended in tour.walk(on_change):
            if ended.is_as_intended:
                show.line(
                    "✔" if ended.run["successful"] else "✘",
                    _sentence(ended),
                    typer.colors.GREEN if ended.run["successful"] else typer.colors.RED,
                )
            else:
                wrong.append(f"{ended.step.tenant} {ended.step.title}: ended {ended.run['state']}, not {ended.step.state}")
                show.line("!", wrong[-1], typer.colors.RED)
    finally:
        tour.close()
    return wrong


def _sentence(ended: Any) -> str:
    run, step = ended.run, ended.step
    prefix = f"{step.tenant:7} {step.title}"
    if not run["successful"]:
        return f"{prefix}: {run['error']['message']}"
    result = run["result"]
    if "messages_synced" in result:
        what = _counted(result["messages_synced"], "new message")
    else:
        what = f"accepted for {_counted(result['recipients_sent'], 'recipient')}"
    tries = len(run["attempts"])
    return f"{prefix}: {what}{f', at attempt {tries}' if tries > 1 else ''} ({ended.seconds:.1f} s)"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _verdict(show: Show, wrong: list[str]) -> int:
    if not wrong:
        show.plain("Every demo run ended as it should.")
        return 0
    for sentence in wrong:
        print(f"not as it should: {sentence}", file=sys.stderr)
    return 1


def _invite(show: Show, settings: Any, url: str, keys: Any, clients: Any) -> None:
    body = shlex.quote(json.dumps({"email_client_id": clients.acme_support}))
    show.plain(f"  Dashboard  {url}")
    show.plain(f"  Key        {keys.admin}   (log in with it; it sees both tenants)")
    show.plain(
        "  Try        "
        f"curl -X POST {url}/api/email/sync -H 'Authorization: Bearer {keys.acme}' -H 'Content-Type: application/json' -d {body}"
    )
    show.plain()
    show.plain(
        f"  Ctrl-C stops everything; the data stays in {settings.data_dir} for the next start. This is a demo: for real use see docs/."
    )


def _stop(show: Show, supervisor: Any, mail: Any) -> None:
    """Everything that was started, in order; a second Ctrl-C does not leave half of it behind."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    supervisor.stop()
    mail.stop()
    show.line("·", "stopped")
