"""The mail commands: how a letter looks, and what of the outbox failed."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from cli.client import Target, call, pages
from cli.printing import JsonOption, LimitOption, age, facts, lines, say, table

group = typer.Typer(help="Transactional mails and the outbox.", no_args_is_help=True)
MailId = Annotated[str, typer.Argument(metavar="ID")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (preview, templates, failed, retry):
        group.command(command.__name__)(command)
    app.add_typer(group, name="mail")


def preview(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="verification, password_reset, welcome or system")],
    locale: Annotated[str | None, typer.Option("--locale", help="A language tag; default: the tenant's own.")] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", help="With this tenant's words; default: what ships.")] = None,
    html: Annotated[bool, typer.Option("--html", help="The HTML alone, for a file or a browser.")] = False,
    text: Annotated[bool, typer.Option("--text", help="The text alone.")] = False,
    as_json: JsonOption = False,
) -> None:
    """A letter with sample data, as it would be sent."""
    _act_for(context, tenant)
    letter = call(context, "POST", f"/api/mail/templates/{name}/preview", json={"locale": locale} if locale else {})
    if as_json:
        lines([letter])
    elif html:
        print(letter["html"] or "")
    elif text:
        print(letter["text"], end="")
    else:
        whose = "the tenant's own" if letter["isOwn"] else "as it ships"
        facts({"template": f"{letter['name']} ({letter['locale']}, {whose})", "subject": letter["subject"]})
        print()
        print(letter["text"], end="")
        say("--html prints the HTML.")


def templates(context: typer.Context, as_json: JsonOption = False) -> None:
    """The letters there are, their languages, and the tenant's own."""
    found = call(context, "GET", "/api/mail/templates")["items"]
    if as_json:
        lines(found)
        return
    rows = [(each["name"], ", ".join(each["shippedLocales"]), ", ".join(each["ownLocales"]) or None, each["about"]) for each in found]
    table(("template", "ships in", "own", "what it is"), rows, "There are none.")


def failed(
    context: typer.Context,
    limit: LimitOption = 50,
    status: Annotated[str, typer.Option("--status", help="Or another: pending, uncertain, sent ...")] = "failed",
    as_json: JsonOption = False,
) -> None:
    """Mails that could not be sent, to whom and why, the newest first."""
    found = list(pages(context, "/api/outbound-emails", limit, status=status))
    if as_json:
        lines(found)
        return
    rows = [(each["id"], each["kind"], each["to"], each["attempts"], age(each["createdAt"]), each["lastError"]) for each in found]
    table(("id", "kind", "to", "attempts", "created", "why"), rows, f"No mail is {status}.")


def retry(context: typer.Context, email_id: MailId) -> None:
    """Try a failed, cancelled or waiting mail again at once; prints the run's id."""
    print(call(context, "POST", f"/admin/emails/{email_id}/retry")["taskId"])


def _act_for(context: typer.Context, tenant: str | None) -> None:
    """The option after the command means what it means before it."""
    if tenant is not None:
        root = context.find_root()
        root.obj = replace(root.obj or Target(), tenant=tenant)
