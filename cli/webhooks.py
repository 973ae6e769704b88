"""Webhooks of a tenant (`--tenant`, or a tenant's key): which there are, and what each was told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from cli.client import call, pages
from cli.printing import JsonOption, LimitOption, age, lines, say, table

webhook = typer.Typer(help="Webhooks.", no_args_is_help=True)
WebhookId = Annotated[str, typer.Argument(metavar="ID")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    commands: dict[str, Callable[..., None]] = {"list": webhooks, "deliveries": deliveries, "test": test, "redeliver": redeliver}
    for word, command in commands.items():
        webhook.command(word)(command)
    app.add_typer(webhook, name="webhook")


def webhooks(context: typer.Context, as_json: JsonOption = False) -> None:
    """Where a tenant's events go, and whether they get there."""
    found = call(context, "GET", "/api/webhooks")["items"]
    if as_json:
        lines(found)
        return
    table(("id", "url", "state", "failures", "events"), map(_row, found), "There are no webhooks.")


def _row(found: dict[str, Any]) -> tuple[Any, ...]:
    state = "on" if found["isActive"] else f"off: {found['disabledReason']}"
    return (found["id"], found["url"], state, found["failures"], ",".join(found["events"]))


def deliveries(context: typer.Context, webhook_id: WebhookId, limit: LimitOption = 50, as_json: JsonOption = False) -> None:
    """What a webhook was told, the newest first."""
    found = list(pages(context, f"/api/webhooks/{webhook_id}/deliveries", limit))
    if as_json:
        lines(found)
        return
    head = ("id", "event", "status", "tries", "answer", "created", "next try", "why")
    table(head, map(_delivery_row, found), "It was told nothing yet.")


def _delivery_row(found: dict[str, Any]) -> tuple[Any, ...]:
    times = (age(found["createdAt"]), age(found["nextAttemptAt"]))
    return (found["id"], found["type"], found["status"], found["attempts"], found["responseCode"], *times, found["lastError"] or "")


def test(context: typer.Context, webhook_id: WebhookId) -> None:
    """Send a webhook a test event; prints the delivery's id."""
    print(call(context, "POST", f"/api/webhooks/{webhook_id}/test")["id"])


def redeliver(context: typer.Context, delivery_id: WebhookId) -> None:
    """Tell an event once more, under the same id."""
    call(context, "POST", f"/api/webhook-deliveries/{delivery_id}/redeliver")
    say(f"{delivery_id} is told again.")
