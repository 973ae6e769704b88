"""Groups and chains as commands: how far one is, and the end of it as a whole."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.client import call, pages
from cli.printing import JsonOption, LimitOption, YesOption, confirmed, facts, lines, say, table
from cli.runs import row

GroupId = Annotated[str, typer.Argument(metavar="ID", help="A group's id, or a chain's.")]
HEAD = ("id", "task", "queue", "state", "attempt", "created", "note")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("group")(group)


def group(
    context: typer.Context,
    group_id: GroupId,
    state: Annotated[str | None, typer.Option("--state", help="Only members in these states, e.g. failure,revoked.")] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="End it as a whole, the callback too. Asks first.")] = False,
    terminate: Annotated[bool, typer.Option("--terminate", help="With --revoke: end running members by force.")] = False,
    limit: LimitOption = 50,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """One group or chain: its members counted, its callback, and its members in their order."""
    path = f"/api/groups/{group_id}"
    found = call(context, "GET", path)
    if revoke:
        _revoke(context, path, found, terminate=terminate, yes=yes)
        return
    if as_json:
        lines([{**found, "items": list(pages(context, f"{path}/members", limit, state=state))}])
        return
    facts(_facts(found))
    print()
    members = list(pages(context, f"{path}/members", limit, state=state))
    table(HEAD, map(row, members), "It has no members." if state is None else "No member is in this state.")
    if len(members) == limit < found["members"]:
        say(f"The first {limit}; --limit shows more.")


def _facts(found: dict[str, Any]) -> dict[str, Any]:
    counted = ", ".join(f"{number:,} {state.lower()}" for state, number in found["states"].items() if number)
    callback = found["callback"]
    return {
        "groupId": found["groupId"],
        "members": f"{found['members']:,}" + (f": {counted}" if counted else ""),
        "ended": f"{found['progress']['done']:,} of {found['progress']['total']:,}",
        "callback": f"{callback['taskId']} {callback['task']} {callback['state']}" if callback is not None else None,
        "createdAt": found["createdAt"],
        "finishedAt": found["finishedAt"],
    }


def _revoke(context: typer.Context, path: str, found: dict[str, Any], *, terminate: bool, yes: bool) -> None:
    left = found["members"] - found["progress"]["done"]
    callback = found["callback"]
    is_live = callback is not None and not callback["ready"]
    if not left and not is_live:
        say("There is nothing to do: it has ended.")
        return
    if not confirmed(f"Revoke {left:,} members{' and the callback' if is_live else ''}?", yes=yes):
        raise typer.Exit(1)
    done = call(context, "POST", f"{path}/revoke", json={"terminate": terminate})
    facts({name: done[name] for name in ("revoked", "marked") if done[name]} or {"changed": 0})
    if done["marked"]:
        say("Marked runs are running: they end at their next checkpoint, or within seconds with --terminate.")
