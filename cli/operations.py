"""What an operator looks at and turns: queues, dead letters, workers, schedules, and whether all is well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from cli.client import call, pages
from cli.printing import JsonOption, LimitOption, YesOption, age, facts, lines, say, span, table
from cli.runs import QueueOption, TaskOption, replay, row, status, sweep

queue = typer.Typer(help="Queues.", no_args_is_help=True)
dead_letters = typer.Typer(help="Failed runs that wait for somebody's decision.", no_args_is_help=True)
schedule = typer.Typer(help="Schedules.", no_args_is_help=True)
Named = Annotated[str, typer.Argument(metavar="NAME")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="As the list shows it, e.g. attempts_exhausted.")]
UNHEALTHY = 4
WELL = "healthy"


def register(app: typer.Typer) -> None:
    """Adds the commands, and the old spellings hidden."""
    groups: tuple[tuple[typer.Typer, str, dict[str, Callable[..., None]]], ...] = (
        (queue, "queue", {"status": queue_status, "pause": queue_pause, "resume": queue_resume, "purge": queue_purge}),
        (dead_letters, "dead-letters", {"list": letters_list, "show": status, "replay": letters_replay, "purge": letters_purge}),
        (schedule, "schedule", {"list": schedules, "run": schedule_run, "pause": schedule_pause, "resume": schedule_resume}),
    )
    for typed, name, commands in groups:
        for word, command in commands.items():
            typed.command(word)(command)
        app.add_typer(typed, name=name)
    plain: dict[str, Callable[..., None]] = {"workers": workers, "status": overview, "health": health, "stats": stats}
    for word, command in plain.items():
        app.command(word)(command)
    app.command("queue:status", hidden=True)(queue_status)
    app.command("worker:ping", hidden=True)(ping)


def queue_status(
    context: typer.Context, name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None, as_json: JsonOption = False
) -> None:
    """How many runs wait, run and failed, queue by queue, the most urgent first."""
    found = [each for each in call(context, "GET", "/api/queues")["items"] if name in {None, each["name"]}]
    if name is not None and not found:
        call(context, "POST", f"/api/queues/{name}/purge", json={"dryRun": True})  # says which there are
    if as_json:
        lines(found)
        return
    head = ("queue", "priority", "waiting", "retrying", "running", "failed", "oldest wait", "paused")
    table(head, map(_queue_row, found), "There are no queues.")


def _queue_row(found: dict[str, Any]) -> tuple[Any, ...]:
    waiting = f"{found['waiting']:,}+" if found["hasMore"] else found["waiting"]
    oldest = span(found["oldestWaitSeconds"])
    return (found["name"], found["priority"], waiting, found["retrying"], found["running"], found["failed"], oldest, _paused(found))


def _paused(found: dict[str, Any]) -> str:
    return "paused" if found["isPaused"] else ""


def queue_pause(context: typer.Context, name: Named) -> None:
    """Start nothing more of a queue; what runs goes on."""
    call(context, "POST", f"/api/queues/{name}/pause")
    say(f"{name} is paused; ./manage.py queue resume {name} starts it again.")


def queue_resume(context: typer.Context, name: Named) -> None:
    """Start a queue's runs again."""
    call(context, "POST", f"/api/queues/{name}/resume")
    say(f"{name} is not paused any more.")


def queue_purge(context: typer.Context, name: Named, yes: YesOption = False) -> None:
    """Revoke every run that waits in a queue, the delayed ones too. Counts first and asks."""
    sweep(context, f"/api/queues/{name}/purge", {}, f"Revoke {{count}} waiting runs of {name}?", yes=yes)


