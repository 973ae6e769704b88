"""Runs and tasks as commands: lists by what they are doing, one run, revoke, replay, send."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client import RefusedError, call, pages
from cli.printing import JsonOption, LimitOption, YesOption, age, confirmed, facts, lines, say, span, table
from core.settings import get_settings

many = typer.Typer(help="Lists of runs, and the tasks there are.", no_args_is_help=True)
one = typer.Typer(help="One run.", no_args_is_help=True)
QueueOption = Annotated[str | None, typer.Option("--queue", "-Q")]
TaskOption = Annotated[str | None, typer.Option("--task")]
RunId = Annotated[str, typer.Argument(metavar="ID")]
LISTS: dict[str, tuple[dict[str, str], str]] = {
    "active": ({"state": "started"}, "Runs that a worker has claimed."),
    "reserved": ({"state": "pending,retry", "waitingFor": "queue,broker"}, "Runs that are due and wait for a free worker."),
    "scheduled": ({"state": "pending,retry", "waitingFor": "eta"}, "Runs that wait for their time: delayed, or before a retry."),
    "failed": ({"state": "failure"}, "Runs that failed; `dead-letters list` leaves out what was purged."),
    "revoked": ({"state": "revoked"}, "Runs that were revoked or have expired."),
}


def register(app: typer.Typer) -> None:
    """Adds the commands, and the old spellings hidden."""
    for name, (query, sentence) in LISTS.items():
        many.command(name, help=sentence)(_lister(query, sentence))
    many.command("registered")(registered)
    many.command("revoke")(revoke_many)
    for command in (status, result, revoke, replay, logs, send):
        one.command(command.__name__)(command)
    app.add_typer(many, name="tasks")
    app.add_typer(one, name="task")
    app.command("task:status", hidden=True)(status)
    app.command("task:revoke", hidden=True)(revoke)


def _lister(query: dict[str, str], sentence: str) -> Any:
    def listed(
        context: typer.Context, queue: QueueOption = None, task: TaskOption = None, limit: LimitOption = 50, as_json: JsonOption = False
    ) -> None:
        found = list(pages(context, "/api/tasks", limit, queue=queue, task=task, **query))
        if as_json:
            lines(found)
            return
        table(("id", "task", "queue", "state", "attempt", "created", "note"), map(row, found), f"None. ({sentence})")
        if len(found) == limit:
            say(f"The newest {limit}; --limit shows more.")

    return listed


def row(run: dict[str, Any]) -> tuple[Any, ...]:
    """A run as a line of a table."""
    attempts = f"{run['attempt']}/{run['maxAttempts']}"
    return (run["taskId"], run["task"], run["queue"], run["state"], attempts, age(run["createdAt"]), note(run))


def note(run: dict[str, Any]) -> str:
    """The one thing to know about a run besides its state."""
    if run["revokeRequested"]:
        return "revocation requested" + (" (by force)" if run["ending"] == "terminate" else "")
    if run["state"] == "STARTED":
        told = run["progress"] or {}
        return f"for {age(run['startedAt'])}" + (f", {told['done']} of {told['total']}" if "total" in told else "")
    if run["waitingFor"] == "eta":
        return f"due {age(run['eta'])}" if run["eta"] else "waits for its time"
    if run["waitingFor"] and run["waitingFor"] != "queue":
        return f"waits for {run['waitingFor']}"
    error = run["error"] or {}
    return " ".join(str(part) for part in (error.get("reason"), error.get("message")) if part)[:100]


def registered(context: typer.Context, as_json: JsonOption = False) -> None:
    """The tasks there are: queue, attempts, limits."""
    found = call(context, "GET", "/api/task-types")["items"]
    if as_json:
        lines(found)
        return
    rows = [(each["task"], each["queue"], each["maxAttempts"], span(each["softLimit"]), span(each["hardLimit"])) for each in found]
    table(("task", "queue", "attempts", "soft", "hard"), rows, "No task is declared.")


def revoke_many(
    context: typer.Context,
    queue: QueueOption = None,
    task: TaskOption = None,
    state: Annotated[str | None, typer.Option("--state", help="waiting or running; default: both.")] = None,
    terminate: Annotated[bool, typer.Option("--terminate", help="End running ones by force.")] = False,
    yes: YesOption = False,
) -> None:
    """Revoke runs by filter. Counts first and asks."""
    body = {"queue": queue, "task": task, "state": state, "terminate": terminate}
    sweep(context, "/api/tasks/revoke", body, "Revoke {count} runs?", yes=yes)


def sweep(context: typer.Context, path: str, body: dict[str, Any], question: str, *, yes: bool) -> None:
    """The count, the question, the deed. Prints what was done; raises typer.Exit(1) when it was not agreed to."""
    body = {name: value for name, value in body.items() if value is not None}
    count = call(context, "POST", path, json={**body, "dryRun": True})["count"]
    if count == 0:
        say("There is nothing to do: no run matches.")
        return
    if not confirmed(question.format(count=count), yes=yes):
        raise typer.Exit(1)
    done = _agreed(context, path, body, count, yes=yes)
    facts({name: done[name] for name in ("revoked", "marked", "replayed", "skipped", "purged") if done[name]} or {"changed": 0})
    if done["marked"]:
        say("Marked runs are running: they end at their next checkpoint, or within seconds with --terminate.")


def _agreed(context: typer.Context, path: str, body: dict[str, Any], count: int, *, yes: bool) -> dict[str, Any]:
    """With --yes any count is agreed to, also one that changes meanwhile."""
    for _ in range(5):
        try:
            done: dict[str, Any] = call(context, "POST", path, json={**body, "expect": count})
            return done
        except RefusedError as error:
            if not yes or error.count is None:
                raise
            count = error.count
    raise RefusedError("The number of runs does not hold still; pause the queue first.", 409)


def status(context: typer.Context, run_id: RunId, as_json: JsonOption = False) -> None:
    """One run and its attempts."""
    run = call(context, "GET", f"/api/tasks/{run_id}")
    if as_json:
        lines([run])
        return
    error = run["error"] or {}
    asked = ("by force" if run["ending"] == "terminate" else "at its next checkpoint") if run["revokeRequested"] else None
    shown = {name: run[name] for name in ("taskId", "task", "queue", "state", "waitingFor", "progress")}
    times = {name: run[name] for name in ("createdAt", "startedAt", "finishedAt", "requestId")}
    facts({**shown, "ends": asked, "reason": error.get("reason"), "error": error.get("message"), **times})
    if run["attempts"]:
        print()
        rows = [
            (each["attempt"], each["state"], _took(each), each["worker"], (each["error"] or {}).get("message")) for each in run["attempts"]
        ]
        table(("attempt", "state", "took", "worker", "error"), rows, "")


def _took(attempt: dict[str, Any]) -> str:
    return span(None if attempt["durationMs"] is None else attempt["durationMs"] / 1000)


def result(context: typer.Context, run_id: RunId, as_json: JsonOption = False) -> None:  # noqa: ARG001  (it is JSON anyway)
    """The result of a run that succeeded, as JSON; exit code 1 for any other."""
    run = call(context, "GET", f"/api/tasks/{run_id}")
    if not run["successful"]:
        error = run["error"] or {}
        raise RefusedError(f"It has no result: it is {run['state']}. {error.get('message') or ''}".strip(), 409)
    print(json.dumps(run["result"], ensure_ascii=False))


def revoke(
    context: typer.Context,
    run_id: RunId,
    terminate: Annotated[
        bool, typer.Option("--terminate", help="Interrupt a running one; its process is ended if that does not help.")
    ] = False,
) -> None:
    """End a run: one that waits at once, one that runs at its next checkpoint."""
    run = call(context, "POST", f"/api/tasks/{run_id}/revoke", json={"terminate": terminate})
    print(run["state"])
    if run["revokeRequested"]:
        say("It is running. It will be REVOKED " + ("within seconds." if terminate else "at its next checkpoint; --terminate forces it."))


def replay(context: typer.Context, run_id: RunId) -> None:
    """Give a failed or revoked run a full set of attempts."""
    print(call(context, "POST", f"/api/tasks/{run_id}/replay")["state"])


def logs(context: typer.Context, run_id: RunId) -> None:
    """The run's lines of this machine's log files, where `up` or `quickstart` wrote them."""
    call(context, "GET", f"/api/tasks/{run_id}")
    files = sorted((get_settings().data_dir / "logs").glob("*.log"))
    found = sorted(line for file in files for line in _lines_of(file, run_id))
    for _, line in found:
        print(line)
    if not files:
        raise RefusedError("There are no log files here; look where your logs are collected for this task_id.", 404)
    if not found:
        say(f"None of {len(files)} log files here mentions this run; it may have run elsewhere.")


def _lines_of(file: Path, run_id: str) -> list[tuple[str, str]]:
    """(timestamp, line); a line that is no JSON has no time and comes first."""
    with file.open(errors="replace") as text:
        return [(_time_of(line), line.rstrip("\n")) for line in text if run_id in line]


def _time_of(line: str) -> str:
    try:
        return str(json.loads(line).get("timestamp", ""))
    except (ValueError, AttributeError):
        return ""


def send(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="k=v…", help="Values are JSON where they can be read so.")] = None,
    countdown: Annotated[float | None, typer.Option("--countdown", min=0, help="Seconds.")] = None,
    eta: Annotated[datetime | None, typer.Option("--eta", help="Not before; UTC.")] = None,
    priority: Annotated[str | None, typer.Option("--priority", help="low, normal, high")] = None,
    unique_key: Annotated[str | None, typer.Option("--unique-key")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Act for this user of the tenant.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Start a task; prints the run's id."""
    options = {"countdown": countdown, "eta": f"{eta.isoformat()}Z" if eta else None, "priority": priority, "uniqueKey": unique_key}
    body = {
        "task": name,
        "args": dict(map(_argument, arguments or [])),
        "options": {key: value for key, value in options.items() if value is not None},
    }
    accepted = call(context, "POST", "/api/tasks", json=body if user is None else {**body, "user_id": user})
    if as_json:
        lines([accepted])
    else:
        print(accepted["taskId"])


def _argument(text: str) -> tuple[str, Any]:
    name, is_given, value = text.partition("=")
    if not is_given or not name:
        raise typer.BadParameter(f"arguments are given as name=value, not {text[:80]!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
