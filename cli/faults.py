"""`faults`: the fault scenarios of tests/faults at any size, on private servers, judged by their auditor."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from core.errors import MailroomError, NotFoundError


class FaultsError(MailroomError):
    """Something accepted was lost, done twice or wrongly recorded; the report above the sentence says what."""

    code = "faults"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("faults")(faults)


def faults(
    tasks: Annotated[int, typer.Option("--tasks", "-n", min=50, help="Runs to enqueue in each scenario.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Chance: whom to kill and when, which two faults come together.")] = 1,
    scenario: Annotated[list[str] | None, typer.Option("--scenario", "-s", help="Only this one; may be repeated.")] = None,
    rate: Annotated[float, typer.Option("--rate", min=1, help="Runs enqueued per second.")] = 200.0,
    scale: Annotated[float, typer.Option("--scale", min=0.05, help="Shortens or lengthens the outages; 1 is as described.")] = 1.0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Everything so many times, each with the next seed.")] = 1,
    patience: Annotated[float, typer.Option("--patience", min=10, help="Seconds without any progress before what waits is lost.")] = 90.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each scenario.")] = False,
    list_them: Annotated[bool, typer.Option("--list", help="Say what there is, and do nothing.")] = False,
) -> None:
    """Break brokers, workers, the database and the network under load, and audit that nothing accepted was lost."""
    from tests.faults.campaign import campaign
    from tests.faults.scenarios import BY_NAME, SCENARIOS
    from tests.faults.trial import Report, Size
    from tests.servers.process import MissingServerError

    if list_them:
        for each in SCENARIOS:
            print(f"{each.name:<22}{each.does}")
        return
    unknown = sorted(set(scenario or []) - BY_NAME.keys())
    if unknown:
        raise NotFoundError(f"There is no scenario named {unknown[0]}; --list names them all.")

    def tell(report: Report) -> None:
        print(json.dumps(report.facts()) if as_json else report.line(), flush=True)

    chosen = [BY_NAME[name] for name in scenario or BY_NAME]
    try:
        reports = campaign(chosen, Size(tasks, rate, scale, patience), seed, rounds, tell)
    except MissingServerError as error:
        raise FaultsError(f"{error}; ./manage.py test --install installs what is missing.") from None
    failed = sorted({report.scenario for report in reports if not report.ok})
    accepted = sum(report.accepted for report in reports)
    print(f"{accepted} runs accepted in {len(reports)} trials, {len(failed)} scenarios failed", file=sys.stderr)
    if failed:
        raise FaultsError(f"the books do not balance after: {', '.join(failed)}")