def letters_list(
    context: typer.Context,
    queue_name: QueueOption = None,
    task: TaskOption = None,
    reason: ReasonOption = None,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """The newest first, each with its reason."""
    found = list(pages(context, "/api/dead-letters", limit, queue=queue_name, task=task, reason=reason))
    if as_json:
        lines(found)
        return
    table(("id", "task", "queue", "state", "attempt", "created", "why"), map(row, found), "There are no dead letters.")
    if len(found) == limit:
        say(f"The newest {limit}; --limit shows more.")


def letters_replay(
    context: typer.Context,
    run_id: Annotated[str | None, typer.Argument(metavar="[ID]")] = None,
    queue_name: QueueOption = None,
    task: TaskOption = None,
    reason: ReasonOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Really all of them.")] = False,
    yes: YesOption = False,
) -> None:
    """Give one dead letter, or those that match, a full set of attempts."""
    if run_id is not None:
        replay(context, run_id)
        return
    body = _some(queue_name, task, reason, everything=everything)
    sweep(context, "/api/dead-letters/replay", body, "Replay {count} dead letters?", yes=yes)


def letters_purge(
    context: typer.Context,
    run_id: Annotated[str | None, typer.Argument(metavar="[ID]")] = None,
    queue_name: QueueOption = None,
    task: TaskOption = None,
    reason: ReasonOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Really all of them.")] = False,
    yes: YesOption = False,
) -> None:
    """Take one dead letter, or those that match, off the list; the history keeps them."""
    body = {"ids": [run_id]} if run_id is not None else _some(queue_name, task, reason, everything=everything)
    sweep(context, "/api/dead-letters/purge", body, "Purge {count} dead letters?", yes=yes)


def _some(queue_name: str | None, task: str | None, reason: str | None, *, everything: bool) -> dict[str, Any]:
    """A forgotten option must not mean all of them."""
    if not everything and queue_name is None and task is None and reason is None:
        raise typer.BadParameter("name an ID, narrow with --queue, --task or --reason, or say --all")
    return {"queue": queue_name, "task": task, "reason": reason}


def workers(context: typer.Context, as_json: JsonOption = False) -> None:
    """The worker processes that live."""
    found = call(context, "GET", "/api/workers")["items"]
    if as_json:
        lines(found)
        return
    head = ("worker", "host", "pid", "state", "busy", "threads", "up", "heard", "queues")
    table(head, map(_worker_row, found), "No worker is alive: nothing runs until one starts (./manage.py worker).")


def _worker_row(found: dict[str, Any]) -> tuple[Any, ...]:
    times = (age(found["startedAt"]), age(found["heartbeatAt"]))
    return (
        found["id"],
        found["host"],
        found["pid"],
        found["state"],
        found["busyThreads"],
        found["threads"],
        *times,
        ",".join(found["queues"]),
    )


def ping(context: typer.Context) -> None:
    """The living workers; exit code 4 when there is none."""
    workers(context)
    if not call(context, "GET", "/api/workers")["items"]:
        raise typer.Exit(UNHEALTHY)


def schedules(context: typer.Context, as_json: JsonOption = False) -> None:
    """When each fires next and fired last, and how far that run has come."""
    found = call(context, "GET", "/api/schedules")["items"]
    if as_json:
        lines(found)
        return
    head = ("schedule", "cron", "zone", "next", "last fired", "its run", "", "catches up", "overlap")
    table(head, map(_schedule_row, found), "No schedule is known; a scheduler declares them when it starts.")


def _schedule_row(found: dict[str, Any]) -> tuple[Any, ...]:
    following = "paused" if found["isPaused"] else age(found["nextTickAt"])
    state = (found["lastState"] or "").lower() + (" (skipped)" if found["lastIsSkipped"] else "")
    policies = (found["catchUp"], found["overlap"])
    return (found["task"], found["cron"], found["timezone"], following, age(found["lastTickAt"]), found["lastTaskId"], state, *policies)


def schedule_run(context: typer.Context, name: Named) -> None:
    """Start a schedule's task once, now; prints the run's id."""
    print(call(context, "POST", f"/api/schedules/{name}/run")["taskId"])


def schedule_pause(context: typer.Context, name: Named) -> None:
    """Fire no more until it is resumed."""
    call(context, "POST", f"/api/schedules/{name}/pause")
    say(f"{name} is paused.")


def schedule_resume(context: typer.Context, name: Named) -> None:
    """Fire again from the next time on."""
    call(context, "POST", f"/api/schedules/{name}/resume")
    say(f"{name} fires again.")


def health(context: typer.Context, as_json: JsonOption = False) -> None:
    """Every component as the last check found it; exit code 4 when one of them is not well."""
    report = call(context, "GET", "/health/detailed")
    if as_json:
        lines([report])
    else:
        rows = [(name, found["status"], span(_seconds(found)), _detail(found)) for name, found in report["components"].items()]
        table(("component", "status", "answered in", "detail"), rows, "")
        if report["ageSeconds"] is not None:
            say(f"Checked {span(report['ageSeconds'])} ago.")
    if report["status"] != WELL:
        say(report["reason"] or f"Mailroom is {report['status']}.")
        raise typer.Exit(UNHEALTHY)


def _seconds(found: dict[str, Any]) -> float | None:
    return found["latency_ms"] / 1000 if found.get("latency_ms") is not None else None


def _detail(found: dict[str, Any]) -> str:
    """The reason, or what there is to tell of a component that is well."""
    if found.get("reason"):
        since = f" (for {age(found['since'])})" if "since" in found else ""
        return str(found["reason"]) + since
    if found.get("configured") is False:
        return "not configured"
    told = {"workers_count": "workers", "active_tasks": "running", "last_tick_age_seconds": "s since the last tick", "current": "schema"}
    return ", ".join(f"{found[name]} {word}" for name, word in told.items() if found.get(name) is not None)


def overview(context: typer.Context, as_json: JsonOption = False) -> None:
    """Is it working: components, workers, what waits, what failed, what is paused. Exit code 4 when something is not well."""
    report = call(context, "GET", "/health/detailed")
    queues = call(context, "GET", "/api/queues")["items"]
    alive = call(context, "GET", "/api/workers")["items"]
    plus = "+" if any(each["hasMore"] for each in queues) else ""
    oldest = max((each["oldestWaitSeconds"] for each in queues if each["oldestWaitSeconds"] is not None), default=None)
    numbers = {name: sum(each[name] for each in queues) for name in ("waiting", "running", "failed")}
    shown: dict[str, Any] = {
        "status": report["status"],
        "components": {name: found["status"] for name, found in report["components"].items()},
        "workers": len(alive),
        "threads": sum(each["threads"] for each in alive),
        **numbers,
        "oldestWaitSeconds": oldest,
        "paused": [each["name"] for each in queues if each["isPaused"]],
    }
    if as_json:
        lines([shown])
        raise typer.Exit(0 if shown["status"] == WELL else UNHEALTHY)
    unwell = [f"{name} {state}" for name, state in shown["components"].items() if state != WELL]
    facts(
        {
            "status": shown["status"] + (f": {', '.join(unwell)}" if unwell else ""),
            "workers": f"{shown['workers']} with {shown['threads']} threads",
            "waiting": f"{numbers['waiting']:,}{plus}" + (f", the oldest due run for {span(oldest)}" if oldest is not None else ""),
            "running": numbers["running"],
            "dead letters": f"{numbers['failed']:,}" + (" (./manage.py dead-letters list)" if numbers["failed"] else ""),
            "paused": ", ".join(shown["paused"]) or "nothing",
        }
    )
    if shown["status"] != WELL:
        raise typer.Exit(UNHEALTHY)


def stats(context: typer.Context, as_json: JsonOption = False) -> None:
    """Numbers of runs by queue and state; what has ended well is told of the newest runs only."""
    found = call(context, "GET", "/api/queues")["items"]
    if as_json:
        lines(found)
        return
    names = ("name", "waiting", "running", "failed", "succeeded", "revoked")
    rows = [tuple(each[name] for name in names) for each in found]
    table(("queue", "waiting", "running", "failed", "succeeded", "revoked"), rows, "There are no queues.")
    if found:
        say(f"succeeded and revoked are of the newest {found[0]['lookedAt']:,} runs.")
