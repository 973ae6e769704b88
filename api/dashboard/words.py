"""How the record reads in plain words: states, reasons, times, durations, and values with what is private left out."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from core.clock import now
from core.logging import SECRET_NAMES, safe_text
from runs.control import revoke_requested
from storage.models import TaskAttempt, TaskRun
from storage.states import Ending, State, WaitingFor

STATE_WORDS = {
    State.PENDING: "Waiting",
    State.STARTED: "Running",
    State.RETRY: "Retrying",
    State.SUCCESS: "Succeeded",
    State.FAILURE: "Failed",
    State.REVOKED: "Revoked",
}
REASONS = {
    "expired": "It was not started in time and has expired.",
    "revoked": "Somebody revoked it.",
    "predecessor_failed": "The run before it did not succeed.",
    "crashed": "Its worker process was lost while it ran.",
    "attempts_exhausted": "Every attempt failed.",
    "permanent": "Trying again cannot help.",
    "invalid_input": "What it was given is wrong; trying again cannot help.",
    "not_found": "What it works on does not exist any more.",
    "authentication_refused": "The account's credentials have to be changed first.",
    "certificate_refused": "The server's certificate has to be mended first, or the account's server changed.",
    "encryption_required": "The account's security setting does not fit its server.",
    "recipient_rejected": "The receiving server will not take this mail.",
    "uncertain": "The mail may have been delivered, so it is not sent again by itself.",
}
LONGEST_VALUE = 120
MOST_ITEMS = 20
Value = str | int | float | bool | None | list[Any] | dict[str, Any]


def state_word(state: str) -> str:
    """The word people use for a state."""
    return STATE_WORDS.get(State(state), state)


def clock_time(moment: datetime | None) -> str:
    """`12:01:07`, with the day before it when it is not today; UTC, as the pages say."""
    if moment is None:
        return "–"
    return moment.strftime("%H:%M:%S" if moment.date() == now().date() else "%d %b %H:%M:%S")


def percent(probability: float) -> str:
    """`97 %`; never 0 or 100, for nothing is that sure."""
    return "< 1 %" if probability < 0.01 else "> 99 %" if probability > 0.99 else f"{round(probability * 100)} %"


def codes(indicators: list[dict[str, str]]) -> str:
    """The names of the indicators that say most, first."""
    order = {severity: place for place, severity in enumerate(("high", "medium", "low", "info"))}
    ranked = sorted(indicators, key=lambda each: order.get(each["severity"], len(order)))
    return ", ".join(dict.fromkeys(each["code"] for each in ranked if each["severity"] != "info"))


def duration(seconds: float | None) -> str:
    """Two units at most: `340 ms`, `3.1 s`, `2 min 5 s`, `3 d 4 h`."""
    if seconds is None:
        return "–"
    if seconds < 0.9995:
        return f"{round(seconds * 1000)} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller, small_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    raise AssertionError


def milliseconds(value: int | None) -> str:
    """A duration that was measured in milliseconds."""
    return duration(None if value is None else value / 1000)


def number(value: int) -> str:
    """With thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def why_it_waits(run: TaskRun) -> str | None:
    """What a waiting run waits for, as a sentence; None when it does not wait."""
    if run.state == State.PENDING and run.waiting_for == WaitingFor.ETA and _is_due(run):
        return f"It has been due since {clock_time(run.eta)} and waits for a free worker."
    if run.state == State.RETRY and _is_due(run):
        return f"The last attempt failed; its retry has been due since {clock_time(run.eta)} and waits for a free worker."
    if run.state == State.RETRY:
        return f"The last attempt failed; it waits for its retry at {clock_time(run.eta)}."
    if run.state != State.PENDING:
        return None
    if run.waiting_for == WaitingFor.ETA:
        return f"It waits for its time, {clock_time(run.eta)}."
    return {
        WaitingFor.LIMIT: "It waits because a limit allows no more runs at the same time.",
        WaitingFor.PAUSE: "It waits because its queue, task or tenant is paused.",
        WaitingFor.RUN: "It waits for the runs before it to end.",
        WaitingFor.BROKER: "It waits to be handed to a message broker; that is tried every second.",
    }.get(WaitingFor(run.waiting_for or "queue"), "It waits in its queue for a free worker.")


def how_it_will_end(run: TaskRun) -> str | None:
    """What somebody has asked of a running run, as a sentence."""
    asked = revoke_requested(run)
    if asked is None:
        return None
    if asked is Ending.TERMINATE:
        return "Revocation requested, by force: it is being interrupted and will be revoked within seconds."
    return "Revocation requested: it ends at its next checkpoint. If it has none for long, end it by force."


def why_it_ended(run: TaskRun) -> str | None:
    """The recorded reason as a sentence; an unknown one is named."""
    return REASONS.get(run.reason, f"Trying again cannot help ({run.reason.replace('_', ' ')}).") if run.reason else None


def waited(run: TaskRun) -> str:
    """How long a run waits or has waited for its first start; a dash where retries make that meaningless."""
    if run.state == State.RETRY or run.waiting_for == WaitingFor.ETA:
        return f"{'due since' if _is_due(run) else 'until'} {clock_time(run.eta)}"
    if run.state == State.PENDING:
        return duration(_seconds(run.created_at, now()))
    return duration(_seconds(run.created_at, run.started_at)) if run.started_at and run.fence == 1 else "–"


def took(run: TaskRun | TaskAttempt) -> str:
    """How long the last attempt took, or has taken so far."""
    if run.state == State.STARTED:
        return duration(_seconds(run.started_at, now())) if run.started_at else "–"
    return milliseconds(run.duration_ms)


def progress_of(run: TaskRun) -> dict[str, Any] | None:
    """`{done, total, note}` of a run that says how far it is, for a bar."""
    found = run.progress or {}
    done, total = found.get("done"), found.get("total")
    if not isinstance(done, int) or not isinstance(total, int) or total <= 0:
        return None
    return {"done": min(done, total), "total": total, "note": str(found.get("note") or "")[:80]}


def private(value: Any, name: str = "") -> Any:
    """A value with everything left out that looks secret, personal or long."""
    if SECRET_NAMES.search(name) and value not in (None, "", [], {}):
        return "‹hidden›"
    if isinstance(value, str):
        return safe_text(value) if len(value) <= LONGEST_VALUE else f"‹hidden: {number(len(value))} characters›"
    if isinstance(value, dict):
        return {str(key)[:LONGEST_VALUE]: private(inner, str(key)) for key, inner in list(value.items())[:MOST_ITEMS]}
    if isinstance(value, list):
        shown = [private(inner) for inner in value[:MOST_ITEMS]]
        return [*shown, f"‹{number(len(value) - MOST_ITEMS)} more›"] if len(value) > MOST_ITEMS else shown
    return value


def shown(value: Any, name: str = "") -> str:
    """`private` as text."""
    kept = private(value, name)
    if isinstance(kept, str):
        return kept
    short = json.dumps(kept, ensure_ascii=False)
    return short if len(short) <= 60 else json.dumps(kept, ensure_ascii=False, indent=2)


def _is_due(run: TaskRun) -> bool:
    return run.eta is None or run.eta <= now()


def _seconds(start: datetime | None, end: datetime) -> float | None:
    return max(0.0, (end - start).total_seconds()) if start is not None else None
